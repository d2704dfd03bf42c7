// SPDX-License-Identifier: MIT
// What write_gguf_adapter puts into a file, and what it refuses by name.
#include "lora/io/gguf_adapter_writer.hpp"

#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/files.hpp"
#include "io/gguf_bytes.hpp"
#include "lora/io/gguf_names.hpp"
#include "lora/io/gguf_parser.hpp"

namespace lora::testing::gguf_adapter_writer_test {
namespace {

/// The adapter of small_adapter().
GgufAdapter small() {
  GgufAdapter adapter;
  adapter.architecture = "llama";
  ModuleWeights<float>& module = adapter.weights.modules["blk.0.attn_v"];
  module.A.resize(2, 3);
  module.A << 1, 2, 3, 4, 5, 6;
  module.B.resize(1, 2);
  module.B << 7, 8;
  module.scaling = 4;
  return adapter;
}

ModuleWeights<float>& module_of(GgufAdapter& adapter) { return adapter.weights.modules.begin()->second; }

/// The elements of an F32 tensor in a file.
std::vector<float> elements(const GgufContents& contents, const std::string& name) {
  for (const auto& tensor : contents.tensors) {
    if (tensor.name != name) continue;
    std::vector<float> values(static_cast<std::size_t>(tensor.size()));
    decode<float>(*dtype_of_type(tensor.type), tensor.bytes.data(), values);
    return values;
  }
  throw std::runtime_error("no tensor " + name);
}

TEST(WriteGgufAdapter, WritesTheBytesThatTheFormatAsksFor) {
  EXPECT_EQ(gguf_adapter_bytes(small()), small_adapter().bytes());
}

TEST(WriteGgufAdapter, ToAFile) {
  const TemporaryFolder folder;
  write_gguf_adapter(folder / "adapter.gguf", small());
  EXPECT_EQ(read_file(folder / "adapter.gguf"), small_adapter().bytes());
  EXPECT_EQ(folder.entries().size(), 1U);
}

TEST(WriteGgufAdapter, LeavesTheFileAloneWhenItRefuses) {
  const TemporaryFolder folder;
  write_file(folder / "adapter.gguf", "before");
  GgufAdapter adapter = small();
  module_of(adapter).kind = ModuleKind::conv2d;
  EXPECT_THROW(write_gguf_adapter(folder / "adapter.gguf", adapter), ConfigError);
  EXPECT_EQ(read_file(folder / "adapter.gguf"), bytes_of("before"));
  EXPECT_THROW(write_gguf_adapter(folder / "none" / "adapter.gguf", small()), IoError);
}

TEST(WriteGgufAdapter, HalvesTheElements) {
  GgufBytes expected = adapter_header(2);
  expected.tensor("blk.0.attn_v.weight.lora_a", {3, 2}, 1, 0).tensor("blk.0.attn_v.weight.lora_b", {2, 1}, 1, 32);
  expected.pad(32);
  const auto f16 = [&](std::uint32_t bits) {
    expected.u8(static_cast<std::uint8_t>(bits & 0xFFU)).u8(static_cast<std::uint8_t>(bits >> 8U));
  };
  for (const std::uint32_t bits : {0x3C00U, 0x4000U, 0x4200U, 0x4400U, 0x4500U, 0x4600U}) f16(bits);
  expected.pad(32);
  for (const std::uint32_t bits : {0x4700U, 0x4800U}) f16(bits);
  expected.pad(32);
  EXPECT_EQ(gguf_adapter_bytes(small(), {.dtype = Dtype::F16}), expected.bytes());
}

TEST(WriteGgufAdapter, TokenEmbeddingsHaveTheirATransposed) {
  GgufAdapter adapter = small();
  auto node = adapter.weights.modules.extract("blk.0.attn_v");
  node.key() = "token_embd";
  node.mapped().kind = ModuleKind::embedding;
  adapter.weights.modules.insert(std::move(node));
  const auto bytes = gguf_adapter_bytes(adapter);
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(contents.tensors[0].extents, (std::array<std::uint64_t, 4>{2, 3, 1, 1}));
  EXPECT_EQ(contents.tensors[1].extents, (std::array<std::uint64_t, 4>{2, 1, 1, 1}));
  EXPECT_EQ(elements(contents, "token_embd.weight.lora_a"), (std::vector<float>{1, 4, 2, 5, 3, 6}));
}

TEST(WriteGgufAdapter, ModulesAreRenamedAndRowsPermuted) {
  GgufAdapter adapter;
  adapter.architecture = "llama";
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    auto& module = adapter.weights.modules[std::string("model.layers.0.self_attn.") + name];
    module.A = Matrix<float>::Ones(1, 2);
    module.B.resize(8, 1);
    module.B << 0, 1, 2, 3, 4, 5, 6, 7;
  }
  const auto bytes = gguf_adapter_bytes(adapter, {.rename = llama_cpp_name, .rope_heads = GgufHeads{2, 1}});
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(elements(contents, "blk.0.attn_q.weight.lora_b"), (std::vector<float>{0, 2, 1, 3, 4, 6, 5, 7}));
  EXPECT_EQ(elements(contents, "blk.0.attn_k.weight.lora_b"), (std::vector<float>{0, 4, 1, 5, 2, 6, 3, 7}));
  EXPECT_EQ(elements(contents, "blk.0.attn_v.weight.lora_b"), (std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7}));
}

