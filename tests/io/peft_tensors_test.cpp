// SPDX-License-Identifier: MIT
// Names and shapes of an adapter's tensors: each is taken apart as it was put together, and what does not fit is told.
#include "lora/io/peft_tensors.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace lora::peft_tensors_test {
namespace {

using Names = std::vector<std::string>;

PeftInventory inventory(const LoraModelConfig& config, const std::vector<PeftTensor>& tensors) {
  return take_peft_inventory(config, ModuleMatcher(config), tensors);
}

PeftTensor tensor(const std::string& name, std::vector<Index> shape, Dtype dtype = Dtype::F32) {
  return {"base_model.model." + name, dtype, std::move(shape)};
}

LoraModelConfig rank_two() { return {.lora = {.rank = 2}}; }

Names problems(const LoraModelConfig& config, const std::vector<PeftTensor>& tensors) {
  return inventory(config, tensors).problems;
}

TEST(PeftName, PartsAreWrittenAsPeftWritesThem) {
  EXPECT_EQ(peft_name(PeftPart::lora_A, "h.0.q"), "base_model.model.h.0.q.lora_A.weight");
  EXPECT_EQ(peft_name(PeftPart::lora_B, "h.0.q"), "base_model.model.h.0.q.lora_B.weight");
  EXPECT_EQ(peft_name(PeftPart::lora_bias, "h.0.q"), "base_model.model.h.0.q.lora_B.bias");
  EXPECT_EQ(peft_name(PeftPart::embedding_A, "wte"), "base_model.model.wte.lora_embedding_A");
  EXPECT_EQ(peft_name(PeftPart::embedding_B, "wte"), "base_model.model.wte.lora_embedding_B");
  EXPECT_EQ(peft_name(PeftPart::magnitude, "h.0.q"), "base_model.model.h.0.q.lora_magnitude_vector");
  EXPECT_EQ(peft_name(PeftPart::saved, "head.weight"), "base_model.model.head.weight");
}

TEST(PeftName, WhatIsWrittenIsTakenApart) {
  for (const PeftPart part : {PeftPart::lora_A, PeftPart::lora_B, PeftPart::lora_bias, PeftPart::embedding_A,
                              PeftPart::embedding_B, PeftPart::magnitude, PeftPart::saved}) {
    const std::string name = peft_name(part, "a.0.b");
    const auto parsed = parse_peft_name(name);
    ASSERT_TRUE(parsed.has_value()) << name;
    EXPECT_EQ(parsed->part, part) << name;
    EXPECT_EQ(parsed->name, "a.0.b") << name;
  }
}

TEST(PeftName, TheMagnitudeOfOtherVersionsIsKnown) {
  const auto parsed = parse_peft_name("base_model.model.q.lora_magnitude_vector.weight");
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->part, PeftPart::magnitude);
  EXPECT_EQ(parsed->name, "q");
}

TEST(PeftName, OthersAreNone) {
  for (const char* name :
       {"", "q.lora_A.weight", "base_model.model.", "base_model.model.lora_A.weight",
        "base_model.model.q.lora_C.weight", "base_model.model.q.lora_A.default.weight",
        "base_model.model.q.lora_embedding_A.default", "base_model.model.q.lora_A", "lora_unet_down.alpha"}) {
    EXPECT_FALSE(parse_peft_name(name).has_value()) << name;
  }
}

