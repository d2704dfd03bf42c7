// The commands of build/bin/lora. Each function adds its command to the command line; the command runs if it is called.
#pragma once

#include <CLI/CLI.hpp>

namespace lora::tools {

void add_inspect(CLI::App& app);
void add_merge(CLI::App& app);  ///< merge and unmerge
void add_diff(CLI::App& app);
void add_extract(CLI::App& app);
void add_combine(CLI::App& app);
void add_convert(CLI::App& app);

}  // namespace lora::tools
