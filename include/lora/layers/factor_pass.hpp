// SPDX-License-Identifier: MIT
// One product with a frozen weight and the adapters that share it, as each kind of layer computes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "lora/adapter/gradients.hpp"
#include "lora/adapter/tape.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/columns.hpp"
#include "lora/kernels/dropout_mask.hpp"
#include "lora/kernels/low_rank.hpp"
#include "lora/kernels/packed_product.hpp"
#include "lora/kernels/row_blocks.hpp"
#include "lora/kernels/transpose.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// The outputs that an adapter adapts: `first.size()` blocks of `features` outputs each, where block e starts at output
/// first[e]. The rows of B, the magnitude and the bias of B are stored block after block; A has `rank` rows for every
/// block. An adapter of all outputs has one block.
struct OutputBlocks {
  Index outputs = 0;   ///< of the layer
  Index features = 0;  ///< of a block
  std::vector<Index> first;

  [[nodiscard]] static OutputBlocks all(Index outputs) { return {outputs, outputs, {0}}; }
  [[nodiscard]] Index count() const noexcept { return static_cast<Index>(first.size()); }
  /// Number of adapted outputs.
  [[nodiscard]] Index adapted() const noexcept { return count() * features; }
  [[nodiscard]] bool whole() const noexcept { return features == outputs; }
  [[nodiscard]] Index begin(Index e) const noexcept { return first[static_cast<std::size_t>(e)]; }

  /// Calls body(adapted, output) for every adapted output: its position in B and in the layer.
  template <class Body>
  void for_each(const Body& body) const {
    for (Index e = 0; e < count(); ++e) {
      for (Index j = 0; j < features; ++j) body(e * features + j, begin(e) + j);
    }
  }
};

/// A product s B A drop(x) that one adapter adds to a pass. An adapter's start is a separate part, with scale -s. With
/// QALoRA `a` is A P, rank x in_features like any other.
template <class Scalar>
struct FactorPart {
  MatrixView<const Scalar> a;
  MatrixView<const Scalar> b;
  Scalar scale = 0;
  DropoutMask<Scalar> mask;
  Index first = 0;                             ///< its first column in U; it has a.rows columns
  Index group = 0;                             ///< inputs that share a column of A with QALoRA; 0 without
  LoraGradients<Scalar>* gradients = nullptr;  ///< where dA and dB are added; null for a part that does not train
};

/// The parts that share one product with the weight: Y = factors (.) (W drop(X) + sum of s B A drop(X)) + W (X -
/// drop(X))
/// + bias; without factors Y = W X + sum of s B A drop(X) + bias.
template <class Scalar>
struct FactorPass {
  std::span<const FactorPart<Scalar>> parts;
  Index rank = 0;                   ///< columns of U for all parts
  const Scalar* bias = nullptr;     ///< of every output, or null
  const Scalar* factors = nullptr;  ///< DoRA's m / n of every output, or null
  MatrixView<Scalar> u;             ///< U, written by forward and read by backward
  MatrixView<Scalar> z;             ///< where forward stores what `factors` multiply; not stored if null
  Scalar* sums = nullptr;           ///< with factors: backward adds the sums of dY (.) Z over rows, output by output

  [[nodiscard]] bool any_mask() const noexcept {
    for (const auto& part : parts) {
      if (part.mask.active()) return true;
    }
    return false;
  }
};

/// The shape of U or Z.
struct MatrixShape {
  Index rows = 0;
  Index cols = 0;
};

/// What passes whose inputs and outputs are rows share: linear layers, embeddings, and their projections.
template <class Scalar>
struct RowPasses {
  static constexpr bool adds_terms = true;

  [[nodiscard]] static MatrixShape down_shape(const BatchShape& batch, Index rank) noexcept {
    return {batch.rows, rank};
  }
  /// target[j] += scale * the sum of column j of dY.
  static void add_output_sums(const MatrixView<const Scalar>& dy, Scalar scale, Scalar* target, Workspace& workspace) {
    kernels::add_column_sums(dy, scale, target, workspace);
  }
};

/// Whether a pass writes the product with the frozen weight, or adds to a result that already contains it.
enum class BaseProduct : std::uint8_t { write, keep };

namespace detail {

/// y += scale * x
template <class Scalar>
void add_rows(const MatrixView<const Scalar>& x, Scalar scale, const MatrixView<Scalar>& y) noexcept {
  for (Index i = 0; i < y.rows; ++i)
    for (Index j = 0; j < y.cols; ++j) y(i, j) += scale * x(i, j);
}

/// The A of all parts, stacked; for a single part, that part's own A.
template <class Scalar>
class StackedDownFactors {
 public:
  StackedDownFactors(const FactorPass<Scalar>& pass, Workspace& workspace)
      : memory_(workspace.matrix<Scalar>(pass.parts.size() > 1 ? pass.rank : 0,
                                         pass.parts.empty() ? 0 : pass.parts.front().a.cols)),
        view_(memory_) {
    if (pass.parts.size() == 1) view_ = pass.parts.front().a;
    if (pass.parts.size() < 2) return;
    for (const FactorPart<Scalar>& part : pass.parts) {
      copy_elements(part.a, memory_.middle_rows(part.first, part.a.rows));
    }
  }
  [[nodiscard]] const MatrixView<const Scalar>& view() const noexcept { return view_; }

