// SPDX-License-Identifier: MIT
#include "lora/adapter/config.hpp"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <string>

namespace {

using lora::BiasMode;
using lora::check_config;
using lora::ConfigError;
using lora::InitLoraWeights;
using lora::LoraConfig;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// PEFT's LoraConfig() has r = 8, lora_alpha = 8, lora_dropout = 0, bias = "none", init_lora_weights = True.
TEST(LoraConfig, DefaultsAreThoseOfPeft) {
  const LoraConfig config;
  EXPECT_EQ(config.rank, 8);
  EXPECT_EQ(config.alpha, 8);
  EXPECT_EQ(config.dropout, 0);
  EXPECT_FALSE(config.fan_in_fan_out);
  EXPECT_FALSE(config.use_rslora);
  EXPECT_FALSE(config.use_dora);
  EXPECT_EQ(config.group_size(), 0);
  EXPECT_EQ(config.qalora_group_size, 16);
  EXPECT_FALSE(config.lora_bias);
  EXPECT_EQ(config.bias, BiasMode::none);
  EXPECT_EQ(config.init_lora_weights, InitLoraWeights::kaiming_uniform);
}

TEST(LoraConfig, MergesInEvaluationUnlessToldOtherwise) { EXPECT_TRUE(LoraConfig{}.merge_weights); }

TEST(Scaling, IsAlphaOverRank) {
  EXPECT_EQ((LoraConfig{.rank = 8, .alpha = 16}).scaling(), 2.0);
  EXPECT_EQ((LoraConfig{.rank = 16, .alpha = 8}).scaling(), 0.5);
  EXPECT_EQ((LoraConfig{.rank = 3, .alpha = 1}).scaling(), 1.0 / 3.0);
  EXPECT_EQ((LoraConfig{.rank = 4, .alpha = -2}).scaling(), -0.5);
  EXPECT_EQ((LoraConfig{.rank = 4, .alpha = 0}).scaling(), 0.0);
}

TEST(Scaling, IsAlphaOverTheRootOfRankWhenStabilised) {
  EXPECT_EQ((LoraConfig{.rank = 16, .alpha = 8, .use_rslora = true}).scaling(), 2.0);
  EXPECT_EQ((LoraConfig{.rank = 2, .alpha = 3, .use_rslora = true}).scaling(), 3.0 / std::sqrt(2.0));
  EXPECT_EQ((LoraConfig{.rank = 1, .alpha = 3, .use_rslora = true}).scaling(), 3.0);
}

TEST(Scaling, IsZeroAtRankZero) {
  EXPECT_EQ((LoraConfig{.rank = 0, .alpha = 16}).scaling(), 0.0);
  EXPECT_EQ((LoraConfig{.rank = 0, .alpha = 16, .use_rslora = true}).scaling(), 0.0);
}

TEST(TrainsBias, FollowsModeAndRank) {
  struct Row {
    BiasMode mode;
    lora::Index rank;
    bool trains;
  };
  for (const Row& row :
       {Row{BiasMode::none, 0, false}, Row{BiasMode::none, 8, false}, Row{BiasMode::all, 0, true},
        Row{BiasMode::all, 8, true}, Row{BiasMode::lora_only, 0, false}, Row{BiasMode::lora_only, 8, true}}) {
    EXPECT_EQ((LoraConfig{.rank = row.rank, .bias = row.mode}).trains_bias(), row.trains)
        << "mode " << static_cast<int>(row.mode) << ", rank " << row.rank;
  }
}

TEST(CheckConfig, AcceptsTheWholeRange) {
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{}));
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{.rank = 0}));
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{.rank = 1, .lora_bias = true}));
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{.alpha = 0}));
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{.alpha = -16}));
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{.dropout = 0.0}));
  EXPECT_NO_THROW(check_config("LoraLinear", LoraConfig{.dropout = 1 - 0x1p-32}));
}

