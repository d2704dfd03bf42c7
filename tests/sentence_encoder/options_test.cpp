// SPDX-License-Identifier: MIT
// What the command line makes of the methods that are compared.
#include "sentence_encoder/options.hpp"

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace options_test {
namespace {

using namespace examples::sentence_encoder;  // NOLINT: the namespace under test
using Formats = std::vector<WeightFormat>;

Options parsed(const std::string& line) {
  Options options;
  CLI::App app;
  add_options(app, options);
  app.parse(line);
  return options;
}

std::vector<std::string> method_names(const Options& options) {
  std::vector<std::string> names;
  for (const auto& method : scale_for(options).methods) names.push_back(method.name());
  return names;
}

TEST(Weights, AreNamedOnceOrSeveralTimesInAnyCase) {
  using enum WeightFormat;
  EXPECT_EQ(parsed("").weights, Formats{});
  EXPECT_EQ(parsed("--weights nf4").weights, Formats{nf4});
  EXPECT_EQ(parsed("--weights bf16,Q8_0 --weights NF4 --quick").weights, (Formats{bf16, q8_0, nf4}));
  EXPECT_THROW(parsed("--weights q9"), CLI::ValidationError);
  EXPECT_THROW(parsed("--weights"), CLI::ParseError);
}

TEST(Weights, AddALineForEachFormatBeforeFullFineTuning) {
  EXPECT_EQ(method_names(parsed("--quick")), (std::vector<std::string>{"LoRA, r = 8", "full fine-tuning"}));
  EXPECT_EQ(method_names(parsed("--quick --weights nf4,float,bf16,nf4")),
            (std::vector<std::string>{"LoRA, r = 8", "LoRA, r = 8, nf4", "LoRA, r = 8, bf16", "full fine-tuning"}));
}

TEST(Weights, HaveLoraOverFloatToCompareWithAtEveryScale) {
  for (const char* scale : {"", "--quick", "--full"}) {
    const auto plain = scale_for(parsed(scale)).methods.size();
    EXPECT_EQ(scale_for(parsed(std::string(scale) + " --weights float")).methods.size(), plain) << scale;
    EXPECT_EQ(scale_for(parsed(std::string(scale) + " --weights nf4")).methods.size(), plain + 1) << scale;
  }
}

}  // namespace
}  // namespace options_test
