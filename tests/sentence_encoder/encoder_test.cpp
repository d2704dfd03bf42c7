// SPDX-License-Identifier: MIT
// What an encoder promises beside its numbers: names, packing, refusals, reentrance, dropout; and the command embed.
#include "sentence_encoder/encoder.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "lora/core/executor.hpp"
#include "sentence_encoder/embed_command.hpp"
#include "sentence_encoder/tokenizer.hpp"

namespace examples::sentence_encoder::encoder_test {
namespace {

using Layers = AdaptedLayers<float>;
using Encoder = SentenceEncoder<Layers>;
using Matrix = lora::Matrix<float>;

constexpr EncoderShape small{.vocabulary = 11, .embedding = 8, .width = 12, .hidden = 10, .layers = 2, .output = 6};

const std::vector<TokenIds> texts{{1, 2, 3}, {}, {4}, {5, 6, 7, 8, 9, 10, 0, 1}, {2, 2}};

Encoder small_encoder() { return Encoder(random_encoder_weights<float>(small, 3)); }

// Rows of length 1 agree to a few roundings, whatever the order of sums over some ten features.
constexpr float rounding = 2e-6F;

TEST(SentenceEncoder, EmbeddingsHaveLengthOne) {
  const Matrix embeddings = small_encoder().embed(texts);
  ASSERT_EQ(embeddings.rows(), 5);
  for (Index i = 0; i < embeddings.rows(); ++i) EXPECT_NEAR(embeddings.row(i).norm(), 1.0F, rounding);
}

TEST(SentenceEncoder, AnswersForATextDoNotDependOnItsBatch) {
  const Encoder encoder = small_encoder();
  const Matrix together = encoder.embed(texts);
  EncoderPass<Layers> pass;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Matrix alone = encoder.infer(pack(std::vector<TokenIds>{texts[i]}), pass);
    EXPECT_LE((alone - together.row(static_cast<Index>(i))).cwiseAbs().maxCoeff(), rounding) << i;
  }
}

TEST(SentenceEncoder, SeesTheOrderOfTokens) {
  const Matrix embeddings = small_encoder().embed(std::vector<TokenIds>{{1, 2, 3}, {3, 2, 1}});
  EXPECT_GT((embeddings.row(0) - embeddings.row(1)).cwiseAbs().maxCoeff(), 1e-3F);
}

TEST(SentenceEncoder, SeesTheFirst128TokensOnly) {
  const Encoder encoder = small_encoder();
  TokenIds longest(128, 3);
  TokenIds longer = longest;
  longer.push_back(5);
  EXPECT_EQ(encoder.embed(std::vector<TokenIds>{longest}), encoder.embed(std::vector<TokenIds>{longer}));
  longest.back() = 5;
  EXPECT_NE(encoder.embed(std::vector<TokenIds>{longest}), encoder.embed(std::vector<TokenIds>{longer}));
}

TEST(SentenceEncoder, TakesNoTextsAndTextsWithoutTokens) {
  const Encoder encoder = small_encoder();
  EXPECT_EQ(encoder.embed(std::vector<TokenIds>{}).rows(), 0);
  const Matrix empty = encoder.embed(std::vector<TokenIds>{{}, {}});
  EXPECT_EQ(empty.row(0), empty.row(1));
  EXPECT_NEAR(empty.row(0).norm(), 1.0F, rounding);
}

TEST(SentenceEncoder, RefusesIdsBeyondTheVocabularyAndGradientsOfAnotherShape) {
  Encoder encoder = small_encoder();
  EncoderPass<Layers> pass;
  EXPECT_THROW(encoder.infer(pack(std::vector<TokenIds>{{1, 11}}), pass), lora::ShapeError);
  EXPECT_THROW(encoder.infer(pack(std::vector<TokenIds>{{-1}}), pass), lora::ShapeError);
  encoder.forward(pack(texts), {}, pass);
  EXPECT_THROW(encoder.backward(Matrix::Zero(4, 6), pass), lora::ShapeError);
  EXPECT_THROW(encoder.backward(Matrix::Zero(5, 5), pass), lora::ShapeError);
}

TEST(SentenceEncoder, RefusesFrequenciesThatDoNotFitTheEmbedding) {
  auto weights = random_encoder_weights<float>(small, 3);
  weights.frequencies.conservativeResize(3);
  EXPECT_THROW(Encoder{std::move(weights)}, lora::ShapeError);
}

TEST(SentenceEncoder, RegistersEveryLinearLayerByName) {
  Encoder encoder = small_encoder();
  lora::LoraModel<float> model;
  encoder.add_to(model);
  const std::vector<std::string> expected{
      "transformer.layer_0.attention.qkv",    "transformer.layer_0.attention.output",
      "transformer.layer_0.residual",         "transformer.layer_0.ffn.hidden",
      "transformer.layer_0.ffn.output",       "transformer.layer_1.attention.qkv",
      "transformer.layer_1.attention.output", "transformer.layer_1.ffn.hidden",
      "transformer.layer_1.ffn.output",       "projection"};
  EXPECT_EQ(model.module_names(), expected);
  EXPECT_EQ(model.parameter_count().trainable, 0);
  EXPECT_TRUE(encoder.parameters().empty());
}

TEST(SentenceEncoder, ANewAdapterChangesNothing) {
  Encoder encoder = small_encoder();
  const Matrix before = encoder.embed(texts);
  lora::LoraModel<float> model;
  encoder.add_to(model);
  lora::LoraModelConfig config;
  config.lora = {.rank = 2, .alpha = 4, .dropout = 0.5, .fan_in_fan_out = true};
  config.target_modules = {"qkv", "ffn.hidden"};
  static_cast<void>(model.inject(config, 1));
  EXPECT_EQ(encoder.embed(texts), before);
  EncoderPass<Layers> pass;
  EXPECT_EQ(encoder.forward(pack(texts), {.step = 4}, pass), before);
  EXPECT_EQ(encoder.parameters().size(), 8U);
}

// An encoder whose adapters matter, with dropout.
struct Adapted {
  Encoder encoder = small_encoder();
  lora::LoraModel<float> model;

