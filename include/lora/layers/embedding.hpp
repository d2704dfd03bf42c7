// LoraEmbedding: a frozen table of embeddings with trainable low-rank factors, usable as output projection too.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/dora.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/layers/embedding_ids.hpp"
#include "lora/layers/embedding_passes.hpp"
#include "lora/layers/merge_state.hpp"
#include "lora/layers/remembered_input.hpp"
#include "lora/layers/rows.hpp"
#include "lora/weight/dense.hpp"
#include "lora/weight/merge_undo.hpp"

namespace lora {

/// y = W[id] + s * B A[:, id], with the table W (num_embeddings x embedding_dim) frozen, A (rank x num_embeddings) and
/// B (embedding_dim x rank) trainable, s = alpha / rank (or alpha / sqrt(rank)). A starts at zero and B at N(0, 1),
/// with InitLoraWeights::random both at N(0, 1); every other initialisation is the first one, as in PEFT.
///
/// Backward: dB = s dY^T U with U = A^T[ids], dA by adding s (dY B)_i to column ids_i, sample after sample. Ids have no
/// gradient. Column `padding_idx` of dA stays as it is, as in torch; the answer for that id is like any other.
///
/// project(x) = x (W + s A^T B^T)^T is the same table as output projection (tied embeddings): logits over the ids, with
/// no padding. Both uses add to the same gradients.
///
/// With use_dora y is multiplied, dimension by dimension, by m / n, where n is the norm of the dimension over all ids
/// of W + s A^T B^T, and so is the table in project(x); adapter/dora.hpp has the formulas. Every unmerged pass then
/// computes n anew, which takes num_embeddings * embedding_dim * rank multiplications whatever the number of ids.
///
/// Of the options, `dropout` and `fan_in_fan_out` do nothing, since ids cannot be dropped and the table has one
/// orientation (as in PEFT); `bias` neither, for there is none. torch's max_norm, scale_grad_by_freq and sparse do not
/// exist. Forms of the passes, and threads: as LoraLinear.
///
/// Source: Hu et al., arXiv 2106.09685; PEFT's lora.Embedding; Press and Wolf, arXiv 1608.05859, for tied embeddings.
template <RealScalar ScalarType>
class LoraEmbedding : public MergeState<LoraEmbedding<ScalarType>> {
 public:
  using Scalar = ScalarType;
  using Record = LoraRecord<Scalar>;
  using ProjectionRecord = lora::ProjectionRecord<Scalar>;
  using Gradients = LoraGradients<Scalar>;

  /// Keeps a copy of `table` (num_embeddings x embedding_dim), any Eigen matrix, map, block or expression. A negative
  /// `padding_idx` counts from the end, as in torch.
  /// @throws ShapeError when the table is empty; ConfigError, also with lora_bias, or when padding_idx is none of the
  /// ids; std::bad_alloc
  template <class W>
  LoraEmbedding(const Eigen::DenseBase<W>& table, const LoraConfig& config, std::uint64_t seed,
                std::optional<Index> padding_idx = std::nullopt)
      : table_(nonempty(table)),
        padding_idx_(padding_index("LoraEmbedding", padding_idx, table_.rows())),
        adapter_(make_adapter("LoraEmbedding", config, seed)),
        dora_(make_dora(adapter_)) {}

  [[nodiscard]] Index num_embeddings() const noexcept { return table_.rows(); }
  [[nodiscard]] Index embedding_dim() const noexcept { return table_.cols(); }
  /// num_embeddings, as an update of the table counts.
  [[nodiscard]] Index in_features() const noexcept { return num_embeddings(); }
  /// embedding_dim.
  [[nodiscard]] Index out_features() const noexcept { return embedding_dim(); }
  [[nodiscard]] Index rank() const noexcept { return adapter_.rank(); }
  [[nodiscard]] Scalar scaling() const noexcept { return adapter_.scaling(); }
  [[nodiscard]] const LoraConfig& config() const noexcept { return adapter_.config(); }
  [[nodiscard]] std::uint64_t seed() const noexcept { return adapter_.seed(); }
  [[nodiscard]] std::optional<Index> padding_idx() const noexcept {
    return padding_idx_ < 0 ? std::nullopt : std::optional<Index>(padding_idx_);
  }

  [[nodiscard]] const Matrix<Scalar>& lora_embedding_A() const noexcept { return adapter_.A(); }
  [[nodiscard]] const Matrix<Scalar>& lora_embedding_B() const noexcept { return adapter_.B(); }
  /// DoRA's magnitude, embedding_dim scalars; empty without use_dora.
  [[nodiscard]] const RowVector<Scalar>& magnitude() const noexcept { return dora_.value(); }

