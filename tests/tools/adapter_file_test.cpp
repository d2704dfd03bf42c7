// SPDX-License-Identifier: MIT
// Which files build/bin/lora takes for an adapter, and what it makes of them.
#include <cstddef>
#include <filesystem>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/gguf_bytes.hpp"
#include "tools/tool.hpp"

namespace lora::adapter_file_test {
namespace {

using testing::tool;

class AdapterFileOfTool : public testing::ToolTest {};

// It merged as "0 modules" with exit code 0.
TEST_F(AdapterFileOfTool, AGgufAdapterWithoutAnyModuleIsRefused) {
  const auto bytes = testing::adapter_header(0).bytes();
  testing::write_file(path("empty.gguf"), {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  write_tensors("base.safetensors", {{"a.weight", values(6, 4, 2)}});
  for (const auto& arguments :
       {std::vector<std::string>{"merge", path("base.safetensors"), path("empty.gguf"), path("out.safetensors")},
        {"convert", path("empty.gguf"), path("out")},
        {"inspect", path("empty.gguf")}}) {
    expect_refused(arguments, "expected a module with factors");
  }
}

}  // namespace
}  // namespace lora::adapter_file_test