// llama.cpp scales by alpha / rank; s * B A must come out whatever scaling a module has.
TEST(WriteGgufAdapter, ScalingsBeyondTheFilesAlphaGoIntoB) {
  GgufAdapter adapter = small();
  auto& other = adapter.weights.modules["blk.1.attn_v"] = module_of(adapter);
  other.scaling = 16 / std::sqrt(2.0);  // rsLoRA of alpha 16
  auto& third = adapter.weights.modules["blk.2.attn_v"];
  third.A = Matrix<float>::Ones(5, 3);
  third.B = Matrix<float>::Ones(1, 5);
  third.scaling = 4;
  const auto bytes = gguf_adapter_bytes(adapter);
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(std::get<float>(contents.metadata.at("adapter.lora.alpha")), 8.0F);
  EXPECT_EQ(elements(contents, "blk.0.attn_v.weight.lora_b"), (std::vector<float>{7, 8}));
  const auto rslora = elements(contents, "blk.1.attn_v.weight.lora_b");
  EXPECT_FLOAT_EQ(8.0F / 2 * rslora[0], static_cast<float>(other.scaling * 7));
  EXPECT_FLOAT_EQ(8.0F / 2 * rslora[1], static_cast<float>(other.scaling * 8));
  EXPECT_FLOAT_EQ(8.0F / 5 * elements(contents, "blk.2.attn_v.weight.lora_b")[0], 4.0F);
}

TEST(WriteGgufAdapter, TheCallersAlphaCounts) {
  const auto bytes = gguf_adapter_bytes(small(), {.alpha = 2.0});
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(std::get<float>(contents.metadata.at("adapter.lora.alpha")), 2.0F);
  EXPECT_EQ(elements(contents, "blk.0.attn_v.weight.lora_b"), (std::vector<float>{28, 32}));
}

TEST(WriteGgufAdapter, AScalingOfZeroIsNotTheFilesAlpha) {
  GgufAdapter adapter = small();
  adapter.weights.modules["blk.1.attn_v"] = module_of(adapter);
  module_of(adapter).scaling = 0;
  const auto bytes = gguf_adapter_bytes(adapter);
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(std::get<float>(contents.metadata.at("adapter.lora.alpha")), 8.0F);
  EXPECT_EQ(elements(contents, "blk.0.attn_v.weight.lora_b"), (std::vector<float>{0, 0}));
  adapter.weights.modules.erase("blk.1.attn_v");
  EXPECT_EQ(std::get<float>(parse_gguf(gguf_adapter_bytes(adapter)).metadata.at("adapter.lora.alpha")), 1.0F);
}

// A factor of 1 must not be computed as something else: alpha / 3 * 3 is not alpha in double for every alpha.
TEST(WriteGgufAdapter, AModuleOfTheFilesAlphaKeepsItsBits) {
  GgufAdapter adapter = small();
  ModuleWeights<float>& module = module_of(adapter);
  module.A = Matrix<float>::Ones(3, 3);
  module.B = Matrix<float>::Constant(1, 3, 1.1F);
  for (int i = 1; i < 200; ++i) {
    const double alpha = 0.1 * i;
    module.scaling = alpha / 3;
    const auto bytes = gguf_adapter_bytes(adapter, {.alpha = alpha});
    EXPECT_EQ(elements(parse_gguf(bytes), "blk.0.attn_v.weight.lora_b"), (std::vector<float>{1.1F, 1.1F, 1.1F}));
  }
}

