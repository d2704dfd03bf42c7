// SPDX-License-Identifier: MIT
// Multi-head self-attention within each text of a packed batch, with its backward pass.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "lora/core/executor.hpp"
#include "lora/core/types.hpp"
#include "sentence_encoder/packed_texts.hpp"

namespace examples::sentence_encoder {

/// The attention weights of one forward pass, one L x L matrix per text and head, text by text.
template <class Scalar>
struct AttentionRecord {
  std::vector<Scalar> weights;
  std::vector<Scalar> gradients;  ///< scratch of backward
  std::vector<Index> firsts;      ///< where each text's matrices start

  void prepare(const PackedTexts& texts, Index heads) {
    firsts.resize(static_cast<std::size_t>(texts.texts()));
    Index total = 0;
    for (Index i = 0; i < texts.texts(); ++i) {
      firsts[static_cast<std::size_t>(i)] = total;
      total += heads * texts.length(i) * texts.length(i);
    }
    if (weights.size() < static_cast<std::size_t>(total)) weights.resize(static_cast<std::size_t>(total));
  }
};

/// For each text of L tokens and each of H heads of width m: context_h = softmax(Q_h K_h^T / sqrt(m)) V_h, where the
/// rows of qkv (tokens x 3 H m) hold the heads' queries, then the keys, then the values. No parameters.
/// Backward, with P the softmax and dP = dcontext V^T: dV = P^T dcontext, dS = P (dP - rowsum(dP P)) / sqrt(m),
/// dQ = dS K, dK = dS^T Q. Source: Vaswani et al., arXiv 1706.03762, section 3.2.
template <lora::RealScalar Scalar>
class Attention {
 public:
  using Matrix = lora::Matrix<Scalar>;

  explicit Attention(Index heads) : heads_(heads) {}

  /// Fills `record` and `context` (tokens x H m), which has its size.
  void forward(const PackedTexts& texts, const Matrix& qkv, AttentionRecord<Scalar>& record, Matrix& context,
               lora::Executor& executor) const {
    record.prepare(texts, heads_);
    for_each_head(texts, qkv.cols(), executor, [&](const Head& head) {
      auto weights = head.square(record.weights, record.firsts);
      weights.noalias() = head.part(qkv, 0) * head.part(qkv, 1).transpose();
      softmax_rows(weights, head.scale);
      head.part(context, 0).noalias() = weights * head.part(qkv, 2);
    });
  }

  /// Writes dqkv, which has qkv's size.
  void backward(const PackedTexts& texts, const Matrix& qkv, AttentionRecord<Scalar>& record, const Matrix& dcontext,
                Matrix& dqkv, lora::Executor& executor) const {
    if (record.gradients.size() < record.weights.size()) record.gradients.resize(record.weights.size());
    for_each_head(texts, qkv.cols(), executor, [&](const Head& head) {
      const auto weights = head.square(record.weights, record.firsts);
      auto gradient = head.square(record.gradients, record.firsts);
      const auto dout = head.part(dcontext, 0);
      head.part(dqkv, 2).noalias() = weights.transpose() * dout;
      gradient.noalias() = dout * head.part(qkv, 2).transpose();
      for (Index i = 0; i < gradient.rows(); ++i) {
        const Scalar along = gradient.row(i).dot(weights.row(i));
        gradient.row(i).array() = (gradient.row(i).array() - along) * weights.row(i).array() * head.scale;
      }
      head.part(dqkv, 0).noalias() = gradient * head.part(qkv, 1);
      head.part(dqkv, 1).noalias() = gradient.transpose() * head.part(qkv, 0);
    });
  }

 private:
  struct Head {
    Index text;
    Index start;   // first row
    Index length;  // rows
    Index number;
    Index width;
    Index heads;
    Scalar scale;

    // Columns of the head's queries, keys or values (0, 1, 2); of a matrix of one such part, those of part 0.
    template <class M>
    [[nodiscard]] auto part(M& matrix, Index which) const {
      return matrix.block(start, (which * heads + number) * width, length, width);
    }
    [[nodiscard]] Eigen::Map<Matrix> square(std::vector<Scalar>& values, const std::vector<Index>& firsts) const {
      const Index first = firsts[static_cast<std::size_t>(text)] + number * length * length;
      return {values.data() + first, length, length};
    }
  };

  template <class Body>
  void for_each_head(const PackedTexts& texts, Index qkv_width, lora::Executor& executor, const Body& body) const {
    const Index width = qkv_width / (3 * heads_);
    const Scalar scale = Scalar(1) / std::sqrt(static_cast<Scalar>(width));
    lora::parallel_ranges(executor, texts.texts(), 1, [&](Index begin, Index end, int /*worker*/) {
      for (Index text = begin; text < end; ++text) {
        if (texts.length(text) == 0) continue;
        for (Index h = 0; h < heads_; ++h) {
          body(Head{text, texts.start(text), texts.length(text), h, width, heads_, scale});
        }
      }
    });
  }

  static void softmax_rows(Eigen::Map<Matrix>& scores, Scalar scale) {
    for (Index i = 0; i < scores.rows(); ++i) {
      auto row = scores.row(i).array();
      row = ((row - row.maxCoeff()) * scale).exp();
      row /= row.sum();
    }
  }

  Index heads_;
};

}  // namespace examples::sentence_encoder
