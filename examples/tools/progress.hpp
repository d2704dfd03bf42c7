// SPDX-License-Identifier: MIT
// A line on the terminal that shows the progress of a long job.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace lora::tools {

/// Writes to standard error, only if that is a terminal, and at most five times a second.
class Progress {
 public:
  Progress(std::string what, std::uintmax_t total) : what_(std::move(what)), total_(total) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }

  void advance(std::uintmax_t amount) {
    done_ += amount;
    const auto now = Clock::now();
    if (!terminal_ || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    shown_ = true;
    const double share = total_ == 0 ? 1.0 : static_cast<double>(done_) / static_cast<double>(total_);
    const double seconds = std::chrono::duration<double>(now - start_).count();
    std::fprintf(stderr, "\r\x1b[K%s: %.0f %%, %.0f s left", what_.c_str(), 100 * share,
                 share > 0 ? seconds * (1 - share) / share : 0.0);
  }

 private:
  using Clock = std::chrono::steady_clock;

  std::string what_;
  std::uintmax_t total_;
  std::uintmax_t done_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
  bool shown_ = false;
};

}  // namespace lora::tools
