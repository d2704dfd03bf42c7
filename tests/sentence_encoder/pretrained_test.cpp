// SPDX-License-Identifier: MIT
// The pretrained encoder answers as its own package does in Node, whatever the batches, the kind of layers and merging.
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/core/random.hpp"
#include "sentence_encoder/encoder.hpp"
#include "sentence_encoder/encoder_reader.hpp"
#include "sentence_encoder/reference.hpp"
#include "sentence_encoder/tokenizer.hpp"
#include "support/thread_executor.hpp"

namespace examples::sentence_encoder::pretrained_test {
namespace {

using testing::Reference;
using Frozen = AdaptedLayers<float>;

// Ten times what float sums of up to 1536 terms in another order were seen to leave (1e-6), and under a thousandth of
// an embedding's typical number.
constexpr float agreement = 1e-5F;

class Pretrained : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_model()) GTEST_SKIP() << testing::no_model();
  }
  static const EncoderWeights<float>& weights() {
    static const EncoderWeights<float> read = read_encoder_weights(testing::model_folder());
    return read;
  }
  static const Reference& reference() {
    static const Reference loaded = Reference::load();
    return loaded;
  }
};

float greatest(const lora::Matrix<float>& difference) { return difference.cwiseAbs().maxCoeff(); }

TEST_F(Pretrained, ReferenceHoldsAtLeastTwoHundredTexts) {
  EXPECT_GE(reference().texts.size(), 200U);
  EXPECT_EQ(reference().embeddings.rows(), static_cast<Index>(reference().texts.size()));
  EXPECT_EQ(reference().embeddings.cols(), 512);
}

TEST_F(Pretrained, TokenizerGivesTheIdsOfThePackage) {
  const Tokenizer tokenizer(read_vocabulary(testing::model_folder() / "vocab.json"));
  EXPECT_EQ(tokenizer.vocabulary_size(), 8000);
  for (std::size_t i = 0; i < reference().texts.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(reference().texts[i]), reference().ids[i]) << reference().texts[i];
  }
}

TEST_F(Pretrained, EmbeddingsAreThoseOfThePackage) {
  const SentenceEncoder<Frozen> encoder(weights());
  const lora::Matrix<float> embeddings = encoder.embed(reference().ids);
  const float difference = greatest(embeddings - reference().embeddings);
  RecordProperty("greatest_difference", std::to_string(difference));
  EXPECT_LE(difference, agreement);
}

TEST_F(Pretrained, TrainedLayersStartAsTheSameModel) {
  SentenceEncoder<TrainedLayers<float>> encoder(weights());
  EncoderPass<TrainedLayers<float>> pass;
  const PackedTexts all = pack(reference().ids);
  EXPECT_LE(greatest(encoder.forward(all, {}, pass) - reference().embeddings), agreement);
}

TEST_F(Pretrained, AnswersDoNotDependOnBatchesOrThreads) {
  const SentenceEncoder<Frozen> encoder(weights());
  const lora::Matrix<float> together = encoder.embed(reference().ids);
  lora::testing::ThreadExecutor threads(3);
  EncoderPass<Frozen> pass(threads);
  for (std::size_t i = 0; i < reference().ids.size(); i += 7) {
    const std::vector<TokenIds> one{reference().ids[i]};
    const lora::Matrix<float> alone = encoder.infer(pack(one), pass);
    EXPECT_LE(greatest(alone - together.row(static_cast<Index>(i))), 1e-6F) << reference().texts[i];
  }
}

TEST_F(Pretrained, MergedAdaptersAnswerAsUnmergedOnes) {
  SentenceEncoder<Frozen> encoder(weights());
  lora::LoraModel<float> model;
  encoder.add_to(model);
  const lora::LoraModelConfig config{
      .lora = {.rank = 4, .alpha = 8, .fan_in_fan_out = true},
      .target_modules = {"qkv", "attention.output", "residual", "ffn.hidden", "ffn.output", "projection"}};
  EXPECT_EQ(model.inject(config, 5).modules.size(), 10U);
  std::uint64_t stream = 0;
  for (auto& parameter : model.trainable_parameters()) {
    auto value = parameter.value();
    lora::fill_uniform(lora::view_of(value), 0.02, lora::RandomStream(11, stream++));
  }
  const lora::Matrix<float> unmerged = encoder.embed(reference().ids);
  EXPECT_GT(greatest(unmerged - reference().embeddings), 1e-2F);
  model.eval();
  EXPECT_TRUE(model.merged());
  EXPECT_LE(greatest(encoder.embed(reference().ids) - unmerged), agreement);
  model.unload();
  EXPECT_LE(greatest(encoder.embed(reference().ids) - reference().embeddings), agreement);
}

}  // namespace
}  // namespace examples::sentence_encoder::pretrained_test
