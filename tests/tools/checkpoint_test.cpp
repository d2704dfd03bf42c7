// SPDX-License-Identifier: MIT
// Which files build/bin/lora takes for a checkpoint, and its modules for what.
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tools/tool.hpp"

namespace lora::checkpoint_test {
namespace {

using testing::random_matrix;
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

TEST_F(CheckpointOfTool, ATensorInSeveralShardsIsAnErrorThatNamesTheFirst) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/1.safetensors", {{"c.weight", values(2, 3, 1)}, {"d.weight", values(2, 3, 2)}});
  write_tensors("base/2.safetensors", {{"b.weight", values(2, 3, 3)}, {"d.weight", values(2, 3, 4)}});
  write_tensors("base/3.safetensors", {{"a.weight", values(2, 3, 5)}, {"c.weight", values(2, 3, 6)}});
  write("base/model.safetensors.index.json",
        R"({"weight_map": {"a.weight": "3.safetensors", "b.weight": "2.safetensors", "c.weight": "1.safetensors"}})");
  expect_refused({"inspect", path("base")}, "expected every tensor in one shard, got \"c.weight\" in two");
}

TEST_F(CheckpointOfTool, WhatIsAddedToManyShardsStandsBesideItsWeight) {
  std::filesystem::create_directory(path("base"));
  const std::map<std::string, std::vector<std::string>> weights{{"1.safetensors", {"b.weight", "e.weight"}},
                                                                {"2.safetensors", {"a.weight", "f.weight"}},
                                                                {"3.safetensors", {"c.weight"}},
                                                                {"4.safetensors", {"d.weight"}}};
  nlohmann::json index{{"metadata", {{"total_size", 0}}}};
  nlohmann::json quantized = index;
  std::map<std::string, std::vector<std::string>> names;
  for (const auto& [shard, of_shard] : weights) {
    testing::Tensors tensors;
    for (const auto& weight : of_shard) {
      tensors[weight] = values(4, 64, 1);
      index["weight_map"][weight] = shard;
      for (const char* part : {"", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"}) {
        quantized["weight_map"][weight + part] = shard;
        names[shard].push_back(weight + part);
      }
    }
    write_tensors("base/" + shard, tensors);
  }
  write("base/model.safetensors.index.json", index.dump());
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  std::size_t total = 0;
  for (const auto& [shard, expected] : names) {
    const auto file = SafetensorsFile::open(path("out/" + shard));
    const auto found = file.names();
    EXPECT_EQ(std::vector<std::string>(found.begin(), found.end()), expected) << shard;
    for (const auto name : found) total += file.tensor(name).bytes.size();
  }
  quantized["metadata"]["total_size"] = total;
  std::stringstream text;
  text << std::ifstream(path("out/model.safetensors.index.json")).rdbuf();
  EXPECT_EQ(text.str(), quantized.dump(2) + "\n");
}

// Every file is read as what its name says.
TEST_F(CheckpointOfTool, IsNotWrittenUnderANameOfAnotherKindOfFile) {
  write_tensors("base.safetensors", {{"a.weight", values(4, 64, 1)}});
  std::filesystem::create_directory(path("folder"));
  write_tensors("folder/model.safetensors", {{"a.weight", values(4, 64, 1)}});
  for (const std::string base : {"base.safetensors", "folder"}) {
    expect_refused({"quantize", path(base), path("out.gguf"), "--format", "nf4"}, "does not end in .gguf");
  }
  detail::GgufEncoder file(32);
  file.add_metadata("general.architecture", std::string("llama"));
  static_cast<void>(file.add_tensor("a.weight", std::array<std::uint64_t, 2>{32, 2}, GgufType::F32, 256));
  const auto bytes = std::move(file).finish();
  write("base.gguf", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  for (const std::string out : {"out.safetensors", "out"}) {
    expect_refused({"quantize", path("base.gguf"), path(out), "--format", "q8_0"}, "a name that ends in .gguf");
    EXPECT_FALSE(std::filesystem::exists(path(out)));
  }
  expect_done({"quantize", path("base.gguf"), path("out.gguf"), "--format", "q8_0"});
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

TEST_F(CheckpointOfTool, AnIndexOfManyNamesIsWrittenInLinearTime) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/1.safetensors", {{"a.weight", row(4, 1)}}, Dtype::F16);
  auto index = nlohmann::json{{"weight_map", {{"a.weight", "1.safetensors"}}}};
  for (int i = 0; i < 30000; ++i) index["more"]["model.layers.0.mlp.experts." + std::to_string(i)] = i;
  write("base/model.safetensors.index.json", index.dump());
  const auto begin = std::chrono::steady_clock::now();
  expect_done({"dequantize", path("base"), path("out")});
  // Quadratic time was half a minute.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
  const auto written = nlohmann::json::parse(std::ifstream(path("out/model.safetensors.index.json")));
  EXPECT_EQ(written.at("more"), index.at("more"));
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

TEST_F(CheckpointOfTool, AConv1dIsExtractedAsPeftAdaptsItAndMergesBack) {
  const testing::Tensors base = {{"h.0.attn.c_attn.weight", values(8, 24, 1)},
                                 {"h.0.attn.c_attn.bias", row(24, 2)},
                                 {"h.0.attn.c_proj.weight", values(8, 8, 3)},
                                 {"h.0.attn.c_proj.bias", row(8, 4)},
                                 {"wte.weight", values(6, 8, 5)},
                                 {"head.weight", values(4, 8, 6)}};
  auto tuned = base;
  for (auto& [name, tensor] : tuned) {
    if (tensor.first.size() == 2) tensor.second += random_matrix<float>(tensor.first[0], tensor.first[1], 7);
  }
  write_tensors("base.safetensors", base);
  write_tensors("tuned.safetensors", tuned);
  expect_done({"extract", path("base.safetensors"), path("tuned.safetensors"), path("adapter"), "--rank", "8"});
  const auto adapter = read_peft_directory<float>(path("adapter"));
  EXPECT_TRUE(adapter.config.lora.fan_in_fan_out);
  const auto& attention = adapter.weights.modules.at("h.0.attn.c_attn");
  EXPECT_EQ(attention.kind, ModuleKind::linear);
  EXPECT_EQ(attention.A.cols(), 8);
  EXPECT_EQ(attention.B.rows(), 24);
  const auto change = [&](const std::string& name) -> Matrix<float> {
    return tuned.at(name + ".weight").second - base.at(name + ".weight").second;
  };
  expect_near(delta(attention), change("h.0.attn.c_attn").transpose());
  expect_near(delta(adapter.weights.modules.at("h.0.attn.c_proj")), change("h.0.attn.c_proj").transpose());
  expect_near(delta(adapter.weights.modules.at("wte")), change("wte").transpose());
  expect_near(delta(adapter.weights.modules.at("head")), change("head"));
  expect_done({"merge", path("base.safetensors"), path("adapter"), path("merged.safetensors")});
  for (const auto& [name, values] : tuned) expect_near(tensor("merged.safetensors", name), values.second);
}

TEST_F(CheckpointOfTool, ASquareWeightThatMayBeAConv1dIsExtractedWhereSomethingTells) {
  const testing::Tensors base = {{"h.0.c_proj.weight", values(4, 4, 1)}, {"h.0.c_proj.bias", row(4, 2)}};
  auto tuned = base;
  tuned["h.0.c_proj.weight"] = values(4, 4, 3);
  write_tensors("base.safetensors", base);
  write_tensors("tuned.safetensors", tuned);
  const std::vector<std::string> call{"extract", path("base.safetensors"), path("tuned.safetensors"), path("adapter")};
  expect_refused(call, "\"h.0.c_proj.weight\": expected a weight known to be stored (out, in) or (in, out)");
  EXPECT_FALSE(std::filesystem::exists(path("adapter")));
  for (const std::string model : {"gpt2", "qwen"}) {
    std::filesystem::create_directory(path(model));
    write_tensors(model + "/model.safetensors", tuned);
    write(model + "/config.json", R"({"model_type": ")" + model + "\"}");
    expect_done({"extract", path("base.safetensors"), path(model), path("adapter-" + model), "--rank", "4"});
    const auto adapter = read_peft_directory<float>(path("adapter-" + model));
    EXPECT_EQ(adapter.config.lora.fan_in_fan_out, model == "gpt2");
    Matrix<float> change = tuned.at("h.0.c_proj.weight").second - base.at("h.0.c_proj.weight").second;
    if (model == "gpt2") change.transposeInPlace();
    expect_near(delta(adapter.weights.modules.at("h.0.c_proj")), change);
  }
}

}  // namespace
}  // namespace lora::checkpoint_test
