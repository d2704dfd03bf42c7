// SPDX-License-Identifier: MIT
// What build/bin/lora says and writes about adapters: extract, inspect, combine, and the command line.
#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "tools/tool.hpp"

namespace lora::adapters_test {
namespace {

using testing::random_matrix;
using testing::Tensors;
using testing::tool;

class AdaptersTool : public testing::ToolTest {};

TEST_F(AdaptersTool, ExtractCopesWithEmbeddingsBiasesNormsAndNumbers) {
  Tensors base{{"m.embed_tokens.weight", values(9, 4, 1)},
               {"m.a.weight", values(6, 4, 2)},
               {"m.a.bias", row(6, 3)},
               {"m.b.weight", values(4, 6, 4)},
               {"m.b.bias", row(4, 5)},
               {"m.norm.weight", row(4, 6)},
               {"m.norm.bias", row(4, 7)},
               {"m.gate.scale", {{}, random_matrix<float>(1, 1, 8)}},
               {"logit_scale", {{}, random_matrix<float>(1, 1, 9)}},
               {"m.same.weight", values(4, 4, 10)}};
  Tensors tuned = base;
  auto embedding = module(4, 9, 11);
  const auto a = module(6, 4, 13);
  tuned.at("m.embed_tokens.weight").second += delta(embedding).transpose();
  tuned.at("m.a.weight").second += delta(a);
  for (const std::string name : {"m.a.bias", "m.b.bias", "m.norm.weight", "m.gate.scale", "logit_scale"}) {
    tuned.at(name).second.array() += 1;
  }
  tuned["m.head.weight"] = values(2, 4, 15);
  write_tensors("base.safetensors", base);
  write_tensors("tuned.safetensors", tuned);
  const auto run = tool({"extract", path("base.safetensors"), path("tuned.safetensors"), path("found"), "--rank", "2"});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_NE(run.output.find("\"logit_scale\" differs, but belongs to no module"), std::string::npos) << run.output;
  const auto file = SafetensorsFile::open(path("found/adapter_model.safetensors"));
  EXPECT_TRUE(file.contains("base_model.model.m.embed_tokens.lora_embedding_A"));
  EXPECT_TRUE(file.contains("base_model.model.m.embed_tokens.lora_embedding_B"));
  const auto found = read_peft_directory<float>(path("found"));
  EXPECT_EQ(found.weights.modules.size(), 2U);
  EXPECT_EQ(found.config.lora.bias, BiasMode::all);
  EXPECT_EQ(found.config.modules_to_save, (std::vector<std::string>{"m.gate", "m.head", "m.norm"}));

  expect_done({"merge", path("base.safetensors"), path("found"), path("again.safetensors")});
  const auto again = SafetensorsFile::open(path("again.safetensors"));
  for (const auto& [name, wanted] : tuned) {
    if (name != "logit_scale") expect_near(again.matrix<float>(name), wanted.second);
  }
}

TEST_F(AdaptersTool, ExtractWritesTheBiasOfAnAdaptedModule) {
  Tensors base{{"a.weight", values(6, 4, 2)}, {"a.bias", row(6, 3)}};
  Tensors tuned{{"a.weight", values(6, 4, 12)}, {"a.bias", row(6, 13)}};
  write_tensors("base.safetensors", base);
  write_tensors("tuned.safetensors", tuned);
  expect_done({"extract", path("base.safetensors"), path("tuned.safetensors"), path("found")});
  const auto found = read_peft_directory<float>(path("found"));
  EXPECT_EQ(found.config.lora.bias, BiasMode::lora_only);
  EXPECT_TRUE(found.config.modules_to_save.empty());
  EXPECT_TRUE(found.weights.saved.contains("a.bias"));
}

TEST_F(AdaptersTool, ExtractRefusesADifferenceThatIsNotFinite) {
  Tensors tuned{{"a.weight", values(6, 4, 2)}};
  write_tensors("base.safetensors", tuned);
  tuned.at("a.weight").second(2, 1) = std::numeric_limits<float>::infinity();
  write_tensors("tuned.safetensors", tuned);
  expect_refused({"extract", path("base.safetensors"), path("tuned.safetensors"), path("x")}, "\"a.weight\"");
  EXPECT_FALSE(std::filesystem::exists(path("x")));
}

TEST_F(AdaptersTool, AnUnknownAdapterIsAnErrorThatNamesThoseThere) {
  AdapterWeights<float> weights;
  weights.modules.emplace("a", module(6, 4, 1));
  const LoraModelConfig config{.lora = {.rank = 2, .alpha = 4}, .target_modules = {"a"}};
  write_adapter("adapter", config, weights);
  write_adapter("adapter/french", config, weights);
  write_tensors("base.safetensors", {{"a.weight", values(6, 4, 2)}});
  expect_refused({"inspect", path("adapter"), "--adapter", "frnch"}, "only \"default\", \"french\"");
  expect_refused({"merge", path("base.safetensors"), path("adapter"), path("out"), "--adapter", "frnch"}, "\"french\"");
  expect_refused({"inspect", path("base.safetensors"), "--adapter", "french"}, "--adapter");
  expect_done({"inspect", path("adapter"), "--adapter", "french"});
}

TEST_F(AdaptersTool, ATensorThatIsNoPartOfAPairIsReported) {
  Tensors pairs{{"a.lora_down.weight", values(2, 4, 1)},
                {"a.lora_up.weight", values(6, 2, 2)},
                {"b.lora_down.weight", values(2, 4, 3)}};
  write_tensors("pairs.safetensors", pairs);
  write_tensors("base.safetensors", {{"a.weight", values(6, 4, 2)}});
  for (const auto& arguments : {std::vector<std::string>{"inspect", path("pairs.safetensors")},
                                {"merge", path("base.safetensors"), path("pairs.safetensors"), path("out")},
                                {"convert", path("pairs.safetensors"), path("converted")}}) {
    const auto run = tool(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.output;
    EXPECT_NE(run.output.find("\"b.lora_down.weight\" is no part of a pair"), std::string::npos) << run.output;
  }
  pairs["a.alpha"] = {{0}, Matrix<float>(1, 0)};
  write_tensors("pairs.safetensors", pairs);
  expect_refused({"inspect", path("pairs.safetensors")}, "one number");
}

TEST_F(AdaptersTool, NamesFromFilesCannotControlATerminal) {
  const std::string name = "a\x1b[2J\u009b\u202e.weight";
  write_tensors("base.safetensors", {{name, values(2, 2, 1)}});
  for (const auto& arguments : {std::vector<std::string>{"inspect", path("base.safetensors")},
                                {"inspect", path("base.safetensors"), "--json"},
                                {"diff", path("base.safetensors"), path("base.safetensors"), "--all"},
                                {"fly\x1b[2J"}}) {
    const auto run = tool(arguments);
    EXPECT_EQ(run.output.find('\x1b'), std::string::npos) << arguments.front();
    EXPECT_EQ(run.output.find("\u009b"), std::string::npos) << arguments.front();
    EXPECT_EQ(run.output.find("\u202e"), std::string::npos) << arguments.front();
  }
  EXPECT_NE(tool({"inspect", path("base.safetensors")}).output.find("a\\x1b[2J"), std::string::npos);
}

TEST_F(AdaptersTool, AWrongCallGetsASentence) {
  write_tensors("base.safetensors", {{"a.weight", values(2, 2, 1)}});
  const auto expect_usage = [&](const std::vector<std::string>& arguments, const std::string& text) {
    const auto run = tool(arguments);
    EXPECT_EQ(run.exit_code, 2) << run.output;
    EXPECT_NE(run.output.find(text), std::string::npos) << run.output;
  };
  const std::string base = path("base.safetensors");
  expect_usage({}, "expected a command: inspect, merge");
  expect_usage({"fly"}, "there is no command \"fly\"; the commands are inspect, merge");
  expect_usage({"inspect", path("missing")}, "expected a file or folder that exists");
  expect_usage({"extract", base, base, path("x"), "--rank", "0"}, "--rank: expected a whole number from 1");
  expect_usage({"extract", base, base, path("x"), "--rank", "many"}, "got \"many\"");
  expect_usage({"extract", base, base, path("x"), "--energy", "nan"}, "--energy: expected a number from 0 to 1");
  expect_usage({"convert", base, path("x.gguf"), "--heads", "-3"}, "--heads: expected a whole number from 1");
  expect_usage({"convert", base, path("x.gguf"), "--heads-kv", "3"}, "--heads");
  expect_usage({"combine", base, "-o", path("x"), "--weights", "inf"}, "--weights: expected a finite number");
}

}  // namespace
}  // namespace lora::adapters_test
