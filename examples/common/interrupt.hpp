// SPDX-License-Identifier: MIT
// Ctrl-C as an exception at a place of the program's own choosing, so that destructors run and no file is left half
// written.
#pragma once

#include <atomic>
#include <csignal>
#include <exception>

namespace examples {

namespace detail {

inline std::atomic<int> received_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

}  // namespace detail

/// Thrown by throw_if_interrupted.
class Interrupted : public std::exception {
 public:
  explicit Interrupted(int signal) noexcept : signal_(signal) {}
  [[nodiscard]] const char* what() const noexcept override { return "interrupted"; }
  /// What a shell reports for a program ended by this signal: 130 for Ctrl-C.
  [[nodiscard]] int exit_code() const noexcept { return 128 + signal_; }

 private:
  int signal_;
};

/// From here on SIGINT and SIGTERM only set a flag, a full disk or a closed pipe shows as an error of the call that
/// meets it, and system calls that wait return with EINTR.
inline void handle_signals() {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = [](int signal) { detail::received_signal.store(signal); };
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  action.sa_handler = SIG_IGN;
  for (const int signal : {SIGPIPE, SIGXFSZ}) sigaction(signal, &action, nullptr);
}

[[nodiscard]] inline bool interrupted() noexcept { return detail::received_signal.load() != 0; }

/// @throws Interrupted once a signal has come. Safe from any thread.
inline void throw_if_interrupted() {
  if (const int signal = detail::received_signal.load(); signal != 0) throw Interrupted(signal);
}

}  // namespace examples