TEST(PeftInventory, EachKindIsKnownByItsNamesAndDimensions) {
  const auto found =
      inventory(rank_two(), {tensor("fc.lora_A.weight", {2, 7}), tensor("fc.lora_B.weight", {5, 2}),
                             tensor("wte.lora_embedding_A", {2, 19}), tensor("wte.lora_embedding_B", {12, 2}),
                             tensor("c1.lora_A.weight", {2, 3, 4}), tensor("c1.lora_B.weight", {5, 2, 1}),
                             tensor("c2.lora_A.weight", {2, 3, 4, 5}), tensor("c2.lora_B.weight", {5, 2, 1, 1}),
                             tensor("c3.lora_A.weight", {2, 3, 4, 5, 6}), tensor("c3.lora_B.weight", {5, 2, 1, 1, 1})});
  EXPECT_EQ(found.problems, Names());
  ASSERT_EQ(found.modules.size(), 5U);
  EXPECT_EQ(found.modules.at("fc").kind, ModuleKind::linear);
  EXPECT_EQ(found.modules.at("wte").kind, ModuleKind::embedding);
  EXPECT_EQ(found.modules.at("c1").kind, ModuleKind::conv1d);
  EXPECT_EQ(found.modules.at("c2").kind, ModuleKind::conv2d);
  EXPECT_EQ(found.modules.at("c3").kind, ModuleKind::conv3d);
  EXPECT_EQ(found.modules.at("c2").A, 6U);
  EXPECT_EQ(found.modules.at("c2").B, 7U);
}

TEST(PeftInventory, MagnitudesOfConvolutionsHaveTheirDimensions) {
  LoraModelConfig config = rank_two();
  config.lora.use_dora = true;
  const auto with_magnitude = [&](std::vector<Index> shape) {
    return problems(config, {tensor("c.lora_A.weight", {2, 3, 4, 5}), tensor("c.lora_B.weight", {5, 2, 1, 1}),
                             tensor("c.lora_magnitude_vector", std::move(shape))});
  };
  EXPECT_EQ(with_magnitude({1, 5, 1, 1}), Names());
  EXPECT_EQ(with_magnitude({5}), Names{"\"base_model.model.c.lora_magnitude_vector\" [5] expected [1, 5, 1, 1] at rank "
                                       "2, got [5]"});
}

TEST(PeftInventory, RanksComeFromThePatterns) {
  LoraModelConfig config = rank_two();
  config.rank_pattern = {{"v", 3}};
  EXPECT_EQ(problems(config, {tensor("q.lora_A.weight", {2, 7}), tensor("q.lora_B.weight", {5, 2}),
                              tensor("v.lora_A.weight", {3, 7}), tensor("v.lora_B.weight", {5, 3})}),
            Names());
  EXPECT_EQ(problems(config, {tensor("v.lora_A.weight", {2, 7}), tensor("v.lora_B.weight", {5, 2})}),
            (Names{"\"base_model.model.v.lora_A.weight\" [2, 7] expected [3, n] at rank 3, got [2, 7]",
                   "\"base_model.model.v.lora_B.weight\" [5, 2] expected [n, 3] at rank 3, got [5, 2]"}));
}

TEST(PeftInventory, APartWithoutItsPartnerIsTold) {
  EXPECT_EQ(problems(rank_two(), {tensor("q.lora_A.weight", {2, 7})}),
            Names{"\"base_model.model.q.lora_B.weight\" is missing from module \"q\", which has "
                  "\"base_model.model.q.lora_A.weight\""});
  EXPECT_EQ(problems(rank_two(), {tensor("w.lora_embedding_B", {7, 2})}),
            Names{"\"base_model.model.w.lora_embedding_A\" is missing from module \"w\", which has "
                  "\"base_model.model.w.lora_embedding_B\""});
  EXPECT_EQ(problems(rank_two(), {tensor("w.lora_embedding_A", {2, 7}), tensor("w.lora_B.weight", {5, 2})}),
            (Names{"\"base_model.model.w.lora_embedding_B\" is missing from module \"w\", which has "
                   "\"base_model.model.w.lora_B.weight\"",
                   "\"base_model.model.w.lora_B.weight\" [5, 2] belongs to no embedding"}));
}