  Adapted() {
    encoder.add_to(model);
    lora::LoraModelConfig config;
    config.lora = {.rank = 2,
                   .alpha = 4,
                   .dropout = 0.5,
                   .fan_in_fan_out = true,
                   .init_lora_weights = lora::InitLoraWeights::gaussian};
    config.target_modules = {"qkv", "attention.output", "residual", "ffn.hidden", "ffn.output", "projection"};
    static_cast<void>(model.inject(config, 1));
    for (auto& parameter : model.trainable_parameters()) parameter.value().array() += 0.2F;
  }
};

TEST(SentenceEncoder, DropoutFollowsTheStepAndIsLeftOutOfInference) {
  Adapted adapted;
  EncoderPass<Layers> pass;
  const Matrix first = adapted.encoder.forward(pack(texts), {.step = 0}, pass);
  const Matrix second = adapted.encoder.forward(pack(texts), {.step = 1}, pass);
  const Matrix again = adapted.encoder.forward(pack(texts), {.step = 0}, pass);
  EXPECT_NE(first, second);
  EXPECT_EQ(first, again);
  const Matrix inferred = adapted.encoder.infer(pack(texts), pass);
  EXPECT_NE(inferred, first);
  EXPECT_EQ(inferred, adapted.encoder.infer(pack(texts), pass));
}

TEST(SentenceEncoder, PartsOfABatchDrawTheMasksOfTheWhole) {
  Adapted adapted;
  EncoderPass<Layers> pass;
  const Matrix whole = adapted.encoder.forward(pack(texts), {.step = 6}, pass);
  const std::vector<TokenIds> tail(texts.begin() + 2, texts.end());
  const Matrix part = adapted.encoder.forward(pack(tail), {.step = 6, .first_token = 3, .first_text = 2}, pass);
  EXPECT_LE((part - whole.bottomRows(3)).cwiseAbs().maxCoeff(), rounding);
}

TEST(SentenceEncoder, TrainingIsRefusedWhileMerged) {
  Adapted adapted;
  EncoderPass<Layers> pass;
  const Matrix before = adapted.encoder.infer(pack(texts), pass);
  adapted.model.eval();
  EXPECT_THROW(adapted.encoder.forward(pack(texts), {}, pass), lora::StateError);
  EXPECT_LE((adapted.encoder.infer(pack(texts), pass) - before).cwiseAbs().maxCoeff(), 1e-5F);
}

TEST(SentenceEncoder, ConcurrentCallersGetTheSameAnswers) {
  const Adapted adapted;
  const Matrix expected = adapted.encoder.embed(texts);
  std::vector<Matrix> answers(4);
  std::vector<std::thread> callers;
  for (Matrix& answer : answers) {
    callers.emplace_back([&] {
      EncoderPass<Layers> pass;
      for (int i = 0; i < 20; ++i) answer = adapted.encoder.embed(texts, pass);
    });
  }
  for (auto& caller : callers) caller.join();
  for (const Matrix& answer : answers) EXPECT_EQ(answer, expected);
}

Tokenizer small_tokenizer() {
  std::vector<Piece> pieces(6, {U"reserved", 0});
  for (const char32_t letter : U"\u2581abcd") {
    if (letter != U'\0') pieces.push_back({std::u32string(1, letter), -2});
  }
  return Tokenizer(std::move(pieces));
}

class EmbedCommand : public ::testing::Test {
 protected:
  // The arrays that the command answers `input` with.
  [[nodiscard]] std::vector<std::vector<float>> answers(const std::string& input) const {
    std::istringstream in(input);
    std::ostringstream out;
    lora::SerialExecutor serial;
    const Index lines = embed_lines(in, out, tokenizer, encoder, serial);
    std::vector<std::vector<float>> arrays;
    std::istringstream answer(out.str());
    for (std::string line; std::getline(answer, line);) arrays.push_back(nlohmann::json::parse(line));
    EXPECT_EQ(static_cast<Index>(arrays.size()), lines);
    return arrays;
  }
  [[nodiscard]] std::vector<float> expected(const std::string& text) const {
    const Matrix embedding = encoder.embed(std::vector<TokenIds>{tokenizer.encode(text)});
    return {embedding.data(), embedding.data() + embedding.size()};
  }