TEST(WriteGgufAdapter, OtherMetadataFollowsAndItsOwnPrevails) {
  GgufAdapter adapter = small();
  adapter.metadata["general.name"] = std::string("mine");
  adapter.metadata["general.type"] = std::string("model");
  adapter.metadata["general.alignment"] = std::uint32_t{64};
  const auto bytes = gguf_adapter_bytes(adapter);
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(contents.metadata.at("general.name"), GgufValue(std::string("mine")));
  EXPECT_EQ(contents.metadata.at("general.type"), GgufValue(std::string("adapter")));
  EXPECT_EQ(bytes.size() % 64, 0U);
  EXPECT_EQ(elements(contents, "blk.0.attn_v.weight.lora_b"), (std::vector<float>{7, 8}));
}

TEST(WriteGgufAdapter, StringsInTheMetadataAreBytes) {
  GgufAdapter adapter = small();
  adapter.metadata = {{"k", std::string("\xFF")}, {"tokens", std::vector<std::string>{"\xFE"}}};
  const auto bytes = gguf_adapter_bytes(adapter);
  const auto contents = parse_gguf(bytes);
  EXPECT_EQ(contents.metadata.at("k"), adapter.metadata.at("k"));
  EXPECT_EQ(contents.metadata.at("tokens"), adapter.metadata.at("tokens"));
}

TEST(WriteGgufAdapter, NormsMayStandBesideFactors) {
  GgufAdapter adapter = small();
  adapter.weights.saved["blk.0.attn_norm.weight"] = {{2}, {1.5F, -1.5F}};
  const auto bytes = gguf_adapter_bytes(adapter, {.dtype = Dtype::F16});
  const GgufContents contents = parse_gguf(bytes);
  EXPECT_EQ(contents.tensors.back().type, GgufType::F32);
  EXPECT_EQ(elements(contents, "blk.0.attn_norm.weight"), (std::vector<float>{1.5F, -1.5F}));
}

/// The message of the error that these raise.
template <class Raised>
std::string refusal(const GgufAdapter& adapter, const GgufOptions& options = {}) {
  try {
    static_cast<void>(gguf_adapter_bytes(adapter, options));
    return "";
  } catch (const Raised& error) {
    return error.what();
  }
}

TEST(WriteGgufAdapterRefuses, ByNameWhatTheFormatCannotHold) {
  const auto after = [](auto change) {
    GgufAdapter adapter = small();
    change(module_of(adapter));
    return refusal<ConfigError>(adapter);
  };
  using Module = ModuleWeights<float>;
  const std::string conv = after([](Module& module) { module.kind = ModuleKind::conv1d; });
  EXPECT_NE(conv.find("module \"blk.0.attn_v\""), std::string::npos);
  EXPECT_NE(conv.find("got a convolution"), std::string::npos);
  EXPECT_NE(after([](Module& module) { module.magnitude = RowVector<float>::Ones(1); }).find("got DoRA"),
            std::string::npos);
  EXPECT_NE(after([](Module& module) { module.lora_bias = RowVector<float>::Ones(1); }).find("got a lora_bias"),
            std::string::npos);
  EXPECT_NE(after([](Module& module) {
              module.A.resize(0, 3);
              module.B.resize(1, 0);
            }).find("got rank 0"),
            std::string::npos);
  EXPECT_NE(after([](Module& module) {
              module.scaling = std::numeric_limits<double>::infinity();
            }).find("scaling: expected a finite number, got inf"),
            std::string::npos);
}

TEST(WriteGgufAdapterRefuses, TensorsToReplace) {
  GgufAdapter adapter = small();
  adapter.weights.saved["lm_head.weight"] = {{1, 1}, {1}};
  EXPECT_NE(refusal<ConfigError>(adapter).find("\"lm_head.weight\""), std::string::npos);
}

