// SPDX-License-Identifier: MIT
// lora merge does what PEFT's merge_and_unload does, or refuses by name and writes nothing.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "lora/io/gguf_weight.hpp"
#include "tools/tool.hpp"

namespace lora::merge_test {
namespace {

using testing::random_matrix;
using testing::tool;

class MergeTool : public testing::ToolTest {
 protected:
  using Modules = std::map<std::string, ModuleWeights<float>>;

  // An adapter of rank 2 and alpha 4 (or what the configuration says) over `modules`.
  void write_over(const Modules& modules, LoraModelConfig config = {.lora = {.rank = 2, .alpha = 4}},
                  const std::map<std::string, SavedTensor<float>>& saved = {}) const {
    AdapterWeights<float> weights;
    std::vector<std::string> names;
    for (const auto& [name, module] : modules) {
      names.push_back(name);
      weights.modules.emplace(name, module);
    }
    for (const auto& [name, tensor] : saved) weights.saved.emplace(name, tensor);
    config.target_modules = ModuleSelector::listed(names);
    write_adapter("adapter", config, weights);
  }
  [[nodiscard]] std::vector<std::string> merge(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments{"merge", path("base.safetensors"), path("adapter"), path("out.safetensors"),
                                       "--force"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  void expect_merge_refused(const std::string& text, const std::vector<std::string>& more = {}) const {
    std::filesystem::remove(path("out.safetensors"));
    expect_refused(merge(more), text);
    EXPECT_FALSE(std::filesystem::exists(path("out.safetensors")));
    EXPECT_TRUE(leftovers().empty());
  }
  [[nodiscard]] Matrix<float> merged(const std::string& name) const { return tensor("out.safetensors", name); }
};

// Each group's outputs get the product of their rows of B and the group's rows of A.
TEST_F(MergeTool, AConvolutionWithGroupsGetsEachGroupsProduct) {
  const auto weight = random_matrix<float>(4, 6, 1);  // 4 outputs, 2 groups of 3 channels and a kernel of 2
  write_tensors("base.safetensors", {{"a.weight", {{4, 3, 2}, weight}}});
  ModuleWeights<float> a = module(4, 6, 2, 2);
  a.kind = ModuleKind::conv1d;
  a.kernel_size = {2};
  a.B = a.B.leftCols(1).eval();
  Matrix<float> expected = weight;
  for (Index i = 0; i < 4; ++i) expected.row(i) += static_cast<float>(a.scaling) * a.B(i, 0) * a.A.row(i / 2);
  write_over({{"a", a}});
  expect_done(merge());
  Matrix<float> merged(4, 6);
  SafetensorsFile::open(path("out.safetensors")).tensor("a.weight").copy_to(std::span<float>(merged.data(), 24));
  expect_near(merged, expected);
  expect_done({"inspect", path("adapter")});
}

TEST_F(MergeTool, TakesThePrincipalPartOutOfAWeightThatPissaStartedFrom) {
  // The two largest singular values of a diagonal matrix are those of the first two rows.
  Matrix<float> weight = Matrix<float>::Zero(4, 4);
  weight.diagonal() << 5, -3, 2, 1;
  Matrix<float> rest = weight;
  rest.topRows(2).setZero();
  write_tensors("base.safetensors", {{"a.weight", {{4, 4}, weight}}});
  const auto a = module(4, 4, 1, 2);
  LoraModelConfig config{.lora = {.rank = 2, .alpha = 4, .init_lora_weights = InitLoraWeights::pissa}};
  write_over({{"a", a}}, config);
  expect_done(merge());
  expect_near(merged("a.weight"), rest + delta(a));
  expect_refused({"unmerge", path("base.safetensors"), path("adapter"), path("x")}, "pissa");
  config.lora.pissa_niter = 4;
  write_over({{"a", a}}, config);
  expect_merge_refused("pissa_niter_4");
}

TEST_F(MergeTool, TakesTheFirstPartOfTheFactorisationOutOfAWeightThatOloraStartedFrom) {
  // An upper triangular matrix with a positive diagonal is its own R.
  Matrix<float> weight(3, 4);
  weight << 2, 1, -1, 3, 0, 1, 4, -2, 0, 0, 3, 1;
  Matrix<float> rest = weight;
  rest.topRows(2) -= 2 * weight.topRows(2);
  write_tensors("base.safetensors", {{"a.weight", {{3, 4}, weight}}});
  const auto a = module(3, 4, 1, 2);
  write_over({{"a", a}}, {.lora = {.rank = 2, .alpha = 4, .init_lora_weights = InitLoraWeights::olora}});
  expect_done(merge());
  expect_near(merged("a.weight"), rest + delta(a));
}

TEST_F(MergeTool, AnUnconvertedStartIsRefusedByNameWhereNoBaseWeightIs) {
  for (const auto& [init, name] :
       {std::pair(InitLoraWeights::pissa, "pissa"), std::pair(InitLoraWeights::olora, "olora")}) {
    write_over({{"model.layers.0.self_attn.v_proj", module(4, 4, 1)}},
               {.lora = {.rank = 2, .alpha = 4, .init_lora_weights = init}});
    expect_refused({"convert", path("adapter"), path("x.gguf"), "--architecture", "llama"}, name);
    expect_refused({"combine", path("adapter"), path("adapter"), "-o", path("x")}, name);
    EXPECT_NE(tool({"inspect", path("adapter")}).output.find(name), std::string::npos);
    // From PEFT to PEFT the factors and the start they belong to stay together.
    expect_done({"convert", path("adapter"), path("copy"), "--dtype", "F16", "--force"});
    EXPECT_EQ(read_peft_directory<float>(path("copy")).config.lora.init_lora_weights, init);
  }
}

TEST_F(MergeTool, ASumIsNotLabelledWithTheStartOfItsParts) {
  write_over({{"a", module(4, 4, 1)}},
             {.lora = {.rank = 2, .alpha = 4, .init_lora_weights = InitLoraWeights::orthogonal}});
  expect_done({"combine", path("adapter"), path("adapter"), "--type", "svd", "--svd-rank", "3", "-o", path("sum")});
  const auto sum = read_peft_directory<float>(path("sum"));
  EXPECT_EQ(sum.config.lora.init_lora_weights, InitLoraWeights::kaiming_uniform);
}

TEST_F(MergeTool, ASumThatIsNotFiniteInItsTypeIsRefusedWithTensorAndRow) {
  Matrix<float> weight = Matrix<float>::Zero(4, 3);
  weight(2, 1) = 65000;
  ModuleWeights<float> a;
  a.A = Matrix<float>::Ones(1, 3);
  a.B = Matrix<float>::Constant(4, 1, 1000);
  write_over({{"a", a}}, {.lora = {.rank = 1, .alpha = 1}});
  write_tensors("base.safetensors", {{"a.weight", {{4, 3}, weight}}}, Dtype::F16);
  expect_merge_refused("\"a.weight\", row 2: expected values that are finite in F16");
  write_tensors("base.safetensors", {{"a.weight", {{4, 3}, weight}}}, Dtype::BF16);
  expect_done(merge());
  weight(1, 0) = std::numeric_limits<float>::quiet_NaN();
  write_tensors("base.safetensors", {{"a.weight", {{4, 3}, weight}}});
  expect_merge_refused("\"a.weight\", row 1");
  // What is not touched is copied, whatever it holds.
  write_tensors("base.safetensors",
                {{"a.weight", {{4, 3}, Matrix<float>::Zero(4, 3)}}, {"b.weight", {{4, 3}, weight}}});
  expect_done(merge());
}

TEST_F(MergeTool, ATrainedTensorThatIsNotFiniteInTheCheckpointsTypeIsRefused) {
  write_tensors("base.safetensors", {{"a.weight", values(4, 3, 1)}, {"head.weight", values(2, 3, 2)}}, Dtype::F16);
  write_over({{"a", module(4, 3, 1)}}, {.lora = {.rank = 2, .alpha = 4}, .modules_to_save = {"head"}},
             {{"head.weight", {{2, 3}, {1, 2, 3, 4, 1e6F, 6}}}});
  expect_merge_refused("\"head.weight\", row 1");
}

TEST_F(MergeTool, FactorsThatAreNotFiniteAreRefusedByEveryCommandThatUsesThem) {
  auto a = module(4, 3, 1);
  a.B(3, 1) = std::numeric_limits<float>::infinity();
  write_over({{"a", a}});
  write_tensors("base.safetensors", {{"a.weight", values(4, 3, 1)}});
  expect_merge_refused("module \"a\", B, row 3");
  expect_refused({"combine", path("adapter"), path("adapter"), "-o", path("x")}, "module \"a\", B, row 3");
  expect_refused({"convert", path("adapter"), path("x")}, "module \"a\", B, row 3");
  EXPECT_EQ(tool({"inspect", path("adapter")}).exit_code, 0);
}

TEST_F(MergeTool, TheShapeOfEachWeightSaysHowItIsStored) {
  write_tensors("base.safetensors", {{"linear.weight", values(6, 4, 1)}, {"conv.weight", values(4, 6, 2)}});
  const auto a = module(6, 4, 3);
  for (const bool flag : {false, true}) {
    write_over({{"linear", a}, {"conv", a}}, {.lora = {.rank = 2, .alpha = 4, .fan_in_fan_out = flag}});
    expect_done(merge());
    expect_near(merged("linear.weight"), values(6, 4, 1).second + delta(a));
    expect_near(merged("conv.weight"), values(4, 6, 2).second + delta(a).transpose());
  }
  expect_merge_refused("stored the other way round", {"--conv1d", "linear"});
}

TEST_F(MergeTool, ASquareWeightThatNothingTellsIsRefusedAndAnOptionSettlesIt) {
  write_tensors("base.safetensors", {{"m.a.weight", values(4, 4, 1)}, {"m.b.weight", values(4, 4, 2)}});
  const auto a = module(4, 4, 3);
  write_over({{"m.a", a}, {"m.b", a}}, {.lora = {.rank = 2, .alpha = 4, .fan_in_fan_out = true}});
  expect_merge_refused("--conv1d a if its weight is stored (in, out), or --linear a");
  expect_done(merge({"--linear", "a", "--conv1d", "b"}));
  expect_near(merged("m.a.weight"), values(4, 4, 1).second + delta(a));
  expect_near(merged("m.b.weight"), values(4, 4, 2).second + delta(a).transpose());
  expect_merge_refused("both", {"--linear", "a,b", "--conv1d", "b"});
  write_over({{"m.a", a}, {"m.b", a}});
  expect_done(merge());
  expect_near(merged("m.b.weight"), values(4, 4, 2).second + delta(a));
}

TEST_F(MergeTool, SquareWeightsWithTheNamesOfGpt2AreStoredAsTheOthersOfTheseNames) {
  const auto square = module(4, 4, 3);
  write_over({{"h.0.c_proj", square}});
  write_tensors("base.safetensors", {{"h.0.c_proj.weight", values(4, 4, 1)}});
  expect_done(merge());
  expect_near(merged("h.0.c_proj.weight"), values(4, 4, 1).second + delta(square).transpose());
  // Models whose linear layers have these names show it by the bias of one that is not square.
  write_tensors("base.safetensors", {{"h.0.c_proj.weight", values(4, 4, 1)},
                                     {"h.0.c_attn.weight", values(12, 4, 2)},
                                     {"h.0.c_attn.bias", row(12, 3)}});
  expect_done(merge());
  expect_near(merged("h.0.c_proj.weight"), values(4, 4, 1).second + delta(square));
}

TEST_F(MergeTool, AModuleThatAnOptionNamesAndTheAdapterLacksIsRefused) {
  write_over({{"h.0.c_proj", module(4, 4, 3)}});
  write_tensors("base.safetensors", {{"h.0.c_proj.weight", values(4, 4, 1)}});
  for (const std::string option : {"--linear", "--conv1d"}) {
    for (const std::string name : {"c_porj", "proj", "h.0.c_proj.weight"}) {
      expect_merge_refused(option + ": expected modules of the adapter, by the end of their names, got \"" + name,
                           {option, name});
    }
    for (const std::string name : {"c_proj", "0.c_proj", "h.0.c_proj"}) expect_done(merge({option, name}));
  }
}

TEST_F(MergeTool, WhereNothingElseTellsTheKindOfModelSaysHowASquareWeightIsStored) {
  const auto square = module(4, 4, 3);
  write_over({{"h.0.c_proj", square}});
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model.safetensors", {{"h.0.c_proj.weight", values(4, 4, 1)}});
  const auto merged_into = [&](const std::string& config) {
    testing::write_file(path("base/config.json"), config);
    expect_done({"merge", path("base"), path("adapter"), path("out"), "--force"});
    return tensor("out/model.safetensors", "h.0.c_proj.weight");
  };
  const Matrix<float> before = values(4, 4, 1).second;
  expect_near(merged_into("{}"), before + delta(square).transpose());
  expect_near(merged_into(R"({"model_type": "gpt2"})"), before + delta(square).transpose());
  expect_near(merged_into(R"({"model_type": "qwen"})"), before + delta(square));
  expect_near(merged_into(R"({"model_type": "vision-encoder-decoder", "decoder": {"model_type": "gpt2"}})"),
              before + delta(square).transpose());
}

TEST_F(MergeTool, ATiedHeadIsMergedIntoTheWeightItShares) {
  write_tensors("base.safetensors", {{"model.embed_tokens.weight", values(7, 4, 1)}});
  const auto head = module(7, 4, 3);
  write_over({{"lm_head", head}});
  expect_done(merge());
  expect_near(merged("model.embed_tokens.weight"), values(7, 4, 1).second + delta(head));
  auto embedding = module(4, 7, 5);
  embedding.kind = ModuleKind::embedding;
  write_over({{"lm_head", head}, {"model.embed_tokens", embedding}});
  const auto run = tool(merge());
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_NE(run.output.find("\"lm_head.weight\" is tied to \"model.embed_tokens.weight\""), std::string::npos);
  expect_near(merged("model.embed_tokens.weight"), values(7, 4, 1).second + delta(head) + delta(embedding).transpose());
}

TEST_F(MergeTool, ATiedHeadThatTheCheckpointHoldsTwiceStaysTied) {
  std::filesystem::create_directory(path("base"));
  const auto shared = values(7, 4, 1);
  write_tensors("base/model.safetensors", {{"model.embed_tokens.weight", shared}, {"lm_head.weight", shared}});
  const auto head = module(7, 4, 3);
  write_over({{"lm_head", head}});
  for (const bool tied : {true, false}) {
    testing::write_file(path("base/config.json"), tied ? R"({"tie_word_embeddings": true})" : "{}");
    expect_done({"merge", path("base"), path("adapter"), path("out"), "--force"});
    expect_near(tensor("out/model.safetensors", "lm_head.weight"), shared.second + delta(head));
    expect_near(tensor("out/model.safetensors", "model.embed_tokens.weight"),
                tied ? Matrix<float>(shared.second + delta(head)) : shared.second);
  }
}

TEST_F(MergeTool, ANewHeadIsAddedToTheShardsAndTheirIndex) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model-1.safetensors", {{"a.weight", values(4, 4, 1)}}, Dtype::BF16);
  testing::write_file(path("base/model.safetensors.index.json"),
                      R"({"metadata": {"total_size": 32}, "weight_map": {"a.weight": "model-1.safetensors"}})");
  write_over({{"a", module(4, 4, 3)}}, {.lora = {.rank = 2, .alpha = 4}, .modules_to_save = {"score"}},
             {{"score.weight", {{2, 3}, {1, 2, 3, 4, 5, 6}}}});
  const auto run = tool({"merge", path("base"), path("adapter"), path("out")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  EXPECT_NE(run.output.find("\"score.weight\" is new"), std::string::npos) << run.output;
  const auto file = SafetensorsFile::open(path("out/model-1.safetensors"));
  const auto head = file.tensor("score.weight");
  EXPECT_EQ(head.dtype, Dtype::BF16);
  EXPECT_EQ(head.matrix<float>()(1, 2), 6);
  const auto index = nlohmann::json::parse(std::ifstream(path("out/model.safetensors.index.json")));
  EXPECT_EQ(index.at("weight_map").at("score.weight"), "model-1.safetensors");
  EXPECT_EQ(index.at("metadata").at("total_size"), 32 + 12);
}

TEST_F(MergeTool, AResizedVocabularyReplacesTheOldOneAndTheConfigurationSaysSo) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model-1.safetensors", {{"model.embed_tokens.weight", values(7, 4, 1)}});
  testing::write_file(path("base/config.json"), R"({"vocab_size": 7, "tie_word_embeddings": true})");
  testing::write_file(
      path("base/model.safetensors.index.json"),
      R"({"metadata": {"total_size": 112}, "weight_map": {"model.embed_tokens.weight": "model-1.safetensors"}})");
  auto embedding = module(4, 9, 5);
  embedding.kind = ModuleKind::embedding;
  const auto resized = values(9, 4, 2);
  write_over({{"model.embed_tokens", embedding}}, {.lora = {.rank = 2, .alpha = 4}},
             {{"model.embed_tokens.weight", saved(resized)}, {"lm_head.weight", saved(resized)}});
  expect_done({"merge", path("base"), path("adapter"), path("out")});
  // The trained rows are what the factors are added to.
  expect_near(tensor("out/model-1.safetensors", "model.embed_tokens.weight"),
              resized.second + delta(embedding).transpose());
  EXPECT_FALSE(SafetensorsFile::open(path("out/model-1.safetensors")).contains("lm_head.weight"));
  EXPECT_EQ(nlohmann::json::parse(std::ifstream(path("out/config.json"))).at("vocab_size"), 9);
  const auto index = nlohmann::json::parse(std::ifstream(path("out/model.safetensors.index.json")));
  EXPECT_EQ(index.at("metadata").at("total_size"), 9 * 4 * 4);
}

TEST_F(MergeTool, AWholeTensorOfAnotherShapeIsRefusedWhereNoHeadOrVocabularyIs) {
  write_tensors("base.safetensors", {{"a.weight", values(4, 4, 1)}, {"a.bias", row(4, 2)}});
  write_over({{"a", module(4, 4, 3)}}, {.lora = {.rank = 2, .alpha = 4, .bias = BiasMode::lora_only}},
             {{"a.bias", {{5}, {1, 2, 3, 4, 5}}}});
  expect_merge_refused("\"a.bias\"");
}

// A model in GGUF with query and value of one layer.
class MergeGguf : public MergeTool {
 protected:
  static constexpr Index heads = 2;

  void write_model(const std::string& name, Dtype dtype, const std::string& architecture = "llama") const {
    detail::GgufEncoder file(32);
    file.add_metadata("general.architecture", architecture);
    file.add_metadata(architecture + ".attention.head_count", std::uint32_t{heads});
    const auto add = [&](const std::string& tensor, const Matrix<float>& values) {
      const std::array<std::uint64_t, 2> extents{static_cast<std::uint64_t>(values.cols()),
                                                 static_cast<std::uint64_t>(values.rows())};
      const auto count = static_cast<std::size_t>(values.size());
      std::byte* const bytes = file.add_tensor(tensor, extents, *gguf_type_of_dtype(dtype), count * bits_of(dtype) / 8);
      encode(dtype, std::span<const float>(values.data(), count), bytes);
    };
    add("blk.0.attn_q.weight", permuted(query));
    add("blk.0.attn_v.weight", value);
    add("token_embd.weight", vocabulary);
    const auto bytes = std::move(file).finish();
    std::ofstream(path(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  // Row c * n/2 + j of a head of n rows in transformers is row 2 j + c in llama.cpp.
  [[nodiscard]] static Matrix<float> permuted(const Matrix<float>& rows) {
    Matrix<float> result(rows.rows(), rows.cols());
    const Index n = rows.rows() / heads;
    for (Index head = 0; head < heads; ++head)
      for (Index c = 0; c < 2; ++c)
        for (Index j = 0; j < n / 2; ++j) result.row(head * n + 2 * j + c) = rows.row(head * n + c * n / 2 + j);
    return result;
  }
  void write_transformers_adapter() const {
    write_over({{"model.layers.0.self_attn.q_proj", query_update},
                {"model.layers.0.self_attn.v_proj", value_update},
                {"lm_head", head_update}});
  }
  // The float values of a tensor of a GGUF file.
  [[nodiscard]] Matrix<float> gguf_tensor(const std::string& name, const std::string& tensor) const {
    const auto bytes = testing::read_file(path(name));
    const auto contents = parse_gguf(bytes);
    for (const auto& one : contents.tensors) {
      if (one.name != tensor) continue;
      Matrix<float> values(static_cast<Index>(one.extents[1]), static_cast<Index>(one.extents[0]));
      read_gguf_rows(one, 0, one.rows(), {values.data(), static_cast<std::size_t>(values.size())});
      return values;
    }
    ADD_FAILURE() << "no " << tensor;
    return {};
  }

  const Matrix<float> query = random_matrix<float>(8, 6, 1);
  const Matrix<float> value = random_matrix<float>(8, 6, 2);
  const Matrix<float> vocabulary = random_matrix<float>(5, 6, 3);
  const ModuleWeights<float> query_update = module(8, 6, 4);
  const ModuleWeights<float> value_update = module(8, 6, 6);
  const ModuleWeights<float> head_update = module(5, 6, 8);
};

TEST_F(MergeGguf, AnAdapterOfTransformersGoesIntoAModelOfLlamaCpp) {
  write_transformers_adapter();
  for (const auto& [dtype, bound] :
       {std::pair(Dtype::F32, 1e-5), std::pair(Dtype::F16, 4e-3), std::pair(Dtype::BF16, 4e-2)}) {
    write_model("base.gguf", dtype);
    expect_done({"merge", path("base.gguf"), path("adapter"), path("out.gguf"), "--force"});
    expect_near(gguf_tensor("out.gguf", "blk.0.attn_q.weight"), permuted(query + delta(query_update)), bound);
    expect_near(gguf_tensor("out.gguf", "blk.0.attn_v.weight"), value + delta(value_update), bound);
    expect_near(gguf_tensor("out.gguf", "token_embd.weight"), vocabulary + delta(head_update), bound);
  }
  EXPECT_EQ(testing::read_file(path("out.gguf")).size(), testing::read_file(path("base.gguf")).size());
  const auto listing = tool({"inspect", path("out.gguf")});
  EXPECT_NE(listing.output.find("checkpoint: 3 tensors"), std::string::npos) << listing.output;
  write_model("base.gguf", Dtype::F32, "qwen2");
  expect_done({"merge", path("base.gguf"), path("adapter"), path("out.gguf"), "--force"});
  expect_near(gguf_tensor("out.gguf", "blk.0.attn_q.weight"), permuted(query) + delta(query_update));
}

// The rows of a query are permuted, and the magnitude with them.
TEST_F(MergeGguf, AnAdapterWithDoraGoesIntoAModelOfLlamaCpp) {
  auto with_magnitude = [](ModuleWeights<float> update, std::uint64_t seed) {
    update.magnitude = (random_matrix<float>(1, update.B.rows(), seed).array() + 3).matrix();
    return update;
  };
  const auto query_dora = with_magnitude(query_update, 11);
  const auto value_dora = with_magnitude(value_update, 12);
  const auto adapted = [](Matrix<float> sum, const ModuleWeights<float>& update) {
    for (Index i = 0; i < sum.rows(); ++i) sum.row(i) *= update.magnitude[i] / sum.row(i).norm();
    return sum;
  };
  write_over({{"model.layers.0.self_attn.q_proj", query_dora}, {"model.layers.0.self_attn.v_proj", value_dora}},
             {.lora = {.rank = 2, .alpha = 4, .use_dora = true}});
  write_model("base.gguf", Dtype::F32);
  expect_done({"merge", path("base.gguf"), path("adapter"), path("out.gguf")});
  expect_near(gguf_tensor("out.gguf", "blk.0.attn_q.weight"), permuted(adapted(query + delta(query_dora), query_dora)));
  expect_near(gguf_tensor("out.gguf", "blk.0.attn_v.weight"), adapted(value + delta(value_dora), value_dora));
  expect_near(gguf_tensor("out.gguf", "token_embd.weight"), vocabulary);
}

TEST_F(MergeGguf, WhatAModelOfLlamaCppCannotTakeIsRefusedByName) {
  write_transformers_adapter();
  write_model("base.gguf", Dtype::F32, "mamba");
  expect_refused({"merge", path("base.gguf"), path("adapter"), path("out.gguf")}, "\"mamba\"");
  write_model("base.gguf", Dtype::F32);
  auto bytes = testing::read_file(path("base.gguf"));
  const auto name = testing::bytes_of("token_embd.weight");
  // After the name come the number of extents, two extents and the type: 2 is Q4_0.
  const auto found = std::search(bytes.begin(), bytes.end(), name.begin(), name.end());
  ASSERT_NE(found, bytes.end());
  *(found + static_cast<std::ptrdiff_t>(name.size()) + 4 + 2 * 8) = std::byte{2};
  std::ofstream(path("quantised.gguf"), std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  expect_refused({"merge", path("quantised.gguf"), path("adapter"), path("out.gguf")}, "token_embd.weight");
  write_over({{"model.layers.0.mixer", module(8, 6, 4)}});
  expect_refused({"merge", path("base.gguf"), path("adapter"), path("out.gguf")}, "model.layers.0.mixer");
  expect_refused({"extract", path("base.gguf"), path("base.gguf"), path("x")}, "GGUF");
  EXPECT_FALSE(std::filesystem::exists(path("out.gguf")));
}

TEST_F(MergeGguf, AnAdapterOfLlamaCppGoesIntoACheckpointOfTransformers) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model.safetensors", {{"model.layers.0.self_attn.q_proj.weight", {{8, 6}, query}},
                                           {"model.layers.0.self_attn.v_proj.weight", {{8, 6}, value}},
                                           {"model.embed_tokens.weight", {{5, 6}, vocabulary}}});
  write_transformers_adapter();
  expect_done({"convert", path("adapter"), path("adapter.gguf"), "--architecture", "llama", "--heads", "2"});
  expect_refused({"merge", path("base"), path("adapter.gguf"), path("out")}, "--heads");
  expect_done({"merge", path("base"), path("adapter.gguf"), path("out"), "--heads", "2"});
  testing::write_file(path("base/config.json"), R"({"num_attention_heads": 2})");
  expect_done({"merge", path("base"), path("adapter.gguf"), path("out"), "--force"});
  const auto file = SafetensorsFile::open(path("out/model.safetensors"));
  expect_near(file.matrix<float>("model.layers.0.self_attn.q_proj.weight"), query + delta(query_update));
  expect_near(file.matrix<float>("model.layers.0.self_attn.v_proj.weight"), value + delta(value_update));
  expect_near(file.matrix<float>("model.embed_tokens.weight"), vocabulary + delta(head_update));
}

}  // namespace
}  // namespace lora::merge_test
