// SPDX-License-Identifier: MIT
// Laws of reader and writer together: what is written is read, and no bytes make the reader do worse than throw.
#include "lora/io/gguf.hpp"

#include <stdlib.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <string>
#include <utility>
#include <vector>

#include "io/files.hpp"
#include "io/gguf_bytes.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::gguf_test {
namespace {

// rapidcheck would seed itself from the clock. RC_PARAMS in the environment still chooses another seed.
[[maybe_unused]] const int seeded = ::setenv("RC_PARAMS", "seed=20210617", 0);

ModuleWeights<float> module_of(Index rank, Index in, Index out, double scaling, std::uint64_t seed) {
  ModuleWeights<float> module;
  module.A = random_matrix<float>(rank, in, seed);
  module.B = random_matrix<float>(out, rank, seed + 1);
  module.scaling = scaling;
  return module;
}

/// A Llama-like adapter of alpha 16 in transformers' names.
GgufAdapter llama_adapter() {
  GgufAdapter adapter;
  adapter.architecture = "llama";
  adapter.metadata["general.name"] = std::string("tests");
  auto& modules = adapter.weights.modules;
  modules["model.layers.0.self_attn.q_proj"] = module_of(4, 12, 16, 4, 1);
  modules["model.layers.0.self_attn.k_proj"] = module_of(2, 12, 8, 8, 3);
  modules["model.layers.10.mlp.down_proj"] = module_of(1, 7, 12, 16, 5);
  modules["model.embed_tokens"] = module_of(4, 30, 12, 4, 7);
  modules["model.embed_tokens"].kind = ModuleKind::embedding;
  modules["lm_head"] = module_of(4, 12, 30, 4, 9);
  return adapter;
}

void expect_equal(const AdapterWeights<float>& ours, const AdapterWeights<float>& theirs) {
  ASSERT_EQ(ours.modules.size(), theirs.modules.size());
  for (const auto& [name, module] : theirs.modules) {
    ASSERT_EQ(ours.modules.count(name), 1U) << name;
    const auto& other = ours.modules.at(name);
    EXPECT_EQ(other.kind, module.kind) << name;
    EXPECT_EQ(other.A, module.A) << name;
    EXPECT_EQ(other.B, module.B) << name;
    EXPECT_EQ(other.scaling, module.scaling) << name;
  }
}

TEST(Gguf, WhatIsWrittenIsRead) {
  const TemporaryFolder folder;
  const GgufAdapter adapter = llama_adapter();
  write_gguf_adapter(folder / "adapter.gguf", adapter, {.rename = llama_cpp_name, .rope_heads = GgufHeads{4, 2}});
  const GgufAdapter read =
      read_gguf_adapter(folder / "adapter.gguf", {.rename = transformers_name, .rope_heads = GgufHeads{4, 2}});
  EXPECT_EQ(read.architecture, "llama");
  EXPECT_EQ(read.metadata.at("general.name"), GgufValue(std::string("tests")));
  expect_equal(read.weights, adapter.weights);
}

TEST(Gguf, WhatIsReadIsWrittenTheSame) {
  const auto bytes = gguf_adapter_bytes(llama_adapter(), {.rename = llama_cpp_name});
  EXPECT_EQ(gguf_adapter_bytes(parse_gguf_adapter(bytes)), bytes);
}

// Whatever alpha and rank a module has, the delta weight is the one that was written, to two roundings of B.
TEST(Gguf, DeltaWeightsSurviveTheFolding) {
  GgufAdapter adapter = llama_adapter();
  double scaling = 0.3;
  for (auto& entry : adapter.weights.modules) entry.second.scaling = scaling *= -1.7;
  const GgufAdapter read =
      parse_gguf_adapter(gguf_adapter_bytes(adapter, {.rename = llama_cpp_name}), {.rename = transformers_name});
  for (const auto& [name, module] : adapter.weights.modules) {
    const auto delta = [](const ModuleWeights<float>& one) {
      return Matrix<double>(one.scaling * one.B.cast<double>() * one.A.cast<double>());
    };
    const double size = std::abs(module.scaling) * static_cast<double>(module.B.norm() * module.A.norm());
    EXPECT_LT((delta(read.weights.modules.at(name)) - delta(module)).norm(), 2 * 0x1p-24 * size) << name;
  }
}

RC_GTEST_PROP(Gguf, NoChangedByteDoesWorseThanThrow,
              (const std::vector<std::pair<std::uint16_t, std::uint8_t>>& changes)) {
  std::vector<std::byte> bytes = small_adapter().bytes();
  for (const auto& [position, value] : changes) bytes[position % bytes.size()] = static_cast<std::byte>(value);
  try {
    static_cast<void>(parse_gguf_adapter(bytes));
  } catch (const Error&) {
  }
}

TEST(Gguf, NoSingleChangedByteDoesWorseThanThrow) {
  const std::vector<std::byte> whole = small_adapter().bytes();
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const int value : {0, 1, 7, 8, 9, 0x7F, 0x80, 0xFF}) {
      std::vector<std::byte> bytes = whole;
      bytes[i] = static_cast<std::byte>(value);
      try {
        static_cast<void>(parse_gguf_adapter(bytes));
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace
}  // namespace lora::testing::gguf_test
