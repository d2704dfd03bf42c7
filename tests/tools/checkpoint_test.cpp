// SPDX-License-Identifier: MIT
// Which files build/bin/lora takes for a checkpoint, and its modules for what.
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>

#include "tools/tool.hpp"

namespace lora::checkpoint_test {
namespace {

using testing::tool;

class CheckpointOfTool : public testing::ToolTest {
 protected:
  void write(const std::string& name, const std::string& text) const { testing::write_file(path(name), text); }
  [[nodiscard]] nlohmann::json inspected(const std::string& name) const {
    const auto run = tool({"inspect", path(name), "--json"});
    EXPECT_EQ(run.exit_code, 0) << run.output;
    return nlohmann::json::parse(run.output);
  }
};

TEST_F(CheckpointOfTool, AModuleWithABiasOrCalledAnEmbedderIsExtractedAsALinearLayer) {
  testing::Tensors base;
  for (const std::string module : {"embed_tokens", "x_embedder", "img_embed"}) {
    base[module + ".weight"] = values(6, 4, 1);
  }
  base["img_embed.bias"] = row(6, 2);
  auto tuned = base;
  for (auto& [name, tensor] : tuned) tensor.second.array() += 1;
  write_tensors("base.safetensors", base);
  write_tensors("tuned.safetensors", tuned);
  expect_done({"extract", path("base.safetensors"), path("tuned.safetensors"), path("adapter"), "--rank", "1"});
  const auto modules = read_peft_directory<float>(path("adapter")).weights.modules;
  EXPECT_EQ(modules.at("embed_tokens").kind, ModuleKind::embedding);
  EXPECT_EQ(modules.at("x_embedder").kind, ModuleKind::linear);
  EXPECT_EQ(modules.at("img_embed").kind, ModuleKind::linear);
  EXPECT_EQ(modules.at("x_embedder").A.cols(), 4);
}

}  // namespace
}  // namespace lora::checkpoint_test
