// SPDX-License-Identifier: MIT
// What quantize and dequantize store, and what they say of it to transformers.
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lora/io/bitsandbytes.hpp"
#include "lora/model/described_config.hpp"
#include "support/bits.hpp"
#include "tools/tool.hpp"

namespace lora::stored_weights_test {
namespace {

using testing::random_matrix;
using testing::same_bits;
using testing::tool;

class StoredWeights : public testing::ToolTest {
 protected:
  void write(const std::string& name, const std::string& text) const { testing::write_file(path(name), text); }
  [[nodiscard]] std::string text_of(const std::string& name) const {
    std::ifstream file(path(name));
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void write_model(const std::string& name, const testing::Tensors& tensors, const std::string& config) const {
    std::filesystem::create_directories(path(name));
    write_tensors(name + "/model.safetensors", tensors);
    write(name + "/config.json", config);
  }
  [[nodiscard]] std::vector<std::string> skipped(const std::string& model) const {
    const auto config = nlohmann::json::parse(text_of(model + "/config.json"));
    return config.at("quantization_config").at("llm_int8_skip_modules").get<std::vector<std::string>>();
  }
  /// The shape that the quant_state of a weight says.
  [[nodiscard]] std::vector<Index> quantized_shape(const std::string& file, const std::string& weight) const {
    const auto state = bitsandbytes_state(SafetensorsFile::open(path(file)), weight);
    return {state.out_features, state.in_features};
  }
  [[nodiscard]] static Matrix<float> rounded(const Matrix<float>& values) {
    const auto weight = QuantizedWeight<formats::NF4<64>>::quantize(view_of(values));
    Matrix<float> result(values.rows(), values.cols());
    read_back(weight, view_of(result));
    return result;
  }
  [[nodiscard]] static Matrix<float> rounded_by_columns(const Matrix<float>& values) {
    return rounded(values.transpose()).transpose();
  }
};

TEST_F(StoredWeights, ATensorOfManyRowsWithoutColumnsIsNoWork) {
  SafetensorsWriter writer;
  writer.add_stream("w", Dtype::F16, {Index{1} << 44, 0}, [](const SafetensorsWriter::Sink&) {});
  writer.write(path("base.safetensors"));
  expect_done({"dequantize", path("base.safetensors"), path("out.safetensors")});
  EXPECT_EQ(SafetensorsFile::open(path("out.safetensors")).tensor("w").shape, (std::vector<Index>{Index{1} << 44, 0}));
}

TEST_F(StoredWeights, AWeightThatIsInFourBitsAlreadyIsNotListedAsSkipped) {
  write_model("base", {{"a.weight", values(4, 64, 1)}, {"b.weight", values(4, 64, 2)}, {"c.weight", values(4, 64, 3)}},
              R"({"tie_word_embeddings": false})");
  expect_done({"quantize", path("base"), path("one"), "--format", "nf4", "--modules", "a"});
  EXPECT_EQ(skipped("one"), (std::vector<std::string>{"b", "c"}));
  expect_done({"quantize", path("one"), path("two"), "--format", "nf4", "--modules", "b"});
  EXPECT_EQ(skipped("two"), std::vector<std::string>{"c"});
}

// Weights in 8 bits beside those in 4 would be read as what they are not.
TEST_F(StoredWeights, AModelThatIsQuantizedByAnotherMethodIsRefused) {
  const testing::Tensors weights{{"a.weight", values(4, 64, 1)}};
  for (const char* other : {R"({"quant_method": "fp8"})", R"({"quant_method": "bitsandbytes", "load_in_8bit": true})",
                            R"({"load_in_4bit": false})", "1"}) {
    SCOPED_TRACE(other);
    write_model("base", weights, std::string(R"({"quantization_config": )") + other + "}");
    expect_refused({"quantize", path("base"), path("out"), "--format", "nf4"}, "config.json, quantization_config");
    EXPECT_FALSE(std::filesystem::exists(path("out")));
  }
  for (const char* none : {"null", R"({"quant_method": "bitsandbytes", "load_in_4bit": true})"}) {
    SCOPED_TRACE(none);
    write_model("base", weights, std::string(R"({"quantization_config": )") + none + "}");
    expect_done({"quantize", path("base"), path("out"), "--format", "nf4", "--force"});
  }
}

TEST_F(StoredWeights, AHeadThatIsTiedAndNotStoredIsListedAsSkipped) {
  const testing::Tensors tensors{{"model.embed_tokens.weight", values(8, 64, 1)}, {"a.weight", values(4, 64, 2)}};
  write_model("default", tensors, "{}");
  expect_done({"quantize", path("default"), path("default-4"), "--format", "nf4"});
  EXPECT_EQ(skipped("default-4"), (std::vector<std::string>{"model.embed_tokens", "lm_head"}));
  write_model("untied", tensors, R"({"tie_word_embeddings": false})");
  expect_done({"quantize", path("untied"), path("untied-4"), "--format", "nf4"});
  EXPECT_EQ(skipped("untied-4"), std::vector<std::string>{"model.embed_tokens"});
  auto with_head = tensors;
  with_head["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
  write_model("twice", with_head, "{}");
  expect_done({"quantize", path("twice"), path("twice-4"), "--format", "nf4"});
  EXPECT_EQ(skipped("twice-4"), (std::vector<std::string>{"lm_head", "model.embed_tokens"}));
}

// The list names lm_head and all within: RoBERTa's head has layers that are stored, and may be in 4 bits.
TEST_F(StoredWeights, OnlyTheTiedPartOfAHeadIsListedAsSkipped) {
  const testing::Tensors embedding{{"embeddings.word_embeddings.weight", values(8, 64, 1)}};
  auto roberta = embedding;
  roberta["lm_head.dense.weight"] = values(64, 64, 2);
  write_model("roberta", roberta, R"({"model_type": "roberta"})");
  expect_done({"quantize", path("roberta"), path("roberta-4"), "--format", "nf4"});
  EXPECT_EQ(skipped("roberta-4"), (std::vector<std::string>{"embeddings.word_embeddings", "lm_head.decoder"}));
  auto bert = embedding;
  bert["cls.predictions.transform.dense.weight"] = values(64, 64, 2);
  write_model("bert", bert, R"({"model_type": "bert"})");
  expect_done({"quantize", path("bert"), path("bert-4"), "--format", "nf4"});
  EXPECT_EQ(skipped("bert-4"), (std::vector<std::string>{"embeddings.word_embeddings", "cls.predictions.decoder"}));
  auto whisper = embedding;
  whisper["model.decoder.layers.0.fc1.weight"] = values(64, 64, 2);
  write_model("whisper", whisper, R"({"model_type": "whisper"})");
  expect_done({"quantize", path("whisper"), path("whisper-4"), "--format", "nf4"});
  EXPECT_EQ(skipped("whisper-4"), (std::vector<std::string>{"embeddings.word_embeddings", "proj_out"}));
}

TEST_F(StoredWeights, AnEmbeddingThatStaysIsListedAsSkippedAndALinearLayerOfThatNameIsQuantized) {
  write_model("base",
              {{"embed.weight", values(8, 64, 1)},
               {"word_embeds.weight", values(8, 64, 2)},
               {"x_embedder.weight", values(8, 64, 3)},
               {"img_embed.weight", values(8, 64, 4)},
               {"img_embed.bias", row(8, 5)}},
              R"({"tie_word_embeddings": false})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  EXPECT_EQ(skipped("out"), (std::vector<std::string>{"embed", "word_embeds"}));
  EXPECT_EQ(quantized_shape("out/model.safetensors", "x_embedder.weight"), (std::vector<Index>{8, 64}));
  EXPECT_EQ(quantized_shape("out/model.safetensors", "img_embed.weight"), (std::vector<Index>{8, 64}));
}

// transformers makes no 4-bit layers of them, and so could not read their weights.
TEST_F(StoredWeights, WhatTransformersKeepsStays) {
  const std::string layer = "encoder.block.0.layer.1.DenseReluDense.";
  write_model("base",
              {{layer + "wi.weight", values(4, 64, 1)},
               {layer + "wo.weight", values(4, 64, 2)},
               {"qformer.encoder.layer.0.output.dense.weight", values(4, 64, 3)},
               {"attention.wo.weight", values(4, 64, 4)}},
              R"({"tie_word_embeddings": false})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  EXPECT_EQ(skipped("out"), (std::vector<std::string>{layer + "wo", "qformer.encoder.layer.0.output.dense"}));
  expect_near(tensor("out/model.safetensors", layer + "wo.weight"), values(4, 64, 2).second, 0);
  EXPECT_EQ(quantized_shape("out/model.safetensors", layer + "wi.weight"), (std::vector<Index>{4, 64}));
}

TEST_F(StoredWeights, OnlyTheWeightOfAModuleIsStoredInFourBits) {
  write_model("base", {{"a.weight", values(4, 64, 1)}, {"attn.in_proj_weight", values(4, 64, 2)}}, "{}");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  EXPECT_EQ(SafetensorsFile::open(path("out/model.safetensors")).tensor("attn.in_proj_weight").dtype, Dtype::F32);
  expect_refused({"quantize", path("base"), path("none"), "--format", "nf4", "--modules", "in_proj_weight"},
                 "\"in_proj_weight\": expected a module of the checkpoint");
  expect_done({"quantize", path("base"), path("half"), "--format", "bf16"});
  EXPECT_EQ(SafetensorsFile::open(path("half/model.safetensors")).tensor("attn.in_proj_weight").dtype, Dtype::BF16);
}

class Conv1dWeights : public StoredWeights {
 protected:
  const Matrix<float> attention = random_matrix<float>(64, 192, 1);
  const Matrix<float> projection = random_matrix<float>(64, 64, 2);

  [[nodiscard]] testing::Tensors gpt2() const {
    return {{"h.0.attn.c_attn.weight", {{64, 192}, attention}},
            {"h.0.attn.c_attn.bias", row(192, 3)},
            {"h.0.attn.c_proj.weight", {{64, 64}, projection}},
            {"h.0.attn.c_proj.bias", row(64, 4)},
            {"wte.weight", values(8, 64, 5)}};
  }
};

// transformers transposes a Conv1D before it quantizes, and takes a weight that is in 4 bits as it is.
TEST_F(Conv1dWeights, AreInFourBitsAsTransformersHasThem) {
  write_model("base", gpt2(), R"({"model_type": "gpt2"})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  EXPECT_EQ(quantized_shape("out/model.safetensors", "h.0.attn.c_attn.weight"), (std::vector<Index>{192, 64}));
  const auto file = SafetensorsFile::open(path("out/model.safetensors"));
  const auto codes = bitsandbytes_weight<formats::NF4<64>>(file, "h.0.attn.c_attn.weight");
  Matrix<float> decoded(192, 64);
  read_back(codes, view_of(decoded));
  EXPECT_TRUE(same_bits(decoded, rounded(attention.transpose())));
  EXPECT_EQ(skipped("out"), (std::vector<std::string>{"wte", "lm_head"}));
}

TEST_F(Conv1dWeights, ComeBackAsTheyWereStored) {
  write_model("base", gpt2(), R"({"model_type": "gpt2"})");
  for (const std::string scales : {"", "--double-quant"}) {
    SCOPED_TRACE(scales);
    std::vector<std::string> quantize{"quantize", path("base"), path("out"), "--format", "nf4", "--force"};
    if (!scales.empty()) quantize.push_back(scales);
    expect_done(quantize);
    expect_done({"dequantize", path("out"), path("back"), "--force"});
    const auto file = SafetensorsFile::open(path("back/model.safetensors"));
    ASSERT_EQ(file.tensor("h.0.attn.c_attn.weight").shape, (std::vector<Index>{64, 192}));
    const float bound = scales.empty() ? 0.0F : 0.01F;
    expect_near(file.matrix<float>("h.0.attn.c_attn.weight"), rounded_by_columns(attention), bound);
    expect_near(file.matrix<float>("h.0.attn.c_proj.weight"), rounded_by_columns(projection), bound);
  }
  expect_done({"dequantize", path("out"), path("half"), "--dtype", "BF16"});
  EXPECT_EQ(SafetensorsFile::open(path("half/model.safetensors")).tensor("h.0.attn.c_attn.weight").shape,
            (std::vector<Index>{64, 192}));
}

TEST_F(Conv1dWeights, ComeBackInAModelOfWhichGpt2IsAPart) {
  write_model("base", gpt2(), R"({"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"},
                                  "decoder": {"model_type": "gpt2"}})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  expect_done({"dequantize", path("out"), path("back")});
  EXPECT_TRUE(same_bits(tensor("back/model.safetensors", "h.0.attn.c_attn.weight"), rounded_by_columns(attention)));
}

TEST_F(Conv1dWeights, AnAdapterIsMergedAlikeBeforeAndAfter) {
  const auto attention_update = module(192, 64, 7);
  const auto projection_update = module(64, 64, 9);
  AdapterWeights<float> weights;
  weights.modules.emplace("h.0.attn.c_attn", attention_update);
  weights.modules.emplace("h.0.attn.c_proj", projection_update);
  auto config = described_config(LoraModelConfig{}, weights);
  config.lora.fan_in_fan_out = true;
  write_adapter("adapter", config, weights);
  write_model("base", gpt2(), R"({"model_type": "gpt2"})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  expect_refused({"merge", path("out"), path("adapter"), path("none")}, "lora dequantize makes them");
  expect_done({"dequantize", path("out"), path("back")});
  expect_done({"merge", path("back"), path("adapter"), path("merged")});
  expect_near(tensor("merged/model.safetensors", "h.0.attn.c_attn.weight"),
              rounded_by_columns(attention) + delta(attention_update).transpose());
  expect_near(tensor("merged/model.safetensors", "h.0.attn.c_proj.weight"),
              rounded_by_columns(projection) + delta(projection_update).transpose());
}

// A file alone does not say that it is a GPT-2: what is decoded is in transformers' order of 4-bit weights, told so,
// and still merged rightly, since the bias shows the outputs.
TEST_F(Conv1dWeights, WithoutAConfigurationAreDecodedAsOutTimesInAndThatIsTold) {
  write_tensors("base.safetensors", gpt2());
  expect_done({"quantize", path("base.safetensors"), path("out.safetensors"), "--format", "nf4"});
  EXPECT_EQ(quantized_shape("out.safetensors", "h.0.attn.c_attn.weight"), (std::vector<Index>{192, 64}));
  EXPECT_EQ(quantized_shape("out.safetensors", "h.0.attn.c_proj.weight"), (std::vector<Index>{64, 64}));
  const auto run = tool({"dequantize", path("out.safetensors"), path("back.safetensors")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_NE(run.output.find("\"h.0.attn.c_attn.weight\" is written (out, in)"), std::string::npos) << run.output;
  EXPECT_TRUE(same_bits(tensor("back.safetensors", "h.0.attn.c_attn.weight"), rounded(attention.transpose())));
  const auto update = module(64, 64, 9);
  AdapterWeights<float> weights;
  weights.modules.emplace("h.0.attn.c_proj", update);
  write_adapter("adapter", described_config(LoraModelConfig{}, weights), weights);
  expect_done({"merge", path("back.safetensors"), path("adapter"), path("merged.safetensors")});
  expect_near(tensor("merged.safetensors", "h.0.attn.c_proj.weight"), rounded(projection.transpose()) + delta(update));
}

TEST_F(Conv1dWeights, AreToldFromLinearLayersOfTheSameNames) {
  write_model("base",
              {{"h.0.attn.c_attn.weight", values(192, 64, 1)},
               {"h.0.attn.c_attn.bias", row(192, 2)},
               {"h.0.attn.c_proj.weight", {{64, 64}, projection}},
               {"h.0.attn.c_proj.bias", row(64, 3)},
               {"h.0.mlp.c_fc.weight", values(256, 64, 4)}},
              R"({"model_type": "gpt_bigcode"})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  EXPECT_EQ(quantized_shape("out/model.safetensors", "h.0.attn.c_attn.weight"), (std::vector<Index>{192, 64}));
  EXPECT_EQ(quantized_shape("out/model.safetensors", "h.0.mlp.c_fc.weight"), (std::vector<Index>{256, 64}));
  const auto run = tool({"dequantize", path("out"), path("back")});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_EQ(run.output.find("warning"), std::string::npos) << run.output;
  EXPECT_TRUE(same_bits(tensor("back/model.safetensors", "h.0.attn.c_proj.weight"), rounded(projection)));
}

TEST_F(Conv1dWeights, ThatContradictEachOtherLeaveSquareOnesAsTheyAre) {
  auto tensors = gpt2();
  tensors["h.1.attn.c_attn.weight"] = values(192, 64, 6);
  tensors["h.1.attn.c_attn.bias"] = row(192, 7);
  write_tensors("base.safetensors", tensors);
  const auto run = tool({"quantize", path("base.safetensors"), path("out.safetensors"), "--format", "nf4"});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_NE(run.output.find("\"h.0.attn.c_proj.weight\" stays as it is"), std::string::npos) << run.output;
  EXPECT_EQ(quantized_shape("out.safetensors", "h.0.attn.c_attn.weight"), (std::vector<Index>{192, 64}));
  EXPECT_EQ(quantized_shape("out.safetensors", "h.1.attn.c_attn.weight"), (std::vector<Index>{192, 64}));
  EXPECT_TRUE(same_bits(tensor("out.safetensors", "h.0.attn.c_proj.weight"), projection));
  expect_refused({"quantize", path("base.safetensors"), path("none"), "--format", "nf4", "--modules", "c_proj"},
                 "\"h.0.attn.c_proj.weight\": expected a weight known to be stored (out, in) or (in, out)");
}

class ConfigOfPython : public StoredWeights {
 protected:
  // What json.dump writes for a Mamba2: not JSON, and read by every version of transformers.
  const std::string config = R"({"model_type": "mamba2", "time_step_limit": [0.0, Infinity], "low": -Infinity,
  "unknown": NaN, "text": "NaN, Infinity", "layer_norm_epsilon": 1e-05})";
};

TEST_F(ConfigOfPython, IsKeptAsItIsBesideWhatIsAdded) {
  write_model("base", {{"a.weight", values(4, 64, 1)}}, config);
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  const std::string text = text_of("out/config.json");
  for (const char* kept : {R"("time_step_limit": [0.0, Infinity])", R"("low": -Infinity)", R"("unknown": NaN)",
                           R"("text": "NaN, Infinity")", R"("layer_norm_epsilon": 1e-05)", R"("load_in_4bit": true)"}) {
    EXPECT_NE(text.find(kept), std::string::npos) << kept << " in " << text;
  }
  expect_done({"dequantize", path("out"), path("back")});
  const std::string back = text_of("back/config.json");
  EXPECT_EQ(back.find("quantization_config"), std::string::npos) << back;
  EXPECT_NE(back.find(R"("time_step_limit": [0.0, Infinity])"), std::string::npos) << back;
}

TEST_F(ConfigOfPython, GetsTheDescriptionOfFourBitsInTheOrderOfTransformersAndIndented) {
  write_model("base", {{"a.weight", values(4, 64, 1)}, {"b.weight", values(4, 4, 2)}},
              R"({"z": {"b": 1, "a": [1,
 2]}, "model_type": "x", "tie_word_embeddings": false, "a": NaN})");
  const auto run = tool({"quantize", path("base"), path("out"), "--format", "nf4"});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_EQ(text_of("out/config.json"), R"({
  "z": {"b": 1, "a": [1,
 2]},
  "model_type": "x",
  "tie_word_embeddings": false,
  "a": NaN,
  "quantization_config": {
    "quant_method": "bitsandbytes",
    "load_in_4bit": true,
    "load_in_8bit": false,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": false,
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": [
      "b"
    ]
  }
}
)");
}

TEST_F(ConfigOfPython, IsReadWhereTensorsAreTied) {
  const auto embedding = values(8, 4, 1);
  write_model("base", {{"model.embed_tokens.weight", embedding}, {"lm_head.weight", embedding}},
              R"({"tie_word_embeddings": true, "time_step_limit": [0.0, Infinity]})");
  const auto update = module(8, 4, 5);
  AdapterWeights<float> weights;
  weights.modules.emplace("lm_head", update);
  write_adapter("adapter", described_config(LoraModelConfig{}, weights), weights);
  expect_done({"merge", path("base"), path("adapter"), path("out")});
  for (const char* name : {"lm_head.weight", "model.embed_tokens.weight"}) {
    expect_near(tensor("out/model.safetensors", name), embedding.second + delta(update));
  }
}

TEST_F(ConfigOfPython, IsKeptAsItIsBesideAVocabularyOfAnotherSize) {
  write_model("base", {{"model.embed_tokens.weight", values(7, 4, 1)}, {"a.weight", values(4, 4, 2)}},
              R"({"time_step_limit": [0.0, Infinity], "vocab_size": 7, "large": 123456789012345678901})");
  const auto resized = values(9, 4, 3);
  AdapterWeights<float> weights;
  weights.modules.emplace("a", module(4, 4, 5));
  weights.saved.emplace("model.embed_tokens.weight", saved(resized));
  write_adapter("adapter", described_config(LoraModelConfig{}, weights), weights);
  expect_done({"merge", path("base"), path("adapter"), path("out")});
  EXPECT_EQ(text_of("out/config.json"), R"({
  "time_step_limit": [0.0, Infinity],
  "vocab_size": 9,
  "large": 123456789012345678901
}
)");
}

TEST_F(ConfigOfPython, ThatCannotBeReadIsAnErrorAndNotTakenForNone) {
  AdapterWeights<float> weights;
  weights.modules.emplace("a", module(4, 64, 5));
  write_adapter("adapter", described_config(LoraModelConfig{}, weights), weights);
  for (const std::string& text :
       {std::string(), std::string(R"({"a": 1)"), std::string("[]"), std::string(R"({"a": Infinit})"),
        std::string(R"({"a": +NaN})"), R"({"a": )" + std::string(65, '[') + std::string(65, ']') + "}"}) {
    SCOPED_TRACE(text);
    write_model("base", {{"a.weight", values(4, 64, 1)}}, text);
    expect_refused({"quantize", path("base"), path("out"), "--format", "nf4"}, "config.json\": expected an object");
    expect_refused({"merge", path("base"), path("adapter"), path("out")}, "config.json\": expected an object");
    EXPECT_FALSE(std::filesystem::exists(path("out")));
    EXPECT_EQ(tool({"inspect", path("base")}).exit_code, 0);
  }
}

}  // namespace
}  // namespace lora::stored_weights_test
