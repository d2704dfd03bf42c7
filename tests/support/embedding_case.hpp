// Random tensors for one embedding layer, and the linear layers its two uses amount to.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "lora/layers/embedding.hpp"
#include "support/linear_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {

struct EmbeddingSetting {
  Index n, v, d, r;  // ids, num_embeddings, embedding_dim, rank
};

template <class S>
struct EmbeddingCase {
  explicit EmbeddingCase(const EmbeddingSetting& setting)
      : table(random_matrix<S>(setting.v, setting.d, 1)),
        a(random_matrix<S>(setting.r, setting.v, 2)),
        b(random_matrix<S>(setting.d, setting.r, 3)),
        dy(random_matrix<S>(setting.n, setting.d, 4)),
        x(random_matrix<S>(setting.n, setting.d, 5)),
        dlogits(random_matrix<S>(setting.n, setting.v, 6)),
        config{.rank = setting.r, .alpha = 3} {
    for (Index i = 0; i < setting.n; ++i) ids.push_back((i * i + 3 * i + 1) % setting.v);
  }

  [[nodiscard]] LoraEmbedding<S> layer(std::optional<Index> padding_idx = std::nullopt) const {
    LoraEmbedding<S> result(table, config, 1, padding_idx);
    result.set_factors(a, b);
    return result;
  }

  [[nodiscard]] Matrix<S> one_hot() const {
    Matrix<S> rows = Matrix<S>::Zero(dy.rows(), table.rows());
    for (Index i = 0; i < dy.rows(); ++i) rows(i, ids[static_cast<std::size_t>(i)]) = S(1);
    return rows;
  }

  // Looking up is the product of one-hot rows with the table.
  [[nodiscard]] LinearCase<S> as_linear() const {
    return {one_hot(), table.transpose(), a, b, dy, {}, {}, config.scaling(), {}};
  }
  // The projection is a linear layer whose weight is the table and whose factors are B^T and A^T.
  [[nodiscard]] LinearCase<S> as_projection() const {
    return {x, table, b.transpose(), a.transpose(), dlogits, {}, {}, config.scaling(), {}};
  }

  Matrix<S> table, a, b, dy, x, dlogits;
  LoraConfig config;
  std::vector<std::int64_t> ids;
};

}  // namespace lora::testing
