// SPDX-License-Identifier: MIT
// lora merge between transformers and llama.cpp: where the numbers of heads stand, and what is no number of heads.
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/io/gguf_encoder.hpp"
#include "lora/io/gguf_values.hpp"
#include "tools/tool.hpp"

namespace lora::merge_heads_test {
namespace {

using testing::random_matrix;

// A key of one head of four rows, which another number of heads divides too.
class MergeHeads : public testing::ToolTest {
 protected:
  void SetUp() override {
    AdapterWeights<float> weights;
    weights.modules.emplace(key, update);
    write_adapter("adapter", {.lora = {.rank = 2, .alpha = 4}, .target_modules = {"k_proj"}}, weights);
  }
  void write_model(const GgufMetadata& heads) const {
    detail::GgufEncoder file(32);
    file.add_metadata("general.architecture", std::string("llama"));
    for (const auto& [name, value] : heads) file.add_metadata("llama.attention." + name, value);
    const std::array<std::uint64_t, 2> extents{6, 4};
    std::byte* const bytes = file.add_tensor("blk.0.attn_k.weight", extents, GgufType::F32, 4 * 6 * sizeof(float));
    encode(Dtype::F32, std::span<const float>(base.data(), 4 * 6), bytes);
    const auto all = std::move(file).finish();
    std::ofstream(path("base.gguf"), std::ios::binary)
        .write(reinterpret_cast<const char*>(all.data()), static_cast<std::streamsize>(all.size()));
  }
  [[nodiscard]] Matrix<float> merged() const {
    const auto bytes = testing::read_file(path("out.gguf"));
    return read_gguf_tensor(parse_gguf(bytes).tensors.at(0));
  }
  [[nodiscard]] std::vector<std::string> merge() const {
    return {"merge", path("base.gguf"), path("adapter"), path("out.gguf"), "--force"};
  }
  // The rows of a head of four in llama.cpp's order.
  [[nodiscard]] static Matrix<float> permuted(Matrix<float> rows) {
    rows.row(1).swap(rows.row(2));
    return rows;
  }

  const std::string key = "model.layers.0.self_attn.k_proj";
  const Matrix<float> base = random_matrix<float>(4, 6, 1);
  const ModuleWeights<float> update = module(4, 6, 2);
};

TEST_F(MergeHeads, AreReadAsAnyIntegerOrAsAListOfOneRepeated) {
  const std::vector<GgufValue> ones{std::uint8_t{1},
                                    std::int8_t{1},
                                    std::uint16_t{1},
                                    std::int16_t{1},
                                    std::uint32_t{1},
                                    std::int32_t{1},
                                    std::uint64_t{1},
                                    std::int64_t{1},
                                    std::vector<std::uint32_t>{1, 1},
                                    std::vector<std::int32_t>{1, 1, 1},
                                    std::vector<std::uint64_t>{1}};
  for (const GgufValue& one : ones) {
    write_model({{"head_count", std::int32_t{2}}, {"head_count_kv", one}});
    expect_done(merge());
    expect_near(merged(), base + permuted(delta(update)));
  }
}

TEST_F(MergeHeads, OfKeysAreThoseOfQueriesOnlyWhereNothingIsSaid) {
  write_model({{"head_count", std::uint32_t{1}}});
  expect_done(merge());
  expect_near(merged(), base + permuted(delta(update)));
}

TEST_F(MergeHeads, ThatAreNoNumberAreRefused) {
  const std::vector<GgufValue> others{std::uint32_t{0},
                                      std::int32_t{-1},
                                      std::uint64_t{1} << 40,
                                      1.0F,
                                      true,
                                      std::string("1"),
                                      std::vector<std::uint32_t>{1, 2},
                                      std::vector<std::int32_t>{},
                                      std::vector<float>{1, 1},
                                      std::vector<bool>{true}};
  for (const GgufValue& other : others) {
    write_model({{"head_count", std::uint32_t{2}}, {"head_count_kv", other}});
    expect_refused(merge(), "llama.attention.head_count_kv");
    write_model({{"head_count", other}});
    expect_refused(merge(), "llama.attention.head_count");
  }
  write_model({});
  expect_refused(merge(), "llama.attention.head_count");
}

TEST_F(MergeHeads, ThatAreNoNumberInConfigJsonAreRefused) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model.safetensors", {{key + ".weight", {{4, 6}, base}}});
  GgufAdapter adapter;
  adapter.architecture = "llama";
  adapter.weights.modules.emplace("blk.0.attn_k", update);
  write_gguf_adapter(path("adapter.gguf"), adapter);
  const auto with = [&](const std::string& heads_kv) {
    testing::write_file(path("base/config.json"),
                        R"({"num_attention_heads": 1, "num_key_value_heads": )" + heads_kv + "}");
    return std::vector<std::string>{"merge", path("base"), path("adapter.gguf"), path("out"), "--force"};
  };
  for (const std::string other : {"0", "-1", "1.0", "\"1\"", "[1]"}) expect_refused(with(other), "num_key_value_heads");
  for (const std::string one : {"1", "null"}) {
    expect_done(with(one));
    expect_near(SafetensorsFile::open(path("out/model.safetensors")).matrix<float>(key + ".weight"),
                base + permuted(delta(update)));
  }
}

TEST_F(MergeHeads, AreNotAskedForWhereNamesAndRowsAreThoseOfTransformers) {
  write_tensors("base.safetensors", {{key + ".weight", {{4, 6}, base}}});
  for (const std::string architecture : {"llama", "unknown"}) {
    expect_done(
        {"convert", path("adapter"), path("adapter.gguf"), "--architecture", architecture, "--keep-names", "--force"});
    expect_done({"merge", path("base.safetensors"), path("adapter.gguf"), path("out.safetensors"), "--force"});
    expect_near(tensor("out.safetensors", key + ".weight"), base + delta(update));
  }
}

}  // namespace
}  // namespace lora::merge_heads_test