TEST(PeftInventory, PartsOfOptionsMustBeThereWhenOnAndOnlyThen) {
  const std::vector<PeftTensor> plain{tensor("q.lora_A.weight", {2, 7}), tensor("q.lora_B.weight", {5, 2})};
  std::vector<PeftTensor> biased = plain;
  biased.push_back(tensor("q.lora_B.bias", {5}));
  std::vector<PeftTensor> dora = plain;
  dora.push_back(tensor("q.lora_magnitude_vector", {5}));
  LoraModelConfig with_bias = rank_two();
  with_bias.lora.lora_bias = true;
  LoraModelConfig with_dora = rank_two();
  with_dora.lora.use_dora = true;

  EXPECT_EQ(problems(with_bias, biased), Names());
  EXPECT_EQ(problems(with_dora, dora), Names());
  EXPECT_EQ(problems(with_bias, plain), Names{"\"base_model.model.q.lora_B.bias\" is missing from module \"q\", which "
                                              "has \"base_model.model.q.lora_A.weight\""});
  EXPECT_EQ(problems(with_dora, plain), Names{"\"base_model.model.q.lora_magnitude_vector\" is missing from module "
                                              "\"q\", which has \"base_model.model.q.lora_A.weight\""});
  EXPECT_EQ(problems(rank_two(), biased), Names{"\"base_model.model.q.lora_B.bias\" [5] needs lora_bias = true"});
  EXPECT_EQ(problems(rank_two(), dora),
            Names{"\"base_model.model.q.lora_magnitude_vector\" [5] needs use_dora = true"});
}

TEST(PeftInventory, ShapesOfEveryPartAreChecked) {
  LoraModelConfig config = rank_two();
  const auto shapes = [&](std::vector<Index> A, std::vector<Index> B) {
    return problems(config, {tensor("q.lora_A.weight", std::move(A)), tensor("q.lora_B.weight", std::move(B))});
  };
  EXPECT_EQ(shapes({2, 7}, {5, 2}), Names());
  EXPECT_EQ(shapes({2, 7}, {5, 2, 1}).size(), 1U);
  EXPECT_EQ(shapes({2}, {5, 2}).size(), 1U);
  EXPECT_EQ(shapes({2, 7, 1, 1, 1, 1}, {5, 2, 1, 1, 1, 1}).size(), 1U);
  EXPECT_EQ(shapes({2, 0}, {5, 2}).size(), 1U);
  EXPECT_EQ(shapes({2, 7}, {0, 2}).size(), 1U);
  EXPECT_EQ(shapes({2, 7, 3, 3}, {5, 2, 3, 3}).size(), 1U);
  EXPECT_EQ(shapes({2, 8, 3, 3}, {4, 1, 1, 1}), Names()) << "a convolution with two groups";
  EXPECT_EQ(shapes({2, 7, 3, 3}, {4, 1, 1, 1}).size(), 1U) << "channels that two groups do not divide";
  EXPECT_EQ(shapes({2, 8, 3, 3}, {5, 1, 1, 1}).size(), 1U) << "likewise";
  EXPECT_EQ(shapes({2, 8}, {4, 1}).size(), 1U) << "a linear layer has no groups";
  EXPECT_EQ(shapes({4, 7}, {5, 4}).size(), 2U);
  config.lora.lora_bias = true;
  EXPECT_EQ(problems(config, {tensor("q.lora_A.weight", {2, 7}), tensor("q.lora_B.weight", {5, 2}),
                              tensor("q.lora_B.bias", {4})}),
            Names{"\"base_model.model.q.lora_B.bias\" [4] expected [5] at rank 2, got [4]"});
}

TEST(PeftInventory, TypesThatAreNoRealNumbersAreTold) {
  EXPECT_EQ(problems(rank_two(), {tensor("q.lora_A.weight", {2, 7}), tensor("q.lora_B.weight", {5, 2}),
                                  tensor("v.lora_A.weight", {2, 7}, Dtype::I8)}),
            Names{"\"base_model.model.v.lora_A.weight\" [2, 7] expected F64, F32, F16 or BF16, got I8"});
}

TEST(PeftInventory, NamesThatAreNotPeftsAreTold) {
  EXPECT_EQ(problems(rank_two(), {{"unet.q.lora_down.weight", Dtype::F32, {2, 7}}}),
            Names{"\"unet.q.lora_down.weight\" [2, 7] is no tensor of PEFT's LoRA "
                  "(base_model.model.<module>.lora_A.weight, ...)"});
}

