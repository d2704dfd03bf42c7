// The frozen weight of a convolution: merging into it group by group, and taking the update out again.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/shape.hpp"
#include "lora/layers/conv_adapter.hpp"
#include "lora/layers/conv_geometry.hpp"
#include "lora/weight/dense.hpp"
#include "lora/weight/merge_undo.hpp"

namespace lora {

/// W (out_channels x fan_in) of a checked geometry, rows of a group one after the other, and what merging has left to
/// undo itself: a record for each group, because each has an update of its own.
template <RealScalar Scalar, int Dim>
class FrozenConv {
 public:
  /// Copies `w0`, any Eigen object. @throws ShapeError, ConfigError, std::bad_alloc
  template <class W>
  FrozenConv(std::string_view operation, const Eigen::DenseBase<W>& w0, const ConvGeometry<Dim>& geometry)
      : geometry_(geometry) {
    static_assert(std::is_same_v<typename W::Scalar, Scalar>, "lora: the weight's scalar type is not the layer's");
    check_geometry(operation, geometry);
    check_shape(operation, "weight", w0, geometry.out_channels, geometry.fan_in());
    weight_ = w0.derived();
  }

  [[nodiscard]] const ConvGeometry<Dim>& geometry() const noexcept { return geometry_; }
  /// The weight as it is now.
  [[nodiscard]] const Matrix<Scalar>& matrix() const noexcept { return weight_; }
  /// The weight as it was before merge(). A copy.
  [[nodiscard]] Matrix<Scalar> unmerged() const {
    if (records_.empty()) return weight_;
    Matrix<Scalar> result(weight_.rows(), weight_.cols());
    for (Index g = 0; g < geometry_.groups; ++g) {
      const DenseWeight<Scalar> part(rows_of(weight_, g));
      records_[static_cast<std::size_t>(g)].read_unmerged(part, rows_of(result, g));
    }
    return result;
  }
  /// s*B*A, group by group. Allocates the result.
  [[nodiscard]] Matrix<Scalar> delta(const ConvAdapter<Scalar>& adapter) const {
    Matrix<Scalar> result(weight_.rows(), weight_.cols());
    for (Index g = 0; g < geometry_.groups; ++g) write_delta(adapter.update(g), rows_of(result, g));
    return result;
  }

  /// W <- factors (.) (W + s*B*A), where no factors stand for ones. @throws as MergeUndo::merge(); then W is as it
  /// was, bit for bit.
  void merge(std::string_view operation, const ConvAdapter<Scalar>& adapter, std::span<const Scalar> factors) {
    const auto outputs = static_cast<std::size_t>(geometry_.group_outputs());
    records_.reserve(static_cast<std::size_t>(geometry_.groups));
    try {
      for (Index g = 0; g < geometry_.groups; ++g) {
        DenseWeight<Scalar> part(rows_of(weight_, g));
        const auto own = factors.empty() ? factors : factors.subspan(static_cast<std::size_t>(g) * outputs, outputs);
        records_.push_back(MergeUndo<Scalar>::merge(operation, part, adapter.update(g), own));
      }
    } catch (...) {
      unmerge();
      throw;
    }
  }
  /// Restores W bit for bit, also after a merge() that has not reached all groups.
  void unmerge() noexcept {
    for (std::size_t g = 0; g < records_.size(); ++g) {
      DenseWeight<Scalar> part(rows_of(weight_, static_cast<Index>(g)));
      records_[g].unmerge(part);
    }
    records_ = {};
  }

  /// Makes what is merged part of W for good.
  void keep_merged() noexcept { records_ = {}; }

  /// Bytes held beyond W while merged, without the copies of the factors.
  [[nodiscard]] std::size_t merge_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& record : records_) bytes += record.bytes();
    return bytes;
  }

  /// What the passes over `samples` images of extents `input` share; `output` is output_extents(input).
  [[nodiscard]] kernels::ConvShape shape(Index samples, const ImageExtents<Dim>& input, const ImageExtents<Dim>& output,
                                         Index group_rank) const noexcept {
    return {image_walk(geometry_, input, output),
            samples,
            geometry_.groups,
            geometry_.group_inputs(),
            geometry_.group_outputs(),
            group_rank};
  }

 private:
  template <class Rows>
  [[nodiscard]] auto rows_of(Rows& matrix, Index g) const noexcept {
    return view_of(matrix).middle_rows(g * geometry_.group_outputs(), geometry_.group_outputs());
  }

  ConvGeometry<Dim> geometry_;
  Matrix<Scalar> weight_;
  std::vector<MergeUndo<Scalar>> records_;
};

}  // namespace lora
