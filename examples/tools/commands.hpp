// SPDX-License-Identifier: MIT
// The commands of build/bin/lora. Each add() adds its command to the command line; the command runs if it is called.
#pragma once

#include <CLI/CLI.hpp>

namespace lora::tools {

/// All of build/bin/lora but main(): runs the command that the arguments name and returns the exit code.
int run_command_line(int argc, char** argv);

namespace inspect_command {
void add(CLI::App& app);
}
namespace merge_command {
void add(CLI::App& app);  ///< merge and unmerge
}
namespace diff_command {
void add(CLI::App& app);
}
namespace extract_command {
void add(CLI::App& app);
}
namespace combine_command {
void add(CLI::App& app);
}
namespace convert_command {
void add(CLI::App& app);
}
namespace quantize_command {
void add(CLI::App& app);
}
namespace dequantize_command {
void add(CLI::App& app);
}

}  // namespace lora::tools
