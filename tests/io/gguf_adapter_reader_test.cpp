// SPDX-License-Identifier: MIT
// Adapters in GGUF files built by hand.
#include "lora/io/gguf_adapter_reader.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "io/gguf_bytes.hpp"
#include "lora/format/q8_0.hpp"
#include "lora/io/gguf_names.hpp"

namespace lora::testing::gguf_adapter_reader_test {
namespace {

/// A factor in a file: name, extents, and as many ones, or the numbers 0, 1, ..., as these have.
struct Factor {
  std::string name;
  std::vector<std::uint64_t> extents;
};

/// A file of these F32 tensors, with elements 0, 1, 2, ...
GgufBytes file_of(const std::vector<Factor>& factors, float alpha = 8) {
  GgufBytes file = adapter_header(factors.size(), alpha);
  std::uint64_t offset = 0;
  const auto size_of = [](const Factor& factor) {
    std::uint64_t size = 1;
    for (const auto extent : factor.extents) size *= extent;
    return size;
  };
  for (const auto& factor : factors) {
    file.tensor(factor.name, factor.extents, 0, offset);
    offset += (4 * size_of(factor) + 31) / 32 * 32;
  }
  file.pad(32);
  for (const auto& factor : factors) {
    for (std::uint64_t i = 0; i < size_of(factor); ++i) file.f32(static_cast<float>(i));
    file.pad(32);
  }
  return file;
}

TEST(ReadGgufAdapter, ReadsWhatTheBytesSay) {
  const GgufAdapter adapter = parse_gguf_adapter(small_adapter().bytes());
  EXPECT_EQ(adapter.architecture, "llama");
  EXPECT_EQ(adapter.metadata.size(), 4U);
  ASSERT_EQ(adapter.weights.modules.size(), 1U);
  const ModuleWeights<float>& module = adapter.weights.modules.at("blk.0.attn_v");
  EXPECT_EQ(module.kind, ModuleKind::linear);
  EXPECT_EQ(module.A, (Matrix<float>(2, 3) << 1, 2, 3, 4, 5, 6).finished());
  EXPECT_EQ(module.B, (Matrix<float>(1, 2) << 7, 8).finished());
  EXPECT_EQ(module.scaling, 4.0);
}

TEST(ReadGgufAdapter, FromAFile) {
  const TemporaryFolder folder;
  const std::vector<std::byte> bytes = small_adapter().bytes();
  write_file(folder / "adapter.gguf", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  EXPECT_EQ(read_gguf_adapter(folder / "adapter.gguf").weights.modules.size(), 1U);
  EXPECT_THROW(static_cast<void>(read_gguf_adapter(folder / "none.gguf")), IoError);
  EXPECT_THROW(static_cast<void>(read_gguf_adapter(folder.path())), IoError);
}

TEST(ReadGgufAdapter, NamesTheFileInErrors) {
  const TemporaryFolder folder;
  write_file(folder / "adapter.gguf", "GGUX");
  try {
    static_cast<void>(read_gguf_adapter(folder / "adapter.gguf"));
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("adapter.gguf\", byte 4, magic"), std::string::npos) << error.what();
  }
}

TEST(ReadGgufAdapter, ReadsElementsOf16Bits) {
  GgufBytes file = adapter_header(2);
  file.tensor("m.weight.lora_a", {1, 1}, 1, 0).tensor("m.weight.lora_b", {1, 1}, 30, 32).pad(32);
  file.u8(0x00).u8(0x3E).pad(32).u8(0x20).u8(0xC0);  // 1.5 as F16, -2.5 as BF16
  const GgufAdapter adapter = parse_gguf_adapter(file.bytes());
  EXPECT_EQ(adapter.weights.modules.at("m").A(0, 0), 1.5F);
  EXPECT_EQ(adapter.weights.modules.at("m").B(0, 0), -2.5F);
}

// ggml's own writer leaves trailing extents of 1 out.
TEST(ReadGgufAdapter, RankOneMayHaveOneExtent) {
  const GgufAdapter adapter =
      parse_gguf_adapter(file_of({{"m.weight.lora_a", {3}}, {"m.weight.lora_b", {1, 2}}}).bytes());
  EXPECT_EQ(adapter.weights.modules.at("m").A.rows(), 1);
  EXPECT_EQ(adapter.weights.modules.at("m").A.cols(), 3);
}

TEST(ReadGgufAdapter, TokenEmbeddingsComeTransposed) {
  const GgufAdapter adapter =
      parse_gguf_adapter(file_of({{"token_embd.weight.lora_a", {2, 5}}, {"token_embd.weight.lora_b", {2, 3}}}).bytes());
  const ModuleWeights<float>& module = adapter.weights.modules.at("token_embd");
  EXPECT_EQ(module.kind, ModuleKind::embedding);
  EXPECT_EQ(module.A.rows(), 2);
  EXPECT_EQ(module.A.cols(), 5);
  EXPECT_EQ(module.A(1, 2), 5.0F);
  EXPECT_EQ(module.B.rows(), 3);
}

// get_scale in llama-adapter.h: alpha ? alpha / rank : 1.
TEST(ReadGgufAdapter, WithoutAlphaNothingScales) {
  EXPECT_EQ(parse_gguf_adapter(file_of({{"m.weight.lora_a", {3, 2}}, {"m.weight.lora_b", {2, 1}}}, 0).bytes())
                .weights.modules.at("m")
                .scaling,
            1.0);
  const GgufBytes file = GgufBytes::header(0, 3)
                             .string_value("general.architecture", "llama")
                             .string_value("general.type", "adapter")
                             .string_value("adapter.type", "lora");
  EXPECT_TRUE(parse_gguf_adapter(file.bytes()).weights.modules.empty());
}

TEST(ReadGgufAdapter, ModulesAreRenamedAndRowsPermutedBack) {
  const GgufBytes file = file_of({{"blk.0.attn_q.weight.lora_a", {2, 1}}, {"blk.0.attn_q.weight.lora_b", {1, 8}}});
  const GgufAdapter adapter =
      parse_gguf_adapter(file.bytes(), {.rename = transformers_name, .rope_heads = GgufHeads{2, 1}});
  const Matrix<float>& b = adapter.weights.modules.at("model.layers.0.self_attn.q_proj").B;
  EXPECT_EQ(b, (Matrix<float>(8, 1) << 0, 2, 1, 3, 4, 6, 5, 7).finished());
}

TEST(ReadGgufAdapter, NormsBecomeSavedTensors) {
  const GgufAdapter adapter = parse_gguf_adapter(file_of({{"blk.0.attn_norm.weight", {3}}}).bytes());
  EXPECT_EQ(adapter.weights.saved.at("blk.0.attn_norm.weight").values, (std::vector<float>{0, 1, 2}));
}

/// The message of the error that this file raises.
template <class Raised = FormatError>
std::string refusal(const GgufBytes& file, const GgufOptions& options = {}) {
  try {
    static_cast<void>(parse_gguf_adapter(file.bytes(), options, "file"));
    return "";
  } catch (const Raised& error) {
    return error.what();
  }
}

TEST(ReadGgufAdapterRefuses, AnActivatedLora) {
  GgufBytes file = adapter_header(0, 8, 1);
  file.text("adapter.alora.invocation_tokens").u32(9).u32(4).u64(2).u32(1).u32(2);
  EXPECT_NE(refusal<ConfigError>(file).find("file: expected an adapter that is always active, got one with "
                                            "adapter.alora.invocation_tokens"),
            std::string::npos)
      << refusal<ConfigError>(file);
}

#define EXPECT_REFUSED(file, words) EXPECT_NE(refusal(file).find(words), std::string::npos) << refusal(file)

TEST(ReadGgufAdapterRefuses, FilesThatAreNoLoraAdapter) {
  EXPECT_REFUSED(GgufBytes::header(0, 0), "file, general.type: expected a string, got none");
  EXPECT_REFUSED(GgufBytes::header(0, 1).string_value("general.type", "model"),
                 "general.type: expected \"adapter\", got \"model\"");
  GgufBytes file = GgufBytes::header(0, 2).string_value("general.type", "adapter");
  EXPECT_REFUSED(file.string_value("adapter.type", "control_vector"), "expected \"lora\"");
  file = GgufBytes::header(0, 2).string_value("general.type", "adapter").string_value("adapter.type", "lora");
  EXPECT_REFUSED(file, "general.architecture: expected a string, got none");
  EXPECT_REFUSED(GgufBytes::header(0, 1).float_value("general.type", 1), "expected a string, got another type");
}

TEST(ReadGgufAdapterRefuses, AnAlphaThatIsNoNumber) {
  EXPECT_REFUSED(adapter_header(0, std::nanf("")), "adapter.lora.alpha: expected a finite number");
  const GgufBytes file = GgufBytes::header(0, 4)
                             .string_value("general.architecture", "llama")
                             .string_value("general.type", "adapter")
                             .string_value("adapter.type", "lora")
                             .string_value("adapter.lora.alpha", "8");
  EXPECT_REFUSED(file, "adapter.lora.alpha: expected a float");
}

TEST(ReadGgufAdapterRefuses, FactorsWithoutTheirPair) {
  EXPECT_REFUSED(file_of({{"m.weight.lora_a", {3, 2}}}), "module \"m\": expected lora_a and lora_b, got lora_a alone");
  EXPECT_REFUSED(file_of({{"m.weight.lora_b", {3, 2}}}), "got lora_b alone");
}

TEST(ReadGgufAdapterRefuses, FactorsThatDoNotFit) {
  EXPECT_REFUSED(file_of({{"m.weight.lora_a", {3, 2}}, {"m.weight.lora_b", {3, 1}}}),
                 "module \"m\": expected one rank, got 2 in lora_a, 3 in lora_b");
  EXPECT_REFUSED(file_of({{"m.weight.lora_a", {3, 2, 2}}, {"m.weight.lora_b", {2, 1}}}), "two dimensions");
  EXPECT_REFUSED(file_of({{"m.weight.lora_a", {3, 0}}, {"m.weight.lora_b", {0, 1}}}), "two dimensions of 1 or more");
}

TEST(ReadGgufAdapterRefuses, TensorsOfOtherNames) {
  EXPECT_REFUSED(file_of({{"m.weight", {3, 2}}}), "tensor \"m.weight\"");
  EXPECT_REFUSED(file_of({{"m.lora_a", {3, 2}}}), "ends in .weight.lora_a");
  EXPECT_REFUSED(file_of({{"attn_norm.weight", {3, 2}}}), "one dimension");
}

TEST(ReadGgufAdapterRefuses, OptionsThatDoNotFit) {
  const GgufBytes file = file_of({{"blk.0.attn_q.weight.lora_a", {2, 1}}, {"blk.0.attn_q.weight.lora_b", {1, 8}}});
  EXPECT_NE(refusal<ShapeError>(file, {.rope_heads = GgufHeads{3, 1}}).find("\"blk.0.attn_q\""), std::string::npos);
  EXPECT_NE(refusal<ConfigError>(file, {.rope_heads = GgufHeads{0, 1}}).find("rope_heads"), std::string::npos);
  const GgufBytes two = file_of({{"a.weight.lora_a", {2, 1}},
                                 {"a.weight.lora_b", {1, 8}},
                                 {"b.weight.lora_a", {2, 1}},
                                 {"b.weight.lora_b", {1, 8}}});
  EXPECT_NE(refusal<ConfigError>(two, {.rename = [](std::string_view) { return std::string("c"); }}).find("twice"),
            std::string::npos);
}

// As convert_lora_to_gguf.py --outtype q8_0 writes them.
TEST(ReadGgufAdapter, DecodesFactorsAndNormsInBlocks) {
  Matrix<float> row(1, 32);
  for (Index q = 0; q < 32; ++q) row(0, q) = 0.25F * static_cast<float>(q - 16);
  std::uint8_t q8[34];
  formats::Q8_0::encode(row.data(), q8);
  Matrix<float> decoded(1, 32);
  formats::Q8_0::decode(q8, decoded.data());
  GgufBytes file = adapter_header(3);
  file.tensor("m.weight.lora_a", {32, 1}, 8, 0).tensor("m.weight.lora_b", {1, 1}, 0, 64);
  file.tensor("blk.0.attn_norm.weight", {32}, 8, 96).pad(32);
  for (const std::uint8_t byte : q8) file.u8(byte);
  file.pad(32).f32(2.0F).pad(32);
  for (const std::uint8_t byte : q8) file.u8(byte);
  const GgufAdapter adapter = parse_gguf_adapter(file.bytes());
  const ModuleWeights<float>& module = adapter.weights.modules.at("m");
  EXPECT_EQ(module.A, decoded);
  EXPECT_EQ(module.B(0, 0), 2.0F);
  EXPECT_EQ(adapter.weights.saved.at("blk.0.attn_norm.weight").values,
            std::vector<float>(decoded.data(), decoded.data() + 32));
}

}  // namespace
}  // namespace lora::testing::gguf_adapter_reader_test