TEST(PeftInventory, OneThingUnderTwoNamesIsTold) {
  LoraModelConfig config = rank_two();
  config.lora.bias = BiasMode::all;
  EXPECT_EQ(problems(config, {tensor("q.base_layer.bias", {5}), tensor("q.bias", {5})}),
            Names{"\"base_model.model.q.bias\" [5] is there under another name too: "
                  "\"base_model.model.q.base_layer.bias\""});
  config.lora.use_dora = true;
  const auto twice =
      problems(config, {tensor("q.lora_A.weight", {2, 7}), tensor("q.lora_B.weight", {5, 2}),
                        tensor("q.lora_magnitude_vector", {5}), tensor("q.lora_magnitude_vector.weight", {5})});
  EXPECT_EQ(twice.size(), 1U);
}

TEST(PeftInventory, BiasesAreSavedAsTheConfigurationTrainsThem) {
  const std::vector<PeftTensor> tensors{tensor("q.lora_A.weight", {2, 7}), tensor("q.lora_B.weight", {5, 2}),
                                        tensor("q.base_layer.bias", {5}), tensor("norm.bias", {5})};
  LoraModelConfig config = rank_two();
  config.lora.bias = BiasMode::all;
  const PeftInventory all = inventory(config, tensors);
  EXPECT_EQ(all.problems, Names());
  EXPECT_EQ(all.saved.at("q.bias"), 2U);
  EXPECT_EQ(all.saved.at("norm.bias"), 3U);
  config.lora.bias = BiasMode::lora_only;
  EXPECT_EQ(problems(config, tensors),
            Names{"\"base_model.model.norm.bias\" [5] belongs to no module to save and is no bias that trains with "
                  "bias = lora_only"});
  config.lora.bias = BiasMode::none;
  EXPECT_EQ(problems(config, tensors).size(), 2U);
}

TEST(PeftInventory, ModulesToSaveBringWhatStandsInThem) {
  LoraModelConfig config = rank_two();
  config.modules_to_save = {"classifier"};
  const PeftInventory found =
      inventory(config, {tensor("classifier.dense.weight", {5, 5}), tensor("other.weight", {5, 5}),
                         tensor("lm_head.weight", {7, 5}), tensor("model.embed_tokens.weight", {7, 5})});
  EXPECT_EQ(found.problems,
            Names{"\"base_model.model.other.weight\" [5, 5] belongs to no module to save and is no bias "
                  "that trains with bias = none"});
  EXPECT_TRUE(found.saved.contains("classifier.dense.weight"));
  EXPECT_TRUE(found.saved.contains("other.weight"));
}

// With bias = "all", PEFT's state_dict holds a saved module's biases three times.
TEST(PeftInventory, TheTrainedCopyOfASavedBiasCounts) {
  LoraModelConfig config = rank_two();
  config.lora.bias = BiasMode::all;
  config.modules_to_save = {"head"};
  const PeftInventory found =
      inventory(config, {tensor("head.original_module.bias", {5}), tensor("head.modules_to_save.bias", {5}),
                         tensor("head.bias", {5}), tensor("lm_head.modules_to_save.bias", {6})});
  EXPECT_EQ(found.problems, Names());
  EXPECT_EQ(found.saved, (std::map<std::string, std::size_t>{{"head.bias", 2}, {"lm_head.bias", 3}}));
}

TEST(PeftShapes, AreThoseOfEachKind) {
  ModuleWeights<float> module;
  module.A.resize(2, 3 * 4 * 5);
  module.B.resize(6, 2);
  module.magnitude.resize(6);
  PeftShapes shapes = peft_shapes(module);
  EXPECT_EQ(shapes.A, (std::vector<Index>{2, 60}));
  EXPECT_EQ(shapes.B, (std::vector<Index>{6, 2}));
  EXPECT_EQ(shapes.magnitude, std::vector<Index>{6});
  module.kind = ModuleKind::conv2d;
  module.kernel_size = {4, 5};
  shapes = peft_shapes(module);
  EXPECT_EQ(shapes.A, (std::vector<Index>{2, 3, 4, 5}));
  EXPECT_EQ(shapes.B, (std::vector<Index>{6, 2, 1, 1}));
  EXPECT_EQ(shapes.magnitude, (std::vector<Index>{1, 6, 1, 1}));
}

}  // namespace
}  // namespace lora::peft_tensors_test
