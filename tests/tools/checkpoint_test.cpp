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

TEST_F(CheckpointOfTool, InAFolderWithBothModelSafetensorsIsReadAndNotTheIndex) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model.safetensors", {{"a.weight", values(2, 3, 1)}});
  write_tensors("base/model-1.safetensors", {{"b.weight", values(2, 3, 2)}});
  write("base/model.safetensors.index.json", R"({"weight_map": {"b.weight": "model-1.safetensors"}})");
  const auto report = inspected("base");
  ASSERT_EQ(report.at("tensors").size(), 1U);
  EXPECT_EQ(report.at("tensors").at(0).at("name"), "a.weight");
}

TEST_F(CheckpointOfTool, ATensorThatTheIndexNamesAndItsShardLacksIsAnError) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/1.safetensors", {{"a.weight", values(2, 3, 1)}});
  write_tensors("base/2.safetensors", {{"b.weight", values(2, 3, 2)}});
  const auto index = [&](const std::string& map) {
    write("base/model.safetensors.index.json", R"({"weight_map": {)" + map + "}}");
  };
  index(R"("a.weight": "1.safetensors", "b.weight": "2.safetensors")");
  EXPECT_EQ(inspected("base").at("tensors").size(), 2U);
  index(R"("a.weight": "1.safetensors", "b.weight": "2.safetensors", "c.weight": "2.safetensors")");
  expect_refused({"inspect", path("base")},
                 "expected \"c.weight\" in \"2.safetensors\", got a file without that tensor");
  index(R"("a.weight": "2.safetensors", "b.weight": "1.safetensors")");
  expect_refused({"inspect", path("base")}, "expected \"b.weight\" in \"1.safetensors\"");
}

TEST_F(CheckpointOfTool, AnIndexIsWrittenAsDeeplyNestedAsItIsRead) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/1.safetensors", {{"a.weight", values(4, 64, 1)}});
  const auto index = [&](std::size_t depth) {
    write("base/model.safetensors.index.json", R"({"metadata": {"total_size": 1}, "weight_map": )"
                                               R"({"a.weight": "1.safetensors"}, "more": )" +
                                                   std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}");
  };
  for (const std::size_t depth : {64U, 65U, 127U}) {
    SCOPED_TRACE(depth);
    index(depth);
    const auto run = tool({"quantize", path("base"), path("out"), "--format", "nf4", "--force"});
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const auto written = nlohmann::json::parse(std::ifstream(path("out/model.safetensors.index.json")));
    EXPECT_EQ(written.at("weight_map").at("a.weight.absmax"), "1.safetensors");
    EXPECT_EQ(written.at("more").dump(), std::string(depth - 1, '[') + std::string(depth - 1, ']'));
    EXPECT_GT(written.at("metadata").at("total_size"), 100);
  }
  index(128);
  expect_refused({"inspect", path("base")}, "expected at most 127 levels of nesting");
}

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
