// The commands of build/bin/lora. Each adds itself to the command line and runs when it is the one called.
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