  /// The table as inference uses it now, merged or not.
  [[nodiscard]] const Matrix<Scalar>& weight() const noexcept { return table_; }
  /// W, whether or not the layer is merged. A copy, equal bit for bit to what was given.
  [[nodiscard]] Matrix<Scalar> base_weight() const {
    Matrix<Scalar> result(num_embeddings(), embedding_dim());
    merge_undo_.read_unmerged(linear_weight(), view_of(result).transpose());
    return result;
  }
  /// s A^T B^T (num_embeddings x embedding_dim): what merging adds, bit for bit. With DoRA merging then multiplies
  /// every dimension by its magnitude over its norm, which this leaves out, as PEFT's get_delta_weight does.
  [[nodiscard]] Matrix<Scalar> delta_weight() const {
    Matrix<Scalar> result(num_embeddings(), embedding_dim());
    write_delta(adapter_.update(), view_of(result).transpose());
    return result;
  }

  /// Replaces A and B; the magnitude of DoRA stays. @throws ShapeError; StateError while merged. Then nothing has
  /// changed.
  template <class A, class B>
  void set_factors(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    this->require_unmerged("LoraEmbedding::set_factors");
    check_shape("LoraEmbedding::set_factors", "A", a, rank(), num_embeddings());
    check_shape("LoraEmbedding::set_factors", "B", b, embedding_dim(), rank());
    Matrix<Scalar> new_a = a.derived();
    Matrix<Scalar> new_b = b.derived();
    adapter_.A().swap(new_a);
    adapter_.B().swap(new_b);
  }
  /// Replaces the magnitude of DoRA. @throws ShapeError, also without use_dora; StateError while merged.
  template <class M>
  void set_magnitude(const Eigen::DenseBase<M>& magnitude) {
    this->require_unmerged("LoraEmbedding::set_magnitude");
    check_shape("LoraEmbedding::set_magnitude", "magnitude", magnitude, 1, dora_.value().size());
    dora_.value() = magnitude.derived();
  }
  /// Changes alpha, and with it the scaling. @throws ConfigError; StateError while merged.
  void set_alpha(double alpha) {
    this->require_unmerged("LoraEmbedding::set_alpha");
    adapter_.set_alpha("LoraEmbedding::set_alpha", alpha);
  }
  /// Replaces the adapter by a fresh one, with its gradients and optimiser state; the layer's modes stay. Handles from
  /// parameters() become invalid. @throws ConfigError; StateError while merged. Then nothing has changed.
  void reset_adapter(const LoraConfig& config, std::uint64_t seed) {
    this->require_unmerged("LoraEmbedding::reset_adapter");
    auto adapter = make_adapter("LoraEmbedding::reset_adapter", config, seed);
    auto dora = make_dora(adapter);
    adapter_ = std::move(adapter);
    dora_ = std::move(dora);
    gradients_ = {};
    states_ = {};
    record_.clear();
    projection_record_.pass.clear();
  }

  /// The rows of `ids` (N x embedding_dim); a matrix of ids counts row by row. Allocates the result and scratch.
  /// Reentrant. @throws ShapeError, also when an id is not in [0, num_embeddings)
  template <EmbeddingIds Ids>
  [[nodiscard]] Matrix<Scalar> infer(const Ids& ids) const {
    Workspace workspace;
    Matrix<Scalar> y(count(ids), embedding_dim());
    infer(ids, y, workspace);
    return y;
  }
  /// The same into `y`, N x embedding_dim, which is not written when an id is out of range. Reentrant.
  template <EmbeddingIds Ids, class Output>
  void infer(const Ids& ids, Output&& y, Workspace& workspace) const {
    with_ids(ids, [&](const auto& view) {
      const auto out = lookup_output("LoraEmbedding::infer", view, y);
      if (this->merged()) {
        passes().look_up(view, out, workspace);
      } else {
        passes().infer(view, out, workspace);
      }
    });
  }

  /// The forward pass of training. Fills `record` for backward. Reentrant.
  /// @throws ShapeError; StateError while merged. Then nothing has changed.
  template <EmbeddingIds Ids, class Output>
  void forward(const Ids& ids, Record& record, Output&& y, Workspace& workspace) const {
    this->require_unmerged("LoraEmbedding::forward");
    with_ids(ids, [&](const auto& view) {
      const auto out = lookup_output("LoraEmbedding::forward", view, y);
      passes().forward(view, record, out, workspace);
    });
  }

