// SPDX-License-Identifier: MIT
// Runs a program and stops, or fails, its n-th system call that changes files: every state a crash or a full disk can
// leave is reached in turn.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <optional>
#include <string>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <vector>

namespace lora::testing {

enum class Fault { none, kill, no_space };

struct FaultyRun {
  Fault fault = Fault::none;
  int at = 0;                            ///< which call that changes files, from 0
  bool without_exchange = false;         ///< the system cannot exchange two folders
  std::optional<rlim_t> largest_file{};  ///< RLIMIT_FSIZE
  std::string standard_output = "/dev/null";
};

struct FaultyEnd {
  bool reached = false;   ///< whether there were so many calls
  int exit_code = -1;     ///< 128 + signal when killed
  bool traceable = true;  ///< false where the system does not allow tracing
};

namespace detail {

[[nodiscard]] inline bool changes_files(unsigned long number, const unsigned long long* arguments) {
  switch (number) {
    case SYS_openat:
      return (arguments[2] & (O_CREAT | O_TRUNC)) != 0;
    case SYS_write:
      return arguments[0] > 2;
#ifdef SYS_rename
    case SYS_rename:
    case SYS_mkdir:
    case SYS_unlink:
    case SYS_rmdir:
    case SYS_link:
#endif
    case SYS_renameat2:
    case SYS_mkdirat:
    case SYS_unlinkat:
    case SYS_linkat:
    case SYS_fsync:
    case SYS_flock:
      return true;
    default:
      return false;
  }
}

/// renameat2 with RENAME_EXCHANGE fails with EINVAL from now on.
inline void forbid_exchange() {
  const sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[4])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 2, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{static_cast<unsigned short>(sizeof(rules) / sizeof(rules[0])),
                           const_cast<sock_filter*>(rules)};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    ::_exit(126);
  }
}

[[noreturn]] inline void become(const std::string& program, const std::vector<std::string>& arguments,
                                const FaultyRun& run) {
  const int out = ::open(run.standard_output.c_str(), O_WRONLY);
  const int null = ::open("/dev/null", O_WRONLY);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(null, STDERR_FILENO);
  ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
  std::vector<char*> words = {const_cast<char*>(program.c_str())};
  for (const auto& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  if (run.largest_file) {
    const rlimit limit{*run.largest_file, *run.largest_file};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  if (run.without_exchange) forbid_exchange();
  if (run.fault != Fault::none && ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(125);
  ::execv(program.c_str(), words.data());
  ::_exit(127);
}

[[nodiscard]] inline bool fail_call(pid_t child) {
#ifdef __x86_64__
  user_regs_struct registers{};
  int status = 0;
  if (::ptrace(PTRACE_GETREGS, child, nullptr, &registers) != 0) return false;
  registers.orig_rax = ~0ULL;
  ::ptrace(PTRACE_SETREGS, child, nullptr, &registers);
  ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
  ::waitpid(child, &status, 0);
  ::ptrace(PTRACE_GETREGS, child, nullptr, &registers);
  registers.rax = static_cast<unsigned long long>(-ENOSPC);
  return ::ptrace(PTRACE_SETREGS, child, nullptr, &registers) == 0;
#else
  static_cast<void>(child);
  return false;
#endif
}

}  // namespace detail

/// Whether calls can be failed here.
#ifdef __x86_64__
inline constexpr bool can_fail_calls = true;
#else
inline constexpr bool can_fail_calls = false;
#endif

[[nodiscard]] inline FaultyEnd run_with_fault(const std::string& program, const std::vector<std::string>& arguments,
                                              const FaultyRun& run) {
  const pid_t child = ::fork();
  if (child == 0) detail::become(program, arguments, run);
  FaultyEnd end;
  int status = 0;
  int calls = 0;
  bool entering = true;
  ::waitpid(child, &status, 0);
  if (run.fault != Fault::none && WIFSTOPPED(status)) {
    ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    int pass_on = 0;
    while (!WIFEXITED(status) && !WIFSIGNALED(status)) {
      ::ptrace(end.reached ? PTRACE_CONT : PTRACE_SYSCALL, child, nullptr, pass_on);
      if (::waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) continue;
      const bool at_call = WSTOPSIG(status) == (SIGTRAP | 0x80);
      pass_on = at_call || WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
      if (!at_call) continue;
      __ptrace_syscall_info info{};
      ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info);
      entering = info.op == PTRACE_SYSCALL_INFO_ENTRY;
      const auto* words = reinterpret_cast<const unsigned long long*>(info.entry.args);
      if (!entering || !detail::changes_files(info.entry.nr, words) || calls++ != run.at) continue;
      end.reached = true;
      if (run.fault == Fault::kill) ::kill(child, SIGKILL);
      if (run.fault == Fault::no_space) end.traceable = detail::fail_call(child);
    }
  }
  end.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (end.exit_code == 125 || end.exit_code == 126) end.traceable = false;
  return end;
}

}  // namespace lora::testing