  const Tokenizer tokenizer = small_tokenizer();
  const Encoder encoder = small_encoder();
};

TEST_F(EmbedCommand, AnswersEveryLineWithTheFloatsOfItsText) {
  for (const char* text : {"", "a", "abc d", "a\r", "\xFF", "a\tb"}) {
    const auto arrays = answers(std::string(text) + "\n");
    ASSERT_EQ(arrays.size(), 1U) << text;
    EXPECT_EQ(arrays[0], expected(text)) << text;
  }
}

TEST_F(EmbedCommand, TakesALastLineWithoutItsEnd) {
  EXPECT_EQ(answers("").size(), 0U);
  EXPECT_EQ(answers("a\nb").size(), 2U);
  EXPECT_EQ(answers("a\nb\n").size(), 2U);
  EXPECT_EQ(answers("\n\n").size(), 2U);
}

TEST_F(EmbedCommand, KeepsTheOrderOfManyLines) {
  std::string input;
  for (int i = 0; i < 1000; ++i) input += std::string(static_cast<std::size_t>(i % 7), 'a') + "\n";
  const auto arrays = answers(input);
  ASSERT_EQ(arrays.size(), 1000U);
  for (std::size_t i = 0; i < arrays.size(); i += 97) {
    const auto wanted = expected(std::string(i % 7, 'a'));
    for (std::size_t j = 0; j < wanted.size(); ++j) EXPECT_NEAR(arrays[i][j], wanted[j], rounding);
  }
}

TEST_F(EmbedCommand, SaysSoWhenTheAnswerCannotBeWritten) {
  std::istringstream in("a\n");
  std::ostringstream out;
  out.setstate(std::ios::badbit);
  lora::SerialExecutor serial;
  EXPECT_THROW(embed_lines(in, out, tokenizer, encoder, serial), lora::IoError);
}

}  // namespace
}  // namespace examples::sentence_encoder::encoder_test