  /// Adds the gradients for the pass that took `ids` and filled `record`. Reentrant for different `gradients`.
  /// @throws ShapeError; StateError while merged. Then nothing has changed.
  template <EmbeddingIds Ids, class OutputGradient>
  void backward(const Ids& ids, const Record& record, const OutputGradient& dy, Gradients& gradients,
                Workspace& workspace) const {
    constexpr std::string_view operation = "LoraEmbedding::backward";
    with_ids(ids, [&](const auto& view) {
      with_rows<Scalar>(dy, [&](const auto& dy_rows) {
        check_record(operation, record, gradients);
        if (view.size() != record.rows()) {
          throw ShapeError(operation, "ids", std::to_string(record.rows()) + " ids", std::to_string(view.size()));
        }
        check_ids(operation, view, num_embeddings());
        check_shape(operation, "dy", dy_rows, record.rows(), embedding_dim());
        passes().backward(view, record, dy_rows, gradients, workspace);
      });
    });
  }

  /// Logits x (W + s A^T B^T)^T: N x num_embeddings for rows of embedding_dim features. Allocates the result and
  /// scratch. Reentrant. @throws ShapeError
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
      const auto out = projection_output("LoraEmbedding::project", rows, y);
      if (this->merged()) {
        passes().project_plain(rows, out, workspace);
      } else {
        passes().project(rows, out, workspace);
      }
    });
  }

  /// project() for training: fills `record` for project_backward. Reentrant. @throws ShapeError; StateError while
  /// merged
  template <class Input, class Output>
  void project_forward(const Input& x, ProjectionRecord& record, Output&& y, Workspace& workspace) const {
    this->require_unmerged("LoraEmbedding::project_forward");
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      const auto out = projection_output("LoraEmbedding::project_forward", rows, y);
      passes().project_forward(rows, record, out, workspace);
    });
  }

  /// Adds the gradients for the projection that took `x` and filled `record`. Reentrant for different `gradients`.
  /// @throws ShapeError; StateError while merged. Then nothing has changed.
  template <class Input, class OutputGradient>
  void project_backward(const Input& x, const ProjectionRecord& record, const OutputGradient& dy, Gradients& gradients,
                        Workspace& workspace) const {
    with_rows<Scalar>(x, [&](const auto& x_rows) {
      with_rows<Scalar>(dy, [&](const auto& dy_rows) {
        check_projection(x_rows, record, dy_rows, gradients);
        passes().project_backward(x_rows, record, dy_rows, gradients, nullptr, workspace);
      });
    });
  }
  /// The same, and writes dX into `dx`, of x's shape, which does not overlap `dy`.
  template <class Input, class OutputGradient, class InputGradient>
  void project_backward(const Input& x, const ProjectionRecord& record, const OutputGradient& dy, Gradients& gradients,
                        InputGradient&& dx, Workspace& workspace) const {
    constexpr std::string_view operation = "LoraEmbedding::project_backward";
    with_rows<Scalar>(x, [&](const auto& x_rows) {
      with_rows<Scalar>(dy, [&](const auto& dy_rows) {
        check_projection(x_rows, record, dy_rows, gradients);
        const auto dx_rows = output_rows<Scalar>(operation, "dx", dx, x_rows.rows, embedding_dim());
        if (overlap(dx_rows, dy_rows)) {
          throw ShapeError(operation, "dx", "memory apart from dy", "overlapping memory");
        }
        passes().project_backward(x_rows, record, dy_rows, gradients, &dx_rows, workspace);
      });
    });
  }

  /// In training mode the forward pass of training, remembering the ids and the record; else infer(ids).
  /// @throws ShapeError; StateError in training mode while merged
  template <EmbeddingIds Ids>
  Matrix<Scalar> forward(const Ids& ids) {
    Matrix<Scalar> y(count(ids), embedding_dim());
    forward(ids, y);
    return y;
  }
  /// The same into `y`. Allocates only to grow what the layer keeps.
  template <EmbeddingIds Ids, class Output>
  void forward(const Ids& ids, Output&& y) {
    if (!this->training()) return infer(ids, y, workspace_);
    remembered_ids_.reserve(static_cast<std::size_t>(count(ids)));
    forward(ids, record_, y, workspace_);
    remembered_ids_.clear();
    with_ids(ids, [&](const auto& view) {
      for (Index i = 0; i < view.size(); ++i) remembered_ids_.push_back(view[i]);
    });
  }

  /// Adds to the gradients for the last forward(ids) in training mode. Allocates only to grow what the layer keeps.
  /// @throws ShapeError; StateError before any such pass, or while merged
  template <class OutputGradient>
  void backward(const OutputGradient& dy) {
    if (record_.rows() < 0) {
      throw StateError("LoraEmbedding::backward", "layer", "a forward(ids) in training mode before", "none");
    }
    backward(remembered_ids_, record_, dy, gradients(), workspace_);
  }

  /// In training mode the projection of training, remembering x (a copy) and the record; else project(x).
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
    if (!this->training()) return project(x, y, workspace_);
    with_rows<Scalar>(x, [&](const MatrixView<const Scalar>& rows) {
      remembered_x_.reserve(rows);
      project_forward(rows.map(), projection_record_, y, workspace_);
      remembered_x_.assign(rows);
    });
  }

  /// Adds to the gradients for the last project_forward(x) in training mode and returns dX, of dY's kind.
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
    const Index rows = projection_record_.rows();
    if (rows < 0) {
      throw StateError("LoraEmbedding::project_backward", "layer", "a project_forward(x) in training mode before",
                       "none");
    }
    const MatrixView<const Scalar> x = remembered_x_.view(rows, embedding_dim());
    project_backward(x.map(), projection_record_, dy, gradients(), dx, workspace_);
  }

  /// Gradients of the right shapes, zero.
  [[nodiscard]] Gradients make_gradients() const {
    Gradients gradients;
    gradients.A = Matrix<Scalar>::Zero(rank(), num_embeddings());
    gradients.B = Matrix<Scalar>::Zero(embedding_dim(), rank());
    gradients.magnitude = RowVector<Scalar>::Zero(magnitude().size());
    return gradients;
  }
  /// The gradients that backward(dy) and project_backward(dy) add to; memory for them comes with the first use.
  [[nodiscard]] Gradients& gradients() {
    if (gradients_.A.rows() != rank() || gradients_.A.cols() != num_embeddings()) gradients_ = make_gradients();
    return gradients_;
  }
  void zero_grad() noexcept { gradients_.set_zero(); }

  /// Handles on what trains, by PEFT's names: "lora_embedding_A", "lora_embedding_B", then
  /// "lora_magnitude_vector.weight" with DoRA. Values cannot be changed through them while the layer is merged. Valid
  /// while the layer stays where it is.
  [[nodiscard]] ParameterList<Scalar> parameters() {
    ParameterList<Scalar> list;
    Gradients& g = gradients();
    const auto add = [&](const char* name, ParameterRole role, auto& value, auto& gradient) {
      list.add_trained(name, role, value, gradient, states_, this->merged_flag());
    };
    add("lora_embedding_A", ParameterRole::lora_A, adapter_.A(), g.A);
    add("lora_embedding_B", ParameterRole::lora_B, adapter_.B(), g.B);
    add("lora_magnitude_vector.weight", ParameterRole::magnitude, dora_.value(), g.magnitude);
    return list;
  }

  /// Number of scalars that train.
  [[nodiscard]] Index trainable_parameter_count() const noexcept {
    return adapter_.A().size() + adapter_.B().size() + magnitude().size();
  }

  /// Runs the passes that the layer remembers on `executor`, which must outlive the layer or be replaced.
  void set_executor(Executor& executor) { workspace_ = Workspace(executor); }

  /// Bytes held beyond W while merged, without the copies of the factors.
  [[nodiscard]] std::size_t merge_bytes() const noexcept { return merge_undo_.bytes(); }
  /// Bytes of W, the factors, and the magnitude with the norms of W.
  [[nodiscard]] std::size_t parameter_bytes() const noexcept {
    const Index scalars = table_.size() + adapter_.A().size() + adapter_.B().size();
    return dora_.bytes() + static_cast<std::size_t>(scalars) * sizeof(Scalar);
  }

 private:
  friend class MergeState<LoraEmbedding>;

  template <class W>
  static Matrix<Scalar> nonempty(const Eigen::DenseBase<W>& table) {
    static_assert(std::is_same_v<typename W::Scalar, Scalar>, "lora: the table's scalar type is not the layer's");
    if (table.rows() < 1 || table.cols() < 1) {
      throw ShapeError("LoraEmbedding", "table", "at least 1 x 1", shape_text(table.rows(), table.cols()));
    }
    return table.derived();
  }

  [[nodiscard]] LoraAdapter<Scalar> make_adapter(std::string_view operation, const LoraConfig& config,
                                                 std::uint64_t seed) const {
    check_config(operation, config);
    if (config.lora_bias) throw ConfigError(operation, "lora_bias", "false for an embedding", "true");
    auto factors = embedding_factors<Scalar>(config, num_embeddings(), embedding_dim(), seed);
    return LoraAdapter<Scalar>(operation, config, seed, std::move(factors));
  }

  [[nodiscard]] DoraMagnitude<Scalar> make_dora(const LoraAdapter<Scalar>& adapter) const {
    if (!adapter.config().use_dora) return {};
    return DoraMagnitude<Scalar>(linear_weight(), adapter.update());
  }

  [[nodiscard]] EmbeddingPasses<Scalar> passes() const noexcept {
    return {view_of(table_), adapter_, dora_, padding_idx_};
  }

  // The table as the weight that s*B*A updates: embedding_dim x num_embeddings.
  [[nodiscard]] DenseWeight<Scalar> linear_weight() const {
    const MatrixView<const Scalar> view = view_of(table_);
    return DenseWeight<Scalar>(view.transpose());
  }

  [[nodiscard]] bool merges_weights() const noexcept { return config().merge_weights; }
  void apply_merge() {
    std::span<const Scalar> factors;
    if (dora_.active()) factors = dora_.factors(linear_weight(), adapter_.update(), workspace_);
    DenseWeight<Scalar> weight(view_of(table_).transpose());
    merge_undo_ = MergeUndo<Scalar>::merge("LoraEmbedding::merge", weight, adapter_.update(), factors);
  }
  void apply_unmerge() noexcept {
    DenseWeight<Scalar> weight(view_of(table_).transpose());
    merge_undo_.unmerge(weight);
    merge_undo_ = {};
  }
  void drop_merged_adapter() {
    auto plain =
        make_adapter("LoraEmbedding::merge_and_unload", {.rank = 0, .merge_weights = config().merge_weights}, 0);
    adapter_ = std::move(plain);
    dora_ = {};
    merge_undo_ = {};
    gradients_ = {};
    states_ = {};
    record_.clear();
    projection_record_.pass.clear();
  }

  template <class Ids>
  [[nodiscard]] static Index count(const Ids& ids) noexcept {
    return static_cast<Index>(std::size(ids));
  }

  template <class Id, class Output>
  [[nodiscard]] MatrixView<Scalar> lookup_output(std::string_view operation, const IdView<Id>& ids, Output& y) const {
    const auto out = output_rows<Scalar>(operation, "y", y, ids.size(), embedding_dim());
    check_ids(operation, ids, num_embeddings());
    return out;
  }

  template <class Output>
  [[nodiscard]] MatrixView<Scalar> projection_output(std::string_view operation, const MatrixView<const Scalar>& x,
                                                     Output& y) const {
    check_shape(operation, "x", x, -1, embedding_dim());
    const auto out = output_rows<Scalar>(operation, "y", y, x.rows, num_embeddings());
    if (overlap(x, out)) throw ShapeError(operation, "y", "memory apart from x", "overlapping memory");
    return out;
  }

  void check_record(std::string_view operation, const Record& record, const Gradients& gradients) const {
    this->require_unmerged(operation);
    if (record.rows() < 0) throw StateError(operation, "record", "one that a forward pass has filled", "a new one");
    check_shape(operation, "record", record.down_projection(), -1, rank());
    check_shape(operation, "record", record.unscaled_output(), -1, magnitude().size());
    check_shape(operation, "gradients.A", gradients.A, rank(), num_embeddings());
    check_shape(operation, "gradients.B", gradients.B, embedding_dim(), rank());
    check_shape(operation, "gradients.magnitude", gradients.magnitude, 1, magnitude().size());
  }

  void check_projection(const MatrixView<const Scalar>& x, const ProjectionRecord& record,
                        const MatrixView<const Scalar>& dy, const Gradients& gradients) const {
    constexpr std::string_view operation = "LoraEmbedding::project_backward";
    check_record(operation, record.pass, gradients);
    check_shape(operation, "x", x, record.rows(), embedding_dim());
    check_shape(operation, "dy", dy, record.rows(), num_embeddings());
  }

  Matrix<Scalar> table_;
  Index padding_idx_;  // -1 where there is none
  LoraAdapter<Scalar> adapter_;
  DoraMagnitude<Scalar> dora_;
  MergeUndo<Scalar> merge_undo_;
  Gradients gradients_;
  std::array<Moments<Scalar>, 3> states_;
  Record record_;
  ProjectionRecord projection_record_;
  std::vector<std::int64_t> remembered_ids_;
  RememberedInput<Scalar> remembered_x_;
  Workspace workspace_;
};

}  // namespace lora