std::string refusal(const LoraConfig& config) {
  try {
    check_config("LoraLinear", config);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(CheckConfig, MessagesNameOperationOptionExpectedAndGot) {
  EXPECT_EQ(refusal({.rank = -1}), "LoraLinear: rank: expected 0 or more, got -1");
  EXPECT_EQ(refusal({.alpha = infinity}), "LoraLinear: alpha: expected a finite number, got inf");
  EXPECT_EQ(refusal({.alpha = -infinity}), "LoraLinear: alpha: expected a finite number, got -inf");
  EXPECT_EQ(refusal({.dropout = infinity}), "LoraLinear: dropout: expected a probability in [0, 1), got inf");
  EXPECT_EQ(refusal({.rank = 0, .lora_bias = true}),
            "LoraLinear: lora_bias: expected rank 1 or more with it, got rank 0");
}

// PEFT raises a ValueError for each: LoraConfig.__post_init__, orthogonal_init.
TEST(CheckConfig, RefusesOptionsThatExcludeEachOther) {
  EXPECT_EQ(refusal({.use_dora = true, .lora_bias = true}),
            "LoraLinear: lora_bias: expected false with use_dora, got true");
  EXPECT_EQ(refusal({.rank = 0, .use_dora = true}),
            "LoraLinear: use_dora: expected rank 1 or more with it, got rank 0");
  EXPECT_EQ(refusal({.rank = 3, .init_lora_weights = InitLoraWeights::orthogonal}),
            "LoraLinear: rank: expected an even number with orthogonal initialisation, got 3");
  for (const auto init : {InitLoraWeights::orthogonal, InitLoraWeights::pissa, InitLoraWeights::olora}) {
    EXPECT_EQ(refusal({.lora_bias = true, .init_lora_weights = init}),
              "LoraLinear: lora_bias: expected false with orthogonal, pissa and olora, got true");
    EXPECT_EQ(refusal({.use_dora = true, .init_lora_weights = init}), "accepted");
    EXPECT_EQ(refusal({.rank = 0, .init_lora_weights = init}), "accepted");
  }
  EXPECT_EQ(refusal({.pissa_niter = -1}), "LoraLinear: pissa_niter: expected 0 or more, got -1");
}

TEST(TakesFromWeight, AreTheInitialisationsThatLeaveAResidual) {
  EXPECT_TRUE(lora::takes_from_weight(InitLoraWeights::pissa));
  EXPECT_TRUE(lora::takes_from_weight(InitLoraWeights::olora));
  for (const auto init : {InitLoraWeights::kaiming_uniform, InitLoraWeights::gaussian, InitLoraWeights::random,
                          InitLoraWeights::orthogonal}) {
    EXPECT_FALSE(lora::takes_from_weight(init));
  }
}

TEST(CheckConfig, NotANumberIsRefusedAndNamed) {
  for (const double not_a_number : {nan, -nan}) {
    EXPECT_NE(refusal({.alpha = not_a_number}).find("alpha: expected a finite number, got "), std::string::npos);
    EXPECT_NE(refusal({.alpha = not_a_number}).find("nan"), std::string::npos);
    EXPECT_NE(refusal({.dropout = not_a_number}).find("dropout: expected a probability in [0, 1), got "),
              std::string::npos);
    EXPECT_NE(refusal({.dropout = not_a_number}).find("nan"), std::string::npos);
  }
}

TEST(CheckConfig, DropoutMustBeBelowOneAndNotNegative) {
  for (const double dropout : {-0.25, 1.0, 1.5, -infinity, -std::numeric_limits<double>::denorm_min()}) {
    EXPECT_EQ(refusal({.dropout = dropout}).rfind("LoraLinear: dropout: expected a probability in [0, 1), got ", 0), 0U)
        << dropout;
  }
}

// Near 1 the nearest multiple of 2^-32 is 1: every element would be dropped, and the factor would be infinite.
TEST(CheckConfig, ADropoutThatWouldKeepNothingIsRefused) {
  EXPECT_EQ(refusal({.dropout = 1 - 0x1p-32}), "accepted");
  EXPECT_EQ(refusal({.dropout = 1 - 0x1.8p-33}), "accepted");
  for (const double dropout : {1 - 0x1p-33, 1 - 0x1p-40, std::nextafter(1.0, 0.0)}) {
    EXPECT_EQ(refusal({.dropout = dropout})
                  .rfind("LoraLinear: dropout: expected a probability in [0, 1) that keeps at least one element in "
                         "2^32, got 1 - ",
                         0),
              0U)
        << dropout;
  }
}

// "expected ... in [0, 1), got 1.000000" helps nobody who passed 1.0000001.
TEST(CheckConfig, TheValueInTheMessageIsTheValueThatCame) {
  for (const double dropout : {-1e-9, 1.0000001, 1e30}) {
    const std::string text = refusal({.dropout = dropout});
    EXPECT_EQ(std::stod(text.substr(text.rfind(' ') + 1)), dropout) << text;
  }
}

TEST(CheckConfig, NamesTheFirstOptionThatIsOutOfRange) {
  const std::string both = refusal({.rank = -3, .alpha = nan, .dropout = 2});
  EXPECT_NE(both.find("rank"), std::string::npos);
  EXPECT_EQ(both.find("dropout"), std::string::npos);
}

}  // namespace
