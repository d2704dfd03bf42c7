// SPDX-License-Identifier: MIT
// Running a program as a filter: text in, text out, nothing on the disk.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <optional>
#include <string>
#include <string_view>
#include <sys/wait.h>
#include <utility>
#include <vector>

#include "common/interrupt.hpp"
#include "lora/io/file_descriptor.hpp"

extern char** environ;  // NOLINT: POSIX declares it nowhere

namespace examples {

namespace detail {

struct Pipe {
  lora::FileDescriptor read;
  lora::FileDescriptor write;
};

/// The ends close on exec, so that a child holds only what it is given. @throws lora::IoError
[[nodiscard]] inline Pipe make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) lora::throw_io_error("run_filter", "pipe", "a pipe", errno);
  for (const int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
  return {lora::FileDescriptor(ends[0]), lora::FileDescriptor(ends[1])};
}

/// A running child, killed and waited for unless wait() was called.
class Child {
 public:
  explicit Child(pid_t id) noexcept : id_(id) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (id_ <= 0) return;
    ::kill(id_, SIGKILL);
    static_cast<void>(wait());
  }

  /// Whether it ended with exit code 0.
  [[nodiscard]] bool wait() noexcept {
    int status = 0;
    while (::waitpid(id_, &status, 0) < 0 && errno == EINTR) {
    }
    id_ = 0;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  pid_t id_;
};

/// Starts `program` with these ends as its standard input, output and error. 0 when it cannot be started.
[[nodiscard]] inline pid_t spawn(const std::string& program, int input, int output, int error) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, error, STDERR_FILENO);
  std::string name = program;
  std::array<char*, 2> arguments = {name.data(), nullptr};
  pid_t id = 0;
  const int code = posix_spawnp(&id, program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  return code == 0 ? id : 0;
}

/// Feeds `input` to one end and gathers what comes from the others, whichever is ready, until these close.
class Exchange {
 public:
  Exchange(lora::FileDescriptor write, std::string_view input) : write_(std::move(write)), input_(input) {
    // A full pipe must not stop us from reading.
    ::fcntl(write_.get(), F_SETFL, O_NONBLOCK);
  }

  void gather(const lora::FileDescriptor& output, std::string& output_text, const lora::FileDescriptor& error,
              std::string& error_text) {
    bool output_open = true;
    bool error_open = true;
    while (output_open || error_open) {
      throw_if_interrupted();
      std::array<pollfd, 3> ends = {pollfd{write_.get(), POLLOUT, 0},
                                    pollfd{output_open ? output.get() : -1, POLLIN, 0},
                                    pollfd{error_open ? error.get() : -1, POLLIN, 0}};
      if (::poll(ends.data(), ends.size(), poll_milliseconds) < 0 && errno != EINTR) {
        lora::throw_io_error("run_filter", "poll", "an event", errno);
      }
      if (ends[0].revents != 0) feed();
      if (ends[1].revents != 0) output_open = take(output, output_text);
      if (ends[2].revents != 0) error_open = take(error, error_text);
    }
  }

 private:
  static constexpr int poll_milliseconds = 200;

  void feed() {
    const auto count = ::write(write_.get(), input_.data(), input_.size());
    if (count > 0) input_.remove_prefix(static_cast<std::size_t>(count));
    const bool refused = count < 0 && errno != EAGAIN && errno != EINTR;
    if (input_.empty() || refused) write_ = lora::FileDescriptor();
  }

  // Whether more may come.
  static bool take(const lora::FileDescriptor& end, std::string& text) {
    std::array<char, 65536> block;  // NOLINT: filled before it is read
    const auto count = ::read(end.get(), block.data(), block.size());
    if (count > 0) text.append(block.data(), static_cast<std::size_t>(count));
    return count > 0 || (count < 0 && errno == EINTR);
  }

  lora::FileDescriptor write_;
  std::string_view input_;
};

}  // namespace detail

/// What a program made of its input.
struct FilterResult {
  bool started = false;  ///< false: there is no such program
  bool succeeded = false;
  std::string output;
  std::string error;
};

/// Runs `program` (searched in PATH, without arguments) on `input`. The child never outlives the call.
/// @throws Interrupted, lora::IoError
[[nodiscard]] inline FilterResult run_filter(const std::string& program, std::string_view input) {
  FilterResult result;
  detail::Pipe to_child = detail::make_pipe();
  detail::Pipe from_child = detail::make_pipe();
  detail::Pipe error = detail::make_pipe();
  const pid_t id = detail::spawn(program, to_child.read.get(), from_child.write.get(), error.write.get());
  if (id == 0) return result;
  result.started = true;
  detail::Child child(id);
  to_child.read = lora::FileDescriptor();
  from_child.write = lora::FileDescriptor();
  error.write = lora::FileDescriptor();
  detail::Exchange(std::move(to_child.write), input).gather(from_child.read, result.output, error.read, result.error);
  result.succeeded = child.wait();
  return result;
}

}  // namespace examples
