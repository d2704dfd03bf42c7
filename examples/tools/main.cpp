// SPDX-License-Identifier: MIT
// build/bin/lora: looks at adapters and checkpoints, merges, compares, extracts, combines, converts and quantizes them.
#include <csignal>

#include "commands.hpp"

int main(int argc, char** argv) {
  // A file beyond the limit of the shell is an error of writing, as a full disk is.
  std::signal(SIGXFSZ, SIG_IGN);
  return lora::tools::run_command_line(argc, argv);
}