TEST(WriteGgufAdapterRefuses, NormsOfAnotherShape) {
  GgufAdapter adapter = small();
  adapter.weights.saved["blk.0.attn_norm.weight"] = {{2, 1}, {1, 2}};
  EXPECT_NE(refusal<ShapeError>(adapter).find("\"blk.0.attn_norm.weight\""), std::string::npos);
  adapter.weights.saved["blk.0.attn_norm.weight"] = {{3}, {1, 2}};
  EXPECT_NE(refusal<ShapeError>(adapter), "");
}

TEST(WriteGgufAdapterRefuses, NamesThatDoNotFit) {
  GgufAdapter adapter = small();
  const auto renamed = [&](const std::string& name) {
    return refusal<ConfigError>(adapter, {.rename = [name](std::string_view) { return name; }});
  };
  EXPECT_EQ(renamed(std::string(49, 'n')), "");
  EXPECT_NE(renamed(std::string(50, 'n')).find("less than 64 bytes"), std::string::npos);
  EXPECT_NE(renamed("\xFF").find("UTF-8"), std::string::npos);
  EXPECT_NE(renamed("token_embd").find("a linear module to be called otherwise"), std::string::npos);
  module_of(adapter).kind = ModuleKind::embedding;
  EXPECT_NE(renamed("blk.0.attn_v").find("an embedding to be called token_embd"), std::string::npos);
  module_of(adapter).kind = ModuleKind::linear;
  adapter.weights.modules["other"] = module_of(adapter);
  EXPECT_NE(renamed("same").find("module \"other\""), std::string::npos);
}

TEST(WriteGgufAdapterRefuses, OptionsOutOfRange) {
  EXPECT_NE(refusal<ConfigError>(small(), {.dtype = Dtype::F64}).find("dtype: expected F32, F16 or BF16, got F64"),
            std::string::npos);
  for (const double alpha : {0.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e39, 1e-60}) {
    EXPECT_NE(refusal<ConfigError>(small(), {.alpha = alpha}).find("alpha"), std::string::npos) << alpha;
  }
  EXPECT_NE(refusal<ConfigError>(small(), {.rope_heads = GgufHeads{1, 0}}).find("rope_heads"), std::string::npos);
  GgufAdapter adapter = small();
  adapter.architecture = "";
  EXPECT_NE(refusal<ConfigError>(adapter).find("architecture"), std::string::npos);
}

TEST(WriteGgufAdapterRefuses, AnActivatedLora) {
  GgufAdapter adapter = small();
  adapter.metadata["adapter.alora.invocation_tokens"] = std::vector<std::uint32_t>{1, 2};
  EXPECT_NE(refusal<ConfigError>(adapter).find("adapter.alora.invocation_tokens"), std::string::npos);
}

TEST(WriteGgufAdapterRefuses, MetadataThatDoesNotFit) {
  GgufAdapter adapter = small();
  for (const std::uint32_t alignment : {24U, 131072U}) {
    adapter.metadata["general.alignment"] = alignment;
    EXPECT_NE(refusal<ConfigError>(adapter).find("general.alignment"), std::string::npos);
  }
  adapter.metadata = {{"\xFF", std::string("v")}};
  EXPECT_NE(refusal<ConfigError>(adapter).find("metadata key"), std::string::npos);
  adapter.metadata = {{"", std::string("v")}};
  EXPECT_NE(refusal<ConfigError>(adapter), "");
}

TEST(WriteGgufAdapterRefuses, FactorsThatDoNotFit) {
  GgufAdapter adapter = small();
  module_of(adapter).B.resize(1, 3);
  EXPECT_NE(refusal<ShapeError>(adapter).find("module \"blk.0.attn_v\", B: expected N x 2, got 1 x 3"),
            std::string::npos);
}

TEST(WriteGgufAdapterRefuses, ElementsThatAreNotFiniteAsTheyAreStored) {
  GgufAdapter adapter = small();
  module_of(adapter).B(0, 0) = 1e6F;
  EXPECT_EQ(refusal<StateError>(adapter), "");
  EXPECT_NE(refusal<StateError>(adapter, {.dtype = Dtype::F16}).find("finite in F16"), std::string::npos);
  module_of(adapter).A(0, 0) = std::nanf("");
  EXPECT_NE(refusal<StateError>(adapter).find("module \"blk.0.attn_v\""), std::string::npos);
}

}  // namespace
}  // namespace lora::testing::gguf_adapter_writer_test
