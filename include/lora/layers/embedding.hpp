// SPDX-License-Identifier: MIT
// LoraEmbedding: a frozen table of embeddings with trainable low-rank adapters, also usable as output projection.
#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include "lora/layers/adapted_layer.hpp"
#include "lora/layers/embedding_kind.hpp"
#include "lora/layers/frozen_weight_from.hpp"
#include "lora/weight/matrix_weight.hpp"

namespace lora {

/// y = W[id] + s B A[:, id], with the table W (num_embeddings x embedding_dim) frozen, A (rank x num_embeddings) and B
/// (embedding_dim x rank) trainable, s = alpha / rank (or alpha / sqrt(rank)). A starts at zero and B at N(0, 1); with
/// InitLoraWeights::random both start at N(0, 1). All other initialisations are the same as the first, as in PEFT.
///
/// Backward: dB = s dY^T U with U = A^T[ids], dA by adding s (dY B)_i to column ids_i, sample after sample. Ids have no
/// gradient. Column `padding_idx` of dA is unchanged, as in torch; the output for that id is like any other.
///
/// project(x) = x (W + s A^T B^T)^T uses the same table as output projection (tied embeddings): logits over the ids,
/// without padding. Both uses add to the same gradients.
///
/// With use_dora y is multiplied, dimension by dimension, by m / n, where n is the norm of that dimension of W + s A^T
/// B^T over all ids; the table in project(x) is scaled in the same way. adapter/dora.hpp has the formulas. Every
/// unmerged pass then recomputes n, which takes num_embeddings * embedding_dim * rank multiplications whatever the
/// number of ids.
///
/// The options `dropout`, `fan_in_fan_out` and `bias` have no effect, since ids cannot be dropped, the table has only
/// one orientation (as in PEFT), and there is no bias. torch's max_norm, scale_grad_by_freq and sparse do not exist.
/// Inputs are ids: Eigen vectors or matrices of integers (a matrix row by row), or contiguous ranges of them. Forms of
/// the passes and thread safety: see AdaptedLayer.
///
/// A weight of another kind is passed as the transposed table, embedding_dim x num_embeddings.
///
/// Source: Hu et al., arXiv 2106.09685; PEFT's lora.Embedding; Press and Wolf, arXiv 1608.05859, for tied embeddings.
template <RealScalar ScalarType, ReadableWeight WeightType = MatrixWeight<ScalarType>>
class LoraEmbedding
    : public AdaptedLayer<LoraEmbedding<ScalarType, WeightType>, EmbeddingKind<ScalarType>, WeightType> {
  using Shell = AdaptedLayer<LoraEmbedding, EmbeddingKind<ScalarType>, WeightType>;

 public:
  using Scalar = ScalarType;
  /// The kind of the frozen weight.
  using Weight = WeightType;
  /// What a forward pass leaves for its backward pass.
  using Tape = typename Shell::Tape;
  /// The gradients of the active adapters.
  using Gradients = typename Shell::Gradients;

  /// Keeps a copy of `table` (num_embeddings x embedding_dim), any Eigen matrix, map, block or expression. A negative
  /// `padding_idx` counts from the end, as in torch.
  /// @throws ShapeError when the table is empty; ConfigError, also with lora_bias, or when padding_idx is not a valid
  /// id; std::bad_alloc
  template <class W>
  LoraEmbedding(const Eigen::DenseBase<W>& table, const LoraConfig& config, std::uint64_t seed,
                std::optional<Index> padding_idx = std::nullopt)
      : LoraEmbedding(table_weight(table), config, seed, padding_idx) {}

  /// Over a frozen weight of any kind that can be read, embedding_dim x num_embeddings.
  LoraEmbedding(Weight weight, const LoraConfig& config, std::uint64_t seed,
                std::optional<Index> padding_idx = std::nullopt)
      : Shell(kind_of(weight, padding_idx), std::move(weight), config) {
    this->start(config, seed);
  }

  LoraEmbedding(const LoraEmbedding&) = default;
  LoraEmbedding(LoraEmbedding&&) noexcept = default;
  /// All or nothing. @throws std::bad_alloc
  LoraEmbedding& operator=(const LoraEmbedding& other) { return *this = LoraEmbedding(other); }
  LoraEmbedding& operator=(LoraEmbedding&&) noexcept = default;
  ~LoraEmbedding() override = default;

  /// Rows of the table: ids are 0 to num_embeddings() - 1.
  [[nodiscard]] Index num_embeddings() const noexcept { return this->in_features(); }
  /// Columns of the table: elements of an output row.
  [[nodiscard]] Index embedding_dim() const noexcept { return this->out_features(); }
  /// The id whose column of dA stays zero, counted from the front; nothing if there is none.
  [[nodiscard]] std::optional<Index> padding_idx() const noexcept {
    const Index index = this->kind().padding_idx();
    return index < 0 ? std::nullopt : std::optional<Index>(index);
  }
  /// rank x num_embeddings; empty without an adapter.
  [[nodiscard]] const Matrix<Scalar>& lora_embedding_A() const noexcept { return this->lora_A(); }
  /// embedding_dim x rank; empty without an adapter.
  [[nodiscard]] const Matrix<Scalar>& lora_embedding_B() const noexcept { return this->lora_B(); }

  /// Logits x (W + s A^T B^T)^T: N x num_embeddings for rows of embedding_dim features. Allocates the result and
  /// scratch. Reentrant. @throws ShapeError; StateError like infer()
  template <class Input>
  [[nodiscard]] auto project(const Input& x) const {
    auto y = RowsOf<Input>::make_output(x, num_embeddings());
    Workspace workspace;
    project(x, y, workspace);
    return y;
  }
  /// The same into `y`, which does not overlap x. Reentrant.
  template <class Input, class Output>
  void project(const Input& x, Output&& y, Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const MatrixView<Scalar> out = logits(this->op("project"), y, rows);
      this->require_no_unmerged_dora("project");
      const WeightRef<Scalar> weight = this->weight_ref();
      const Tied tied(weight, this->kind().blocks(), num_embeddings());
      this->engine(tied, weight).infer(rows, nullptr, out, workspace);
    });
  }

  /// project() for training: fills `tape` for project_backward. Reentrant. @throws ShapeError; StateError while merged
  template <class Input, class Output>
  void project_forward(const Input& x, Tape& tape, Output&& y, Workspace& workspace) const {
    tape.clear();
    this->require_nothing_merged(this->op("project_forward"), "layer");
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const MatrixView<Scalar> out = logits(this->op("project_forward"), y, rows);
      const WeightRef<Scalar> weight = this->weight_ref();
      const Tied tied(weight, this->kind().blocks(), num_embeddings());
      this->engine(tied, weight).forward(rows, nullptr, tape, out, workspace);
    });
  }

  /// Adds the gradients for the projection that took `x` and filled `tape`. Reentrant for different `gradients`.
  /// @throws ShapeError; StateError while merged, or when other adapters were active. Nothing changes then.
  template <class Input, class OutputGradient>
  void project_backward(const Input& x, const Tape& tape, const OutputGradient& dy, Gradients& gradients,
                        Workspace& workspace) const {
    const auto pointers = this->given_gradients("project_backward", gradients, workspace);
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& x_rows) {
      with_rows<Scalar>(dy, [&](const MatrixView<const Scalar>& dy_rows) {
        differentiate_projection(x_rows, tape, dy_rows, pointers, nullptr, workspace);
      });
    });
  }
  /// The same, and writes dX into `dx`, of x's shape, which overlaps neither `dy` nor `x`.
  template <class Input, class OutputGradient, class InputGradient>
  void project_backward(const Input& x, const Tape& tape, const OutputGradient& dy, Gradients& gradients,
                        InputGradient&& dx, Workspace& workspace) const {
    const auto pointers = this->given_gradients("project_backward", gradients, workspace);
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& x_rows) {
      differentiate_projection_into(x_rows, tape, dy, pointers, dx, workspace);
    });
  }

  /// In training mode the projection of training, which keeps a copy of x and the tape; otherwise project(x).
  /// @throws ShapeError; StateError in training mode while merged
  template <class Input>
  auto project_forward(const Input& x) {
    auto y = RowsOf<Input>::make_output(x, num_embeddings());
    project_forward(x, y);
    return y;
  }
  /// The same into `y`. Allocates only to grow what the layer keeps.
  template <class Input, class Output>
  void project_forward(const Input& x, Output&& y) {
    if (!this->training()) return project(x, y, this->workspace_);
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      this->require_nothing_merged(this->op("project_forward"), "layer");  // a refusal leaves the last pass
      static_cast<void>(logits(this->op("project_forward"), y, rows));
      projected_.reserve(rows);
      project_forward(rows.map(), projection_tape_, y, this->workspace_);
      projected_.assign(rows);
    });
  }

  /// Adds to the gradients for the last project_forward(x) in training mode and returns dX, of the same type as dY.
  /// @throws ShapeError; StateError before any such pass, or while merged
  template <class OutputGradient>
  auto project_backward(const OutputGradient& dy) {
    auto dx = RowsOf<OutputGradient>::make_output(dy, embedding_dim());
    project_backward(dy, dx);
    return dx;
  }
  /// The same, writing dX into `dx`. Allocates only to grow what the layer keeps.
  template <class OutputGradient, class InputGradient>
  void project_backward(const OutputGradient& dy, InputGradient&& dx) {
    const Tape& tape = projection_tape_;
    if (tape.rows() < 0) {
      throw StateError(this->op("project_backward").text(), "layer", "a project_forward(x) in training mode before",
                       "none");
    }
    const auto pointers = this->own_gradients(this->workspace_);
    differentiate_projection_into(projected_.batch(tape), tape, dy, pointers, dx, this->workspace_);
  }

 protected:
  void forget_passes() noexcept override { projection_tape_.clear(); }

 private:
  using Tied = TiedProjectionPasses<Scalar>;
  using Pointers = ScratchMatrix<Gradients*>;

  template <class W>
  [[nodiscard]] static Weight table_weight(const Eigen::DenseBase<W>& table) {
    static_assert(std::is_same_v<typename W::Scalar, Scalar>, "lora: the table's scalar type is not the layer's");
    if constexpr (std::is_same_v<Weight, MatrixWeight<Scalar>>) {
      return MatrixWeight<Scalar>(Matrix<Scalar>(table.derived()), /*transposed=*/true);
    } else {
      return weight_from<Weight>(table, /*transposed=*/true);
    }
  }
  [[nodiscard]] static EmbeddingKind<Scalar> kind_of(const Weight& weight, std::optional<Index> padding_idx) {
    require_not_empty("LoraEmbedding", weight.out_features(), weight.in_features());
    return EmbeddingKind<Scalar>(weight.in_features(), weight.out_features(),
                                 padding_index("LoraEmbedding", padding_idx, weight.in_features()));
  }

  template <class Output>
  [[nodiscard]] MatrixView<Scalar> logits(const Operation& operation, Output& y,
                                          const MatrixView<const Scalar>& x) const {
    require_shape(operation, "x", -1, embedding_dim(), x.rows, x.cols);
    const MatrixView<Scalar> out = output_rows<Scalar>(operation, "y", y, x.rows, num_embeddings());
    require_apart(operation, "y", out, "x", x);
    return out;
  }

  template <class OutputGradient, class InputGradient>
  void differentiate_projection_into(const MatrixView<const Scalar>& x, const Tape& tape, const OutputGradient& dy,
                                     const Pointers& gradients, InputGradient& dx, Workspace& workspace) const {
    with_rows<Scalar>(dy, [&](const MatrixView<const Scalar>& dy_rows) {
      const Operation operation = this->op("project_backward");
      const MatrixView<Scalar> dx_rows = output_rows<Scalar>(operation, "dx", dx, x.rows, embedding_dim());
      require_apart(operation, "dx", dx_rows, "dy", dy_rows);
      require_apart(operation, "dx", dx_rows, "x", x);
      differentiate_projection(x, tape, dy_rows, gradients, &dx_rows, workspace);
    });
  }
  void differentiate_projection(const MatrixView<const Scalar>& x, const Tape& tape, const MatrixView<const Scalar>& dy,
                                const Pointers& gradients, const MatrixView<Scalar>* dx, Workspace& workspace) const {
    const Operation operation = this->op("project_backward");
    this->require_nothing_merged(operation, "layer");
    if (tape.rows() < 0) throw StateError(operation.text(), "tape", "one that project_forward has filled", "a new one");
    const WeightRef<Scalar> weight = this->weight_ref();
    const Tied tied(weight, this->kind().blocks(), num_embeddings());
    const auto engine = this->engine(tied, weight);
    if (tape.inputs() != embedding_dim() || !engine.fits(tape)) {
      throw StateError(operation.text(), "tape",
                       "one that this layer's project_forward has filled with the adapters of now",
                       "one of another layer or of other adapters");
    }
    require_shape(operation, "x", tape.rows(), embedding_dim(), x.rows, x.cols);
    require_shape(operation, "dy", tape.rows(), num_embeddings(), dy.rows, dy.cols);
    engine.backward(x, tape, dy, {gradients.data, static_cast<std::size_t>(gradients.cols)}, dx, workspace);
  }

  Tape projection_tape_;
  typename LinearKind<Scalar>::Memory projected_;
};

#if defined(LORA_COMPILED)
extern template class LayerCore<EmbeddingKind<float>>;
extern template class LayerCore<EmbeddingKind<double>>;
#endif

}  // namespace lora
