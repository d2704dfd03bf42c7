// SPDX-License-Identifier: MIT
// build/bin/lora as a person uses it: commands, files, exit codes.
#include "tools/tool.hpp"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "support/sanitized.hpp"

namespace lora::tool_test {
namespace {

using testing::expect_close;
using testing::golden;
using testing::random_matrix;
using testing::read_file;
using testing::tool;

class Tool : public testing::ToolTest {
 protected:
  // A checkpoint of one weight and one more tensor.
  void write_base(const std::string& name, Dtype dtype = Dtype::F32) const {
    SafetensorsWriter writer;
    writer.add("layer.weight", weight, dtype);
    writer.add("other", random_matrix<float>(3, 3, 9));
    writer.add_metadata("format", "pt");
    writer.write(path(name));
  }
  // An adapter of that weight.
  void write_adapter(const std::string& name, std::uint64_t seed = 5) const {
    AdapterWeights<float> weights;
    weights.modules.emplace("layer", module(20, 30, seed));
    ToolTest::write_adapter(name, {.lora = {.rank = 2, .alpha = 4}, .target_modules = {"layer"}}, weights);
  }
  [[nodiscard]] Matrix<float> weight_of(const std::string& name) const { return tensor(name, "layer.weight"); }

  const Matrix<float> weight = random_matrix<float>(20, 30, 1);
};

class MergeGolden : public Tool, public ::testing::WithParamInterface<std::string> {};

TEST_P(MergeGolden, IsWhatPeftMerged) {
  const std::string directory = golden(GetParam());
  const auto run = tool({"merge", directory + "/model.safetensors", directory, path("out.safetensors")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const auto merged = SafetensorsFile::open(path("out.safetensors"));
  EXPECT_EQ(merged.size(), SafetensorsFile::open(directory + "/model.safetensors").size());
  expect_close(merged, SafetensorsFile::open(directory + "/expected.safetensors"), "merged.", 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Cases, MergeGolden,
                         ::testing::Values("adapter_qv", "adapter_pattern", "adapter_gpt2_style", "adapter_dora_rslora",
                                           "adapter_exclude", "adapter_layers", "adapter_regex"),
                         [](const auto& tested) { return tested.param; });

TEST_F(Tool, UnmergeTakesOutWhatMergePutIn) {
  write_base("base.safetensors");
  write_adapter("adapter");
  ASSERT_EQ(tool({"merge", path("base.safetensors"), path("adapter"), path("merged.safetensors")}).exit_code, 0);
  EXPECT_GT((weight_of("merged.safetensors") - weight).norm(), 1);
  const auto run = tool({"unmerge", path("merged.safetensors"), path("adapter"), path("back.safetensors")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_LE((weight_of("back.safetensors") - weight).cwiseAbs().maxCoeff(), 1e-6);
  const auto file = SafetensorsFile::open(path("back.safetensors"));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.matrix<float>("other"), (random_matrix<float>(3, 3, 9)));
}

TEST_F(Tool, UnmergeRefusesWhatTheCheckpointCannotTell) {
  for (const std::string name : {"adapter_dora_rslora", "adapter_gpt2_style"}) {
    const auto run = tool({"unmerge", golden(name) + "/model.safetensors", golden(name), path("out.safetensors")});
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_FALSE(std::filesystem::exists(path("out.safetensors")));
  }
}

TEST_F(Tool, TheDtypeStaysAndTheRoundingIsTold) {
  for (const Dtype dtype : {Dtype::F16, Dtype::BF16, Dtype::F64}) {
    write_base("base.safetensors", dtype);
    if (!std::filesystem::exists(path("adapter"))) write_adapter("adapter");
    const auto run = tool({"merge", path("base.safetensors"), path("adapter"), path("merged.safetensors"), "--force"});
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const auto tensor = SafetensorsFile::open(path("merged.safetensors")).tensor("layer.weight");
    EXPECT_EQ(tensor.dtype, dtype);
    const bool rounds = dtype != Dtype::F64;
    EXPECT_EQ(run.output.find("largest error 0,") == std::string::npos, rounds) << run.output;
  }
}

TEST_F(Tool, NothingIsOverwrittenWithoutForce) {
  write_base("base.safetensors");
  write_adapter("adapter");
  write_base("out.safetensors");
  const auto before = read_file(path("out.safetensors"));
  const auto run = tool({"merge", path("base.safetensors"), path("adapter"), path("out.safetensors")});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_NE(run.output.find("--force"), std::string::npos) << run.output;
  EXPECT_EQ(read_file(path("out.safetensors")), before);
  EXPECT_EQ(tool({"merge", path("base.safetensors"), path("adapter"), path("out.safetensors"), "--force"}).exit_code,
            0);
  EXPECT_NE(read_file(path("out.safetensors")), before);
}

TEST_F(Tool, WhatDoesNotFitIsNamedAndNothingIsWritten) {
  write_base("base.safetensors");
  const auto missing = tool({"merge", path("base.safetensors"), golden("adapter_qv"), path("out.safetensors")});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_NE(missing.output.find("model.layers.0.q_proj.weight"), std::string::npos) << missing.output;
  SafetensorsWriter writer;
  writer.add("layer.weight", random_matrix<float>(20, 31, 1));
  writer.write(path("other.safetensors"));
  write_adapter("adapter");
  const auto misshapen = tool({"merge", path("other.safetensors"), path("adapter"), path("out.safetensors")});
  EXPECT_EQ(misshapen.exit_code, 1);
  EXPECT_NE(misshapen.output.find("20 x 31"), std::string::npos) << misshapen.output;
  EXPECT_FALSE(std::filesystem::exists(path("out.safetensors")));
}

TEST_F(Tool, AWrongCallIsToldApart) {
  EXPECT_EQ(tool({}).exit_code, 2);
  EXPECT_EQ(tool({"merge", "only-one"}).exit_code, 2);
  EXPECT_EQ(tool({"inspect", path("missing")}).exit_code, 2);
  EXPECT_EQ(tool({"fly"}).exit_code, 2);
  for (const std::string command : {"inspect", "merge", "unmerge", "diff", "extract", "combine", "convert"}) {
    const auto run = tool({command, "--help"});
    EXPECT_EQ(run.exit_code, 0);
    EXPECT_NE(run.output.find("Example: lora " + command), std::string::npos) << run.output;
  }
}

TEST_F(Tool, MergesShardsWithTheirIndex) {
  std::filesystem::create_directory(path("base"));
  SafetensorsWriter first;
  first.add("layer.weight", weight);
  first.write(path("base/model-1.safetensors"));
  SafetensorsWriter second;
  second.add("other", random_matrix<float>(3, 3, 9));
  second.write(path("base/model-2.safetensors"));
  const std::string index =
      R"({"weight_map": {"layer.weight": "model-1.safetensors", "other": "model-2.safetensors"}})";
  std::ofstream(path("base/model.safetensors.index.json")) << index;
  write_adapter("adapter");
  const auto run = tool({"merge", path("base"), path("adapter"), path("out")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_GT((weight_of("out/model-1.safetensors") - weight).norm(), 1);
  EXPECT_EQ(read_file(path("out/model-2.safetensors")), read_file(path("base/model-2.safetensors")));
  EXPECT_EQ(read_file(path("out/model.safetensors.index.json")), read_file(path("base/model.safetensors.index.json")));
}

TEST_F(Tool, AnIndexThatNamesFilesElsewhereIsRefused) {
  std::ofstream(path("model.safetensors.index.json")) << R"({"weight_map": {"w": "../secret.safetensors"}})";
  EXPECT_EQ(tool({"inspect", path("model.safetensors.index.json")}).exit_code, 1);
}

TEST_F(Tool, DiffTellsWhatChangedAndByHowMuch) {
  write_base("base.safetensors");
  write_adapter("adapter");
  ASSERT_EQ(tool({"merge", path("base.safetensors"), path("adapter"), path("merged.safetensors")}).exit_code, 0);
  const auto same = tool({"diff", path("base.safetensors"), path("base.safetensors")});
  EXPECT_NE(same.output.find("2 tensors equal, 0 different"), std::string::npos) << same.output;
  const auto run = tool({"diff", path("base.safetensors"), path("merged.safetensors"), "--json"});
  const auto report = nlohmann::json::parse(run.output);
  EXPECT_EQ(report.at("different"), 1);
  const Matrix<float> delta = weight_of("merged.safetensors") - weight;
  EXPECT_NEAR(report.at("tensors").at(0).at("largest").get<double>(), delta.cwiseAbs().maxCoeff(), 1e-6);
  EXPECT_NEAR(report.at("tensors").at(0).at("relative").get<double>(), delta.norm() / weight.norm(), 1e-5);
}

// Every distance after a NaN took its place. Equal infinities, as in a mask, have no difference.
TEST_F(Tool, DiffKeepsADistanceThatIsNoNumber) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto largest = [&](float first, float second) {
    write_tensors("a.safetensors", {{"w", {{4}, Matrix<float>{{5, first, 1, 2}}}}});
    write_tensors("b.safetensors", {{"w", {{4}, Matrix<float>{{0, second, 0, 1}}}}});
    const auto run = tool({"diff", path("a.safetensors"), path("b.safetensors"), "--json"});
    return nlohmann::json::parse(run.output).at("tensors").at(0).at("largest");
  };
  EXPECT_TRUE(largest(nan, nan).is_null());
  EXPECT_TRUE(largest(nan, 1).is_null());
  EXPECT_TRUE(largest(infinity, -infinity).is_null());
  EXPECT_EQ(largest(infinity, infinity), 5);
  EXPECT_EQ(largest(-infinity, -infinity), 5);
}

TEST_F(Tool, ExtractFindsTheAdapterThatWasMerged) {
  write_base("base.safetensors");
  write_adapter("adapter");
  ASSERT_EQ(tool({"merge", path("base.safetensors"), path("adapter"), path("merged.safetensors")}).exit_code, 0);
  const auto run = tool({"extract", path("base.safetensors"), path("merged.safetensors"), path("found"), "--rank", "8",
                         "--energy", "0.999999"});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const auto found = read_peft_directory<float>(path("found"));
  EXPECT_EQ(found.weights.modules.at("layer").rank(), 2);
  ASSERT_EQ(tool({"merge", path("base.safetensors"), path("found"), path("again.safetensors")}).exit_code, 0);
  EXPECT_LE((weight_of("again.safetensors") - weight_of("merged.safetensors")).cwiseAbs().maxCoeff(), 1e-5);
}

TEST_F(Tool, CombineAddsAdapters) {
  write_adapter("a", 5);
  write_adapter("b", 50);
  const auto run =
      tool({"combine", path("a"), path("b"), "--weights", "0.5", "-1", "--type", "cat", "-o", path("sum")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const auto delta_of = [&](const std::string& name) {
    return delta(read_peft_directory<float>(path(name)).weights.modules.at("layer"));
  };
  expect_near(delta_of("sum"), 0.5F * delta_of("a") - delta_of("b"));
  EXPECT_EQ(tool({"combine", path("a"), "--type", "average", "-o", path("x")}).exit_code, 1);
  EXPECT_EQ(tool({"combine", path("a"), path("b"), "--weights", "1", "-o", path("x")}).exit_code, 1);
}

TEST_F(Tool, ConvertsToGgufAndBack) {
  AdapterWeights<float> weights;
  const auto query = module(8, 8, 1);
  weights.modules.emplace("model.layers.0.self_attn.q_proj", query);
  write_peft_directory(path("adapter"), {.lora = {.rank = 2, .alpha = 4}, .target_modules = {"q_proj"}}, weights);
  const auto run = tool({"convert", path("adapter"), path("adapter.gguf"), "--architecture", "llama", "--heads", "2"});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  ASSERT_EQ(tool({"convert", path("adapter.gguf"), path("back"), "--heads", "2"}).exit_code, 0);
  const auto back = read_peft_directory<float>(path("back")).weights.modules.at("model.layers.0.self_attn.q_proj");
  const Matrix<float> ours = static_cast<float>(back.scaling) * (back.B * back.A);
  EXPECT_LE((ours - delta(query)).cwiseAbs().maxCoeff(), 1e-5);
  EXPECT_EQ(tool({"convert", path("adapter"), path("other.gguf")}).exit_code, 1);
  const auto listing = tool({"inspect", path("adapter.gguf")});
  EXPECT_NE(listing.output.find("GGUF adapter: 1 modules"), std::string::npos) << listing.output;
}

TEST_F(Tool, InspectCountsWhatPeftCounts) {
  const auto run = tool({"inspect", golden("adapter_pattern"), "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const auto report = nlohmann::json::parse(run.output);
  EXPECT_EQ(report.at("parameters"), 1416);
  EXPECT_EQ(report.at("modules").size(), 12U);
  const auto table = tool({"inspect", golden("adapter_dora_rslora")});
  EXPECT_NE(table.output.find("embedding dora"), std::string::npos) << table.output;
  const auto checkpoint = tool({"inspect", golden("adapter_qv") + "/model.safetensors"});
  EXPECT_NE(checkpoint.output.find("model.embed.weight"), std::string::npos) << checkpoint.output;
}

TEST_F(Tool, MemoryDoesNotGrowWithTheCheckpoint) {
  if (testing::sanitized) GTEST_SKIP() << "a sanitizer keeps memory that has been freed";
  constexpr Index tensors = 16;
  const Matrix<float> large = random_matrix<float>(1024, 2048, 3);
  SafetensorsWriter writer;
  for (Index i = 0; i < tensors; ++i) writer.add_view("layer" + std::to_string(i) + ".weight", large);
  writer.write(path("base.safetensors"));
  AdapterWeights<float> weights;
  ModuleWeights<float> module;
  module.A = random_matrix<float>(8, 2048, 5);
  module.B = random_matrix<float>(1024, 8, 6);
  for (Index i = 0; i < tensors; i += 2) weights.modules.emplace("layer" + std::to_string(i), module);
  LoraModelConfig config{.lora = {.rank = 8, .alpha = 8}, .target_modules = ModuleSelector::matching("layer\\d+")};
  write_peft_directory(path("adapter"), config, weights);
  const auto run = tool({"merge", path("base.safetensors"), path("adapter"), path("out.safetensors")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  const long checkpoint_kib = tensors * 1024 * 2048 * 4 / 1024;
  EXPECT_LT(run.max_resident_kib, checkpoint_kib / 2);
}

// A base for an adapter, by its listing; its values are one random block after another, in two bytes each.
class BaseFor {
 public:
  explicit BaseFor(const nlohmann::json& listing) : block_(bits_of(dtype) / 8 * 256 * 256) {
    const Matrix<float> values = random_matrix<float>(256, 256, 1);
    encode(dtype, std::span<const float>(values.data(), 256 * 256), block_.data());
    for (const auto& module : listing.at("modules")) {
      add(module.at("name").get<std::string>() + ".weight",
          {module.at("out").get<Index>(), module.at("in").get<Index>()});
    }
    for (const auto& [tensor, shape] : listing.at("saved").items()) add(tensor, shape.get<std::vector<Index>>());
  }
  BaseFor(const BaseFor&) = delete;
  BaseFor& operator=(const BaseFor&) = delete;
  void write(const std::string& path) const { writer_.write(path); }

 private:
  static constexpr Dtype dtype = Dtype::BF16;

  void add(const std::string& name, const std::vector<Index>& shape) {
    std::size_t bytes = bits_of(dtype) / 8;
    for (const Index extent : shape) bytes *= static_cast<std::size_t>(extent);
    writer_.add_stream(name, dtype, shape, [this, bytes](const SafetensorsWriter::Sink& sink) {
      const std::span<const std::byte> block(block_);
      for (std::size_t i = 0; i < bytes; i += block.size()) sink(block.first(std::min(block.size(), bytes - i)));
    });
  }

  std::vector<std::byte> block_;
  SafetensorsWriter writer_;
};

TEST_F(Tool, ServesPublishedAdapters) {
  const std::filesystem::path real(LORA_REAL_DIR);
  if (!exists(real)) GTEST_SKIP() << "no folder " << real;
  if (testing::sanitized) GTEST_SKIP() << "takes minutes, and runs no code that smaller adapters do not run";
  for (const std::string name : {"analog_svd_rank4.safetensors", "unet_skin_lesion", "sift_opf_zh"}) {
    const auto listing = tool({"inspect", (real / name).string(), "--json"});
    ASSERT_EQ(listing.exit_code, 0) << listing.output;
    const auto report = nlohmann::json::parse(listing.output);
    std::size_t changed = report.at("saved").size();
    for (const auto& module : report.at("modules")) {
      if (module.at("norm_delta").get<double>() > 0) ++changed;  // some of the published modules were never trained
    }
    const std::string base = path(name + ".base.safetensors");
    BaseFor(report).write(base);
    const auto run = tool({"merge", base, (real / name).string(), path(name + ".merged.safetensors")});
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const auto changes = tool({"diff", base, path(name + ".merged.safetensors"), "--json"});
    EXPECT_EQ(nlohmann::json::parse(changes.output).at("different"), changed) << name;
  }
}

}  // namespace
}  // namespace lora::tool_test