 private:
  ScratchMatrix<Scalar> memory_;
  MatrixView<const Scalar> view_;
};

/// Calls body(first adapted output, first output, first column of U) for every block of outputs of a part.
template <class Scalar, class Body>
void for_each_block(const OutputBlocks& blocks, const FactorPart<Scalar>& part, const Body& body) {
  for (Index e = 0; e < blocks.count(); ++e) {
    body(e * blocks.features, blocks.begin(e), part.first + e * part.b.cols);
  }
}

/// The terms (s U) B^T that all parts add to Y, in order. B is read where it lies.
template <class Scalar>
class UpTerms {
 public:
  /// Pre: U has been computed.
  UpTerms(const OutputBlocks& blocks, const FactorPass<Scalar>& pass, Workspace& workspace)
      : blocks_(blocks), pass_(pass), workspace_(workspace), scaled_(workspace.matrix<Scalar>(pass.u.rows, pass.rank)) {
    for (const FactorPart<Scalar>& part : pass.parts) {
      for (Index i = 0; i < scaled_.rows; ++i) {
        for (Index p = part.first; p < part.first + part.a.rows; ++p) scaled_(i, p) = part.scale * pass.u(i, p);
      }
    }
  }

  /// Y = X W^T + bias + the terms.
  void multiply(const WeightRef<Scalar>& weight, const MatrixView<const Scalar>& x, const Scalar* bias,
                const MatrixView<Scalar>& y) const {
    if (pass_.parts.empty() || !blocks_.whole()) {
      weight.product(x, bias, {}, y, workspace_);
      add_to(y);
      return;
    }
    const FactorPart<Scalar>& first = pass_.parts.front();
    weight.product(x, bias, {columns(first.first, first.b.cols), first.b.transpose()}, y, workspace_);
    for (const FactorPart<Scalar>& part : pass_.parts.subspan(1)) add(part, y);
  }

  /// Y += the terms; every element's chain of multiply-adds continues where the product with the weight ended.
  void add_to(const MatrixView<Scalar>& y) const {
    for (const FactorPart<Scalar>& part : pass_.parts) add(part, y);
  }

 private:
  [[nodiscard]] MatrixView<const Scalar> columns(Index first, Index count) const noexcept {
    return scaled_.middle_cols(first, count);
  }
  void add(const FactorPart<Scalar>& part, const MatrixView<Scalar>& y) const {
    for_each_block(blocks_, part, [&](Index adapted, Index output, Index column) {
      kernels::add_low_rank(columns(column, part.b.cols), part.b.middle_rows(adapted, blocks_.features).transpose(),
                            y.middle_cols(output, blocks_.features), workspace_);
    });
  }

  const OutputBlocks& blocks_;
  const FactorPass<Scalar>& pass_;
  Workspace& workspace_;
  ScratchMatrix<Scalar> scaled_;
};

/// V = s dZ B, of U's shape, for all parts.
template <class Scalar>
void project_outputs(const OutputBlocks& blocks, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dz,
                     const MatrixView<Scalar>& v, Workspace& workspace) {
  for (const FactorPart<Scalar>& part : pass.parts) {
    const auto f = workspace.matrix<Scalar>(part.b.cols, kernels::copied_stride<Scalar>(blocks.adapted()));
    kernels::pack_transposed(active_isa(), part.b, blocks.adapted(), f.data, f.row_stride);
    for_each_block(blocks, part, [&](Index adapted, Index output, Index column) {
      kernels::project_down(dz.middle_cols(output, blocks.features), DropoutMask<Scalar>{},
                            MatrixView<const Scalar>(f).middle_cols(adapted, blocks.features), part.scale,
                            v.middle_cols(column, part.b.cols), workspace);
    });
  }
}

/// dB += s dZ^T U, for the parts that train.
template <class Scalar>
void add_up_gradients(const OutputBlocks& blocks, const FactorPass<Scalar>& pass, const MatrixView<const Scalar>& dz,
                      Workspace& workspace) {
  for (const FactorPart<Scalar>& part : pass.parts) {
    if (part.gradients == nullptr) continue;
    const auto db = workspace.matrix<Scalar>(part.b.cols, part.b.rows);
    std::fill_n(db.data, db.rows * db.cols, Scalar(0));
    for_each_block(blocks, part, [&](Index adapted, Index output, Index column) {
      kernels::add_outer(MatrixView<const Scalar>(pass.u).middle_cols(column, part.b.cols),
                         dz.middle_cols(output, blocks.features), DropoutMask<Scalar>{}, part.scale,
                         db.middle_cols(adapted, blocks.features), workspace);
    });
    add_rows(MatrixView<const Scalar>(db).transpose(), Scalar(1), view_of(part.gradients->B));
  }
}

}  // namespace detail
}  // namespace lora
