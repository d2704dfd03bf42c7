// SPDX-License-Identifier: MIT
// What a number needs beside it to mean something: machine, compiler, flags, versions.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace lora::bench {

/// (name, value), in the order of the report.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> describe_machine();

}  // namespace lora::bench
