// SPDX-License-Identifier: MIT
// Folders that PEFT wrote are read whole; those that are damaged, incomplete or of something else are refused with all
// that is wrong by name.
#include "lora/io/peft_directory.hpp"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "io/peft_files.hpp"
#include "lora/io/peft_config_writer.hpp"
#include "lora/io/peft_directory_writer.hpp"

namespace lora::peft_directory_test {
namespace {

using nlohmann::json;
using testing::HandmadeAdapter;
using testing::TemporaryFolder;
using Names = std::vector<std::string>;
namespace fs = std::filesystem;

template <class ErrorType>
std::string error_of(const fs::path& folder, const PeftReadOptions& options = {}) {
  try {
    static_cast<void>(read_peft_directory<float>(folder, options));
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no such error";
}

std::set<std::string> without_suffix(const json& header, const std::vector<std::string>& suffixes,
                                     const std::string& prefix = {}) {
  std::set<std::string> names;
  for (const auto& [key, value] : header.items()) {
    for (const std::string& suffix : suffixes) {
      if (key.starts_with(prefix) && key.ends_with(suffix)) {
        names.insert(key.substr(prefix.size(), key.size() - suffix.size() - prefix.size()));
      }
    }
  }
  return names;
}

std::set<std::string> modules_in_file(const fs::path& folder) {
  return without_suffix(testing::raw_header(folder / "adapter_model.safetensors"),
                        {".lora_A.weight", ".lora_embedding_A"}, "base_model.model.");
}

std::set<std::string> names_of(const AdapterWeights<float>& weights) {
  std::set<std::string> names;
  for (const auto& [name, module] : weights.modules) names.insert(name);
  return names;
}

std::size_t tensors_of(const AdapterWeights<float>& weights) {
  std::size_t count = weights.saved.size();
  for (const auto& [name, module] : weights.modules) {
    count += 2U + (module.lora_bias.size() > 0) + (module.magnitude.size() > 0);
  }
  return count;
}

HandmadeAdapter small() {
  HandmadeAdapter adapter;
  adapter.add("base_model.model.q.lora_A.weight", {2, 7}).add("base_model.model.q.lora_B.weight", {5, 2});
  return adapter;
}

class GoldenAdapter : public ::testing::TestWithParam<const char*> {
 protected:
  [[nodiscard]] fs::path folder() const { return testing::golden_adapter(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(All, GoldenAdapter, ::testing::ValuesIn(testing::golden_adapters),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(GoldenAdapter, IsReadWholeAndWithoutAWarning) {
  const auto adapter = read_peft_directory<float>(folder());
  EXPECT_EQ(adapter.warnings, Names());
  EXPECT_EQ(names_of(adapter.weights), modules_in_file(folder()));
  EXPECT_EQ(tensors_of(adapter.weights), testing::raw_header(folder() / "adapter_model.safetensors").size());
}

TEST_P(GoldenAdapter, AdaptsExactlyTheModulesThatTheResolverFinds) {
  Names modules;
  for (const std::string& name :
       without_suffix(testing::raw_header(folder() / "model.safetensors"), {".weight", ".bias"})) {
    modules.push_back(name);
  }
  const TargetedModules resolved = resolve_targets(read_peft_directory<float>(folder()).config, modules);
  EXPECT_EQ(std::set<std::string>(resolved.names.begin(), resolved.names.end()), modules_in_file(folder()));
  EXPECT_EQ(resolved.warnings, Names());
}

// merged weight = base weight + scaling B A, with what PEFT computed for both; DoRA rescales and is left out.
TEST_P(GoldenAdapter, ValuesAndScalingGiveTheMergedWeightsOfPeft) {
  const auto adapter = read_peft_directory<double>(folder());
  if (adapter.config.lora.use_dora) GTEST_SKIP() << "magnitudes rescale the sum";
  const auto base = SafetensorsFile::open(folder() / "model.safetensors");
  const auto expected = SafetensorsFile::open(folder() / "expected.safetensors");
  for (const auto& [name, module] : adapter.weights.modules) {
    Matrix<double> delta = module.scaling * module.B * module.A;
    const auto W0 = base.matrix<double>(name + ".weight");
    const auto merged = expected.matrix<double>("merged." + name + ".weight");
    if (delta.rows() != W0.rows()) delta = delta.transpose().eval();
    // float32 sums of rank terms, rounded once more when added
    const double tolerance = 8 * 6e-8 * (W0.cwiseAbs().maxCoeff() + module.scaling * module.A.norm() * module.B.norm());
    EXPECT_LE((W0 + delta - merged).cwiseAbs().maxCoeff(), tolerance) << name;
    EXPECT_GT(delta.cwiseAbs().maxCoeff(), 100 * tolerance) << name;
  }
  for (const auto& [name, saved] : adapter.weights.saved) {
    const auto merged = expected.matrix<double>("merged." + name);
    ASSERT_EQ(static_cast<std::size_t>(merged.size()), saved.values.size()) << name;
    EXPECT_TRUE(std::equal(saved.values.begin(), saved.values.end(), merged.data())) << name;
  }
}

TEST(PeftDirectory, ScalingAndRankFollowThePatterns) {
  const auto adapter = read_peft_directory<float>(testing::golden_adapter("adapter_pattern"));
  const auto& modules = adapter.weights.modules;
  EXPECT_EQ(modules.at("model.layers.0.q_proj").scaling, 8.0 / 4);
  EXPECT_EQ(modules.at("model.layers.1.q_proj").scaling, 8.0 / 6);
  EXPECT_EQ(modules.at("model.layers.1.q_proj").rank(), 6);
  EXPECT_EQ(modules.at("model.layers.0.mlp.up").scaling, 8.0 / 2);
  EXPECT_EQ(modules.at("model.layers.0.mlp.down").scaling, 3.0 / 4);
  EXPECT_EQ(adapter.weights.saved.size(), 9U);
  EXPECT_EQ(adapter.weights.saved.at("model.layers.2.mlp.up.bias").shape, std::vector<Index>{24});
}

TEST(PeftDirectory, EmbeddingsAndMagnitudes) {
  const auto adapter = read_peft_directory<float>(testing::golden_adapter("adapter_dora_rslora"));
  const auto& embed = adapter.weights.modules.at("model.embed");
  EXPECT_EQ(embed.kind, ModuleKind::embedding);
  EXPECT_EQ(embed.A.rows(), 4);
  EXPECT_EQ(embed.A.cols(), 19);
  EXPECT_EQ(embed.B.rows(), 12);
  EXPECT_EQ(embed.magnitude.size(), 12);
  EXPECT_EQ(embed.scaling, 8.0 / 2);  // alpha / sqrt(rank)
}

TEST(PeftDirectory, ConvolutionsAreMatricesWithAKernel) {
  const TemporaryFolder folder;
  HandmadeAdapter adapter;
  adapter.add("base_model.model.q.lora_A.weight", {2, 3, 4, 5})
      .add("base_model.model.q.lora_B.weight", {6, 2, 1, 1})
      .write(folder.path());
  const auto read = read_peft_directory<float>(folder.path());
  const auto& module = read.weights.modules.at("q");
  EXPECT_EQ(module.kind, ModuleKind::conv2d);
  EXPECT_EQ(module.kernel_size, (std::vector<Index>{4, 5}));
  EXPECT_EQ(module.A.cols(), 60);
  EXPECT_EQ(module.B.cols(), 2);
}

TEST(PeftDirectory, AnAdapterOfVeloraOrEvaIsOneOfLora) {
  for (const nlohmann::json& config : {nlohmann::json{{"velora_config", {{"num_groups", 2}}}},
                                       nlohmann::json{{"init_lora_weights", "eva"}, {"eva_config", {{"rho", 2}}}}}) {
    const TemporaryFolder folder;
    HandmadeAdapter adapter(config);
    adapter.add("base_model.model.q.lora_A.weight", {2, 4}).add("base_model.model.q.lora_B.weight", {3, 2});
    if (config.contains("velora_config")) adapter.add("base_model.model.q.lora_velora_embed", {2});
    adapter.write(folder.path());
    const auto read = read_peft_directory<float>(folder.path());
    EXPECT_EQ(read.weights.modules.size(), 1U);
    EXPECT_TRUE(read.weights.saved.empty());
    EXPECT_EQ(read.warnings.size(), 1U);
  }
}

// The option combinations of PEFT's own tests; golden/peft_options.py says what they are.
TEST(PeftDirectory, PeftsOwnOptionsAreReadOrRefusedByName) {
  const auto cases = testing::json_of(fs::path(LORA_GOLDEN_DIR) / "peft_options.json").at("cases");
  ASSERT_GT(cases.size(), 40U);
  for (const auto& one : cases) {
    SCOPED_TRACE(one.dump());
    const TemporaryFolder folder;
    nlohmann::json options = {{"r", 8}};
    options.update(one.at("options"));
    HandmadeAdapter adapter(options);
    for (const auto& [name, shape] : one.at("tensors").items()) adapter.add(name, shape.get<std::vector<Index>>());
    adapter.write(folder.path());
    if (!one.at("refused").is_null()) {
      const std::string text = error_of<ConfigError>(folder.path());
      EXPECT_NE(text.find(one.at("refused").get<std::string>()), std::string::npos) << text;
      continue;
    }
    const auto read = read_peft_directory<float>(folder.path());
    EXPECT_FALSE(read.weights.modules.empty());
    const TemporaryFolder again;
    write_peft_directory(again.path(), read);
    auto expected = one.at("tensors");
    for (auto tensor = expected.begin(); tensor != expected.end();) {
      tensor = tensor.key().ends_with("velora_embed") ? expected.erase(tensor) : std::next(tensor);
    }
    const auto header = testing::raw_header(again / "adapter_model.safetensors");
    EXPECT_EQ(header.size(), expected.size());
    for (const auto& [name, shape] : expected.items()) EXPECT_EQ(header.at(name).at("shape"), shape) << name;
  }
}

TEST(PeftDirectory, PublishedAdaptersAreRead) {
  const fs::path folder = LORA_REAL_DIR;
  if (!fs::exists(folder)) GTEST_SKIP() << folder << " is not here";
  for (const char* name : {"unet_skin_lesion", "sift_opf_zh"}) {
    SCOPED_TRACE(name);
    const auto adapter = read_peft_directory<float>(folder / name);
    EXPECT_EQ(adapter.warnings, Names());
    EXPECT_EQ(names_of(adapter.weights), modules_in_file(folder / name));
    EXPECT_EQ(tensors_of(adapter.weights), testing::raw_header(folder / name / "adapter_model.safetensors").size());
  }
  const auto sift = read_peft_directory<float>(folder / "sift_opf_zh");
  EXPECT_EQ(sift.weights.modules.at("model.layers.0.self_attn.o_proj").scaling, 2);
  EXPECT_GT(sift.weights.saved.size(), 0U);
}

TEST(PeftDirectory, OtherAdaptersAreInFoldersOfTheirName) {
  const TemporaryFolder folder;
  small().write(folder / "red");
  small().write(folder / "blue");
  small().write(folder / "default");  // PEFT never writes or reads such a folder
  fs::create_directories(folder / "checkpoint");
  EXPECT_EQ(list_peft_adapters(folder.path()), (Names{"blue", "red"}));
  EXPECT_EQ(read_peft_directory<float>(folder.path(), {.adapter = "red"}).weights.modules.size(), 1U);
  small().write(folder.path());
  EXPECT_EQ(list_peft_adapters(folder.path()), (Names{"default", "blue", "red"}));
  EXPECT_THROW(static_cast<void>(list_peft_adapters(folder / "nowhere")), IoError);
  EXPECT_THROW(static_cast<void>(read_peft_directory<float>(folder.path(), {.adapter = "green"})), IoError);
}

TEST(PeftDirectory, NamesOfAdaptersDoNotLeaveTheFolder) {
  EXPECT_EQ(peft_adapter_path("a", "default"), "a");
  EXPECT_EQ(peft_adapter_path("a", "b"), "a/b");
  for (const std::string name : {"", ".", "..", "../x", "/x", "x/y"}) {
    EXPECT_THROW(static_cast<void>(peft_adapter_path("a", name)), ConfigError) << name;
  }
  EXPECT_THROW(static_cast<void>(peft_adapter_path("a", std::string("x\0y", 3))), ConfigError);
}

TEST(PeftDirectory, WhatDoesNotFitIsToldAllAtOnce) {
  const TemporaryFolder folder;
  small()
      .add("base_model.model.k.lora_A.weight", {2, 7})
      .add("base_model.model.v.lora_A.weight", {3, 7})
      .add("base_model.model.v.lora_B.weight", {5, 3})
      .add("other.weight", {1})
      .write(folder.path());
  EXPECT_EQ(error_of<FormatError>(folder.path()),
            "read_peft_directory: \"" + (folder / "adapter_model.safetensors").string() +
                "\": expected the tensors that adapter_config.json describes, got 4 problems:\n"
                "  \"other.weight\" [1] is no tensor of PEFT's LoRA (base_model.model.<module>.lora_A.weight, ...)\n"
                "  \"base_model.model.k.lora_B.weight\" is missing from module \"k\", which has "
                "\"base_model.model.k.lora_A.weight\"\n"
                "  \"base_model.model.v.lora_A.weight\" [3, 7] expected [2, n] at rank 2, got [3, 7]\n"
                "  \"base_model.model.v.lora_B.weight\" [5, 3] expected [n, 2] at rank 2, got [5, 3]");
}

TEST(PeftDirectory, NotStrictLeavesOutWhatDoesNotFitWithAWarningForEach) {
  const TemporaryFolder folder;
  small().add("base_model.model.k.lora_A.weight", {2, 7}).add("base_model.model.norm.weight", {5}).write(folder.path());
  const auto adapter = read_peft_directory<float>(folder.path(), {.strict = false});
  EXPECT_EQ(names_of(adapter.weights), std::set<std::string>{"q"});
  EXPECT_EQ(adapter.warnings.size(), 2U);
  EXPECT_TRUE(adapter.weights.saved.contains("norm.weight")) << "PEFT loads any tensor that the model has";
}

TEST(PeftDirectory, LongListsOfProblemsAreCut) {
  const TemporaryFolder folder;
  HandmadeAdapter adapter = small();
  for (int i = 0; i < 60; ++i) adapter.add("x" + std::to_string(i), {1});
  adapter.write(folder.path());
  const std::string text = error_of<FormatError>(folder.path());
  EXPECT_NE(text.find("60 problems:"), std::string::npos);
  EXPECT_TRUE(text.ends_with("\n  and 10 more")) << text;
}

TEST(PeftDirectory, AFileWithoutAModuleIsNoAdapter) {
  const TemporaryFolder folder;
  HandmadeAdapter().write(folder.path());
  EXPECT_NE(error_of<FormatError>(folder.path()).find("no whole module"), std::string::npos);
  EXPECT_EQ(read_peft_directory<float>(folder.path(), {.strict = false}).warnings.size(), 1U);
}

TEST(PeftDirectory, ModulesThatAreNoTargetsAreKeptWithAWarning) {
  const TemporaryFolder folder;
  HandmadeAdapter(json{{"target_modules", {"v"}}})
      .add("base_model.model.q.lora_A.weight", {2, 7})
      .add("base_model.model.q.lora_B.weight", {5, 2})
      .write(folder.path());
  const auto adapter = read_peft_directory<float>(folder.path());
  EXPECT_EQ(adapter.warnings, Names{"module \"q\" is in the file, but not among target_modules"});
  EXPECT_EQ(adapter.weights.modules.size(), 1U);
}

TEST(PeftDirectory, APatternThisLibraryDoesNotKnowIsAWarning) {
  const TemporaryFolder folder;
  HandmadeAdapter(json{{"target_modules", "(?i)q"}})
      .add("base_model.model.q.lora_A.weight", {2, 7})
      .add("base_model.model.q.lora_B.weight", {5, 2})
      .write(folder.path());
  const auto adapter = read_peft_directory<float>(folder.path());
  EXPECT_EQ(adapter.warnings, Names{"target_modules or exclude_modules: a pattern that is no regular expression here"});
}

TEST(PeftDirectory, GitLfsPointersAreCalledThat) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    const TemporaryFolder folder;
    small().write(folder.path());
    testing::write_file(folder / name, pointer);
    const std::string text = error_of<FormatError>(folder.path());
    EXPECT_NE(text.find(name), std::string::npos) << text;
    EXPECT_NE(text.find("a Git LFS pointer"), std::string::npos) << text;
  }
}

TEST(PeftDirectory, MissingFilesAreNamed) {
  const TemporaryFolder folder;
  EXPECT_NE(error_of<IoError>(folder.path()).find("adapter_config.json"), std::string::npos);
  small().write(folder.path());
  fs::remove(folder / "adapter_model.safetensors");
  EXPECT_NE(error_of<IoError>(folder.path()).find("adapter_model.safetensors"), std::string::npos);
  testing::write_file(folder / "adapter_model.bin", "pickle");
  EXPECT_NE(error_of<IoError>(folder.path()).find("adapter_model.bin alone"), std::string::npos);
}

TEST(PeftDirectory, DamagedTensorsAreRefused) {
  const TemporaryFolder folder;
  small().write(folder.path());
  const fs::path path = folder / "adapter_model.safetensors";
  const std::string good = testing::text_of(path);
  for (std::size_t length = 0; length < good.size(); ++length) {
    testing::write_file(path, good.substr(0, length));
    EXPECT_NE(error_of<SafetensorsError>(folder.path()), "no such error") << length;
  }
}

// Any one byte of the configuration changed: read, or refused with an error of this library.
TEST(PeftDirectory, DamagedConfigurationsDoNoWorseThanThrow) {
  const TemporaryFolder folder;
  fs::copy(testing::golden_adapter("adapter_pattern"), folder.path(), fs::copy_options::recursive);
  const std::string good = peft_config_text(read_peft_directory<float>(folder.path()).config);
  for (std::size_t i = 0; i < good.size(); ++i) {
    for (const char replacement : {'"', '9', '\xFF'}) {
      std::string bad = good;
      bad[i] = replacement;
      testing::write_file(folder / "adapter_config.json", bad);
      try {
        static_cast<void>(read_peft_directory<float>(folder.path(), {.strict = i % 2 == 0}));
      } catch (const Error&) {
        continue;
      }
    }
  }
}

}  // namespace
}  // namespace lora::peft_directory_test
