// SPDX-License-Identifier: MIT
// An adapter with QALoRA from a model into PEFT's files and back, and what does not take it.
#include <filesystem>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "io/files.hpp"
#include "io/peft_files.hpp"
#include "lora/io/gguf_adapter_writer.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "lora/model/combine.hpp"
#include "lora/model/described_config.hpp"
#include "lora/model/lora_model.hpp"
#include "support/bits.hpp"
#include "support/message_of.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace peft_qalora_test {
namespace {

using testing::message_of;
using testing::random_matrix;
using testing::same_bits;
using testing::TemporaryFolder;

// A plain layer of 12 inputs and a stacked one of 8.
struct Network {
  LoraLinear<float> up{random_matrix<float>(6, 12, 1), LoraConfig{.rank = 0}, 0};
  MergedLinear<float> qkv{random_matrix<float>(9, 8, 2), {true, false, true}, LoraConfig{.rank = 0}, 0};
  LoraModel<float> model;

  Network() {
    model.add("up", up);
    model.add("qkv", qkv);
  }
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;
};

LoraModelConfig config_of(Index group) {
  LoraModelConfig config;
  config.target_modules = ModuleSelector::listed({"up", "qkv"});
  config.lora = {.rank = 2, .alpha = 3, .use_qalora = true, .qalora_group_size = group};
  return config;
}

TEST(PeftQalora, AModelsAdapterComesBackFromAFolder) {
  const LoraModelConfig config = config_of(4);
  Network one;
  one.model.inject(config, 5);
  one.up.set_factors(random_matrix<float>(2, 3, 6), random_matrix<float>(6, 2, 7));
  one.qkv.set_factors(random_matrix<float>(4, 2, 8), random_matrix<float>(6, 2, 9));
  const TemporaryFolder folder;
  // The stacked layer has the rows of A of both its projections in a file.
  const auto weights = one.model.weights();
  write_peft_directory(folder.path(), described_config(config, weights), weights);

  const auto json = testing::json_of(folder / "adapter_config.json");
  EXPECT_EQ(json.at("use_qalora"), true);
  EXPECT_EQ(json.at("qalora_group_size"), 4);
  const auto header = testing::raw_header(folder / "adapter_model.safetensors");
  EXPECT_EQ(header.at("base_model.model.up.lora_A.weight").at("shape"), nlohmann::json({2, 3}));
  EXPECT_EQ(header.at("base_model.model.up.lora_B.weight").at("shape"), nlohmann::json({6, 2}));

  const auto read = read_peft_directory<float>(folder.path());
  EXPECT_TRUE(read.warnings.empty());
  EXPECT_EQ(read.config.lora.group_size(), 4);
  EXPECT_EQ(read.weights.modules.at("up").qalora_group_size, 4);
  Network other;
  other.model.load(read.config, read.weights);
  const auto x = random_matrix<float>(3, 12, 10);
  const auto stacked_x = random_matrix<float>(3, 8, 11);
  EXPECT_TRUE(same_bits(other.up.infer(x), one.up.infer(x)));
  EXPECT_TRUE(same_bits(other.qkv.infer(stacked_x), one.qkv.infer(stacked_x)));
  EXPECT_FALSE(same_bits(other.up.infer(x), Network().up.infer(x)));
}

TEST(PeftQalora, AConfigurationWithoutItHasNoKeyOfIt) {
  LoraModelConfig config = config_of(4);
  config.lora.use_qalora = false;
  EXPECT_EQ(peft_config_text(config).find("qalora"), std::string::npos);
}

TEST(PeftQalora, GroupsMustDivideTheInputsOfEveryModule) {
  Network network;
  EXPECT_NE(message_of<ConfigError>([&] {
              network.model.inject(config_of(3), 5);
            }).find("qalora_group_size: expected a divisor of in_features, 8, got 3"),
            std::string::npos);
  EXPECT_FALSE(network.up.has_adapter("default"));
}

// PEFT ignores use_qalora over weights other than GPTQ's: its A sees all inputs then.
TEST(PeftQalora, AnAdapterTrainedWithoutGroupsIsRefusedByAModel) {
  AdapterWeights<float> weights;
  for (const auto& [name, out, in] : {std::tuple("up", 6, 12), std::tuple("qkv", 9, 8)}) {
    ModuleWeights<float>& module = weights.modules[name];
    module.A = Matrix<float>::Zero(2, in);
    module.B = Matrix<float>::Zero(out, 2);
    module.scaling = 1.5;
    module.qalora_group_size = 4;
  }
  Network network;
  EXPECT_NE(
      message_of<ConfigError>([&] { network.model.load(config_of(4), weights); }).find("A is 2 x 12, expected 2 x 3"),
      std::string::npos);
}

TEST(PeftQalora, FilesSayTheGroupThatTheWeightsHave) {
  Network network;
  network.model.inject(config_of(4), 5);
  const auto weights = network.model.weights();
  LoraModelConfig without = config_of(4);
  without.lora.use_qalora = false;
  const TemporaryFolder folder;
  for (const LoraModelConfig& wrong : {config_of(2), without}) {
    EXPECT_NE(message_of<ConfigError>([&] {
                write_peft_directory(folder.path(), wrong, weights);
              }).find("has qalora_group_size 4, the configuration gives "),
              std::string::npos);
  }
  EXPECT_EQ(described_config(without, weights).lora.group_size(), 4);
}

TEST(PeftQalora, CombiningAndGgufRefuseItByName) {
  Network network;
  network.model.inject(config_of(4), 5);
  const auto weights = network.model.weights();
  const std::vector<WeightedAdapter<float>> adapters{{&weights, 1}};
  EXPECT_NE(
      message_of<ConfigError>([&] { static_cast<void>(combine_adapters<float>(adapters, {})); }).find("got QALoRA"),
      std::string::npos);
  EXPECT_NE(message_of<ConfigError>([&] {
              static_cast<void>(gguf_adapter_bytes({weights, {}, "llama"}));
            }).find("got QALoRA"),
            std::string::npos);
}

}  // namespace
}  // namespace peft_qalora_test
}  // namespace lora
