// SPDX-License-Identifier: MIT
// The order of rows that rotary embeddings want.
#include "lora/io/gguf_adapter.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <utility>

#include "support/random_matrix.hpp"

namespace lora::testing::gguf_adapter_test {
namespace {

Matrix<float> permuted(Matrix<float> b, Index heads, bool to_llama_cpp) {
  detail::permute_rope_rows("test", "module", heads, to_llama_cpp, b);
  return b;
}

// LlamaModel.permute of llama.cpp's converter: reshape(heads, 2, n / heads / 2, r).swapaxes(1, 2).reshape(n, r).
TEST(RopeRows, GoWhereReshapeAndSwapaxesTakeThem) {
  for (const auto& [heads, half] : {std::pair<Index, Index>{1, 1}, {2, 3}, {4, 2}, {3, 8}}) {
    const Matrix<float> b = random_matrix<float>(heads * 2 * half, 3, 1);
    Matrix<float> expected(b.rows(), b.cols());
    for (Index head = 0; head < heads; ++head)
      for (Index c = 0; c < 2; ++c)
        for (Index j = 0; j < half; ++j) expected.row((head * half + j) * 2 + c) = b.row((head * 2 + c) * half + j);
    EXPECT_EQ(permuted(b, heads, true), expected);
  }
}

TEST(RopeRows, OneHeadOfSixByHand) {
  const Matrix<float> b = Eigen::VectorXf::LinSpaced(6, 0, 5);
  Matrix<float> expected(6, 1);
  expected << 0, 3, 1, 4, 2, 5;
  EXPECT_EQ(permuted(b, 1, true), expected);
}

TEST(RopeRows, ComeBack) {
  const Matrix<float> b = random_matrix<float>(24, 2, 2);
  EXPECT_EQ(permuted(permuted(b, 4, true), 4, false), b);
  EXPECT_EQ(permuted(permuted(b, 4, false), 4, true), b);
  EXPECT_EQ(permuted(b, 0, true), b);
}

TEST(RopeRows, ThatHeadsDoNotShareInPairsAreRefused) {
  for (const Index heads : {Index{5}, Index{8}, Index{24}, std::numeric_limits<Index>::max()}) {
    EXPECT_THROW(permuted(Matrix<float>::Zero(24, 1), heads, true), ShapeError) << heads;
  }
}

TEST(RopeHeads, BelongToQueriesAndKeys) {
  EXPECT_EQ(detail::gguf_rope_heads("blk.0.attn_q", {}), 0);
  const GgufOptions options{.rope_heads = GgufHeads{8, 2}};
  EXPECT_EQ(detail::gguf_rope_heads("blk.0.attn_q", options), 8);
  EXPECT_EQ(detail::gguf_rope_heads("blk.0.attn_k", options), 2);
  EXPECT_EQ(detail::gguf_rope_heads("blk.0.attn_v", options), 0);
  EXPECT_EQ(detail::gguf_rope_heads("blk.0.attn_output", options), 0);
}

}  // namespace
}  // namespace lora::testing::gguf_adapter_test
