// SPDX-License-Identifier: MIT
// How far a long task is: a bar on a terminal, a few plain lines anywhere else.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <mutex>
#include <string>
#include <utility>

#include "lora/core/types.hpp"

namespace examples {

using lora::Index;

/// "1:05" or "0.4 s".
[[nodiscard]] inline std::string duration_text(double seconds) {
  char text[32];
  if (seconds < 10) {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
  } else {
    const auto whole = static_cast<long>(seconds + 0.5);
    std::snprintf(text, sizeof text, "%ld:%02ld", whole / 60, whole % 60);
  }
  return text;
}

/// One task of `total` steps, shown on `stream`. advance() may be called from several threads.
/// The destructor ends the line, so that what follows stands on its own, also after an exception.
class Progress {
 public:
  Progress(std::string label, Index total, std::FILE* stream = stderr)
      : label_(std::move(label)),
        total_(std::max<Index>(1, total)),
        stream_(stream),
        terminal_(isatty(fileno(stream)) != 0),
        start_(Clock::now()) {
    if (!terminal_) std::fprintf(stream_, "%s ...\n", label_.c_str());
    std::fflush(stream_);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { finish(); }

  void advance(Index steps = 1) {
    const std::lock_guard lock(mutex_);
    done_ += steps;
    show();
  }
  /// The same, and shows a few words on what was done last.
  void advance(Index steps, std::string note) {
    const std::lock_guard lock(mutex_);
    done_ += steps;
    note_ = std::move(note);
    show();
  }

  /// Steps that will not be needed after all, as when a run stops early.
  void skip(Index steps) {
    const std::lock_guard lock(mutex_);
    total_ = std::max(done_, total_ - steps);
  }

  /// Ends the task, complete or not. Idempotent.
  void finish() noexcept {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    finished_ = true;
    const char* state = done_ >= total_ ? "done" : "stopped";
    std::fprintf(stream_, "%s%s: %s after %s\n", terminal_ ? "\r\033[K" : "", label_.c_str(), state,
                 duration_text(elapsed()).c_str());
    std::fflush(stream_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int bar_width = 30;
  static constexpr double seconds_between_drawings = 0.1;

  [[nodiscard]] double elapsed() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  [[nodiscard]] double share() const {
    return total_ == 0 ? 1 : static_cast<double>(done_) / static_cast<double>(total_);
  }

  void show() { terminal_ ? draw_now_and_then() : print_quarters(); }

  void draw_now_and_then() {
    const double now = elapsed();
    if (now - drawn_at_ < seconds_between_drawings) return;
    drawn_at_ = now;
    const int filled = static_cast<int>(share() * bar_width);
    const std::string bar = std::string(static_cast<std::size_t>(filled), '#') +
                            std::string(static_cast<std::size_t>(bar_width - filled), '.');
    std::fprintf(stream_, "\r%s [%s] %3.0f%%  %s left  %s\033[K", label_.c_str(), bar.c_str(), share() * 100,
                 duration_text(now * (1 - share()) / share()).c_str(), note_.c_str());
    std::fflush(stream_);
  }

  void print_quarters() {
    const auto quarter = static_cast<int>(share() * 4);
    if (quarter <= printed_quarters_ || quarter >= 4) return;
    printed_quarters_ = quarter;
    std::fprintf(stream_, "%s: %d%%%s%s after %s\n", label_.c_str(), quarter * 25, note_.empty() ? "" : ", ",
                 note_.c_str(), duration_text(elapsed()).c_str());
    std::fflush(stream_);
  }

  std::string label_;
  std::string note_;
  Index total_;
  std::FILE* stream_;
  bool terminal_;
  Clock::time_point start_;
  std::mutex mutex_;
  Index done_ = 0;
  double drawn_at_ = 0;
  int printed_quarters_ = 0;
  bool finished_ = false;
};

}  // namespace examples
