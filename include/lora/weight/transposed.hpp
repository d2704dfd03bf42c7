// SPDX-License-Identifier: MIT
// A frozen weight used the other way round.
#pragma once

#include <utility>

#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/packed_product.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// The transpose of a readable weight. An embedding whose table is stored in blocks of fewer bits, token after token,
/// takes TransposedWeight<QuantizedWeight<...>>: the blocks run along the embedding's dimensions.
///
/// Models MergeableWeight if the weight does, and otherwise ReadableWeight. A bias is added after W x and before
/// the low-rank terms.
/// Thread safety is that of the weight.
template <ReadableWeight Weight_>
class TransposedWeight {
 public:
  /// The kind of the weight it transposes.
  using Weight = Weight_;
  using Scalar = typename Weight::Scalar;

  TransposedWeight() = default;
  /// Holds `weight`, whose transpose it is.
  explicit TransposedWeight(Weight weight) : weight_(std::move(weight)) {}

  /// The weight as it was given.
  [[nodiscard]] const Weight& transposed() const noexcept { return weight_; }
  [[nodiscard]] Index out_features() const noexcept { return weight_.in_features(); }
  [[nodiscard]] Index in_features() const noexcept { return weight_.out_features(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return weight_.bytes(); }

  void product(const MatrixView<const Scalar>& x, const Scalar* bias, const LowRankTerm<Scalar>& term,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    weight_.product_transposed(x, {}, y, workspace);
    for (Index i = 0; i < y.rows && bias != nullptr; ++i)
      for (Index j = 0; j < y.cols; ++j) y(i, j) += bias[j];
    kernels::add_low_rank(term.down, term.up, y, workspace);
  }
  void product_transposed(const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    weight_.product(dy, nullptr, term, dx, workspace);
  }
  void read(Index first_output, Index first_input, const MatrixView<Scalar>& out) const {
    weight_.read(first_input, first_output, out.transpose());
  }

  /// See MergeableWeight.
  static constexpr WeightStorage storage = storage_of<Weight>;
  [[nodiscard]] bool writable() const noexcept requires MergeableWeight<Weight> { return weight_.writable(); }
  [[nodiscard]] Index tile_count() const noexcept requires MergeableWeight<Weight> { return weight_.tile_count(); }
  [[nodiscard]] WeightTile<StoredElement<Weight>> tile(Index t) requires MergeableWeight<Weight> {
    return turned(weight_.tile(t));
  }
  [[nodiscard]] WeightTile<const StoredElement<Weight>> tile(Index t) const requires MergeableWeight<Weight> {
    return turned(weight_.tile(t));
  }

 private:
  template <class Element>
  [[nodiscard]] static WeightTile<Element> turned(WeightTile<Element> tile) noexcept {
    tile.lines_are_outputs = !tile.lines_are_outputs;
    return tile;
  }

  Weight weight_;
};

}  // namespace lora
