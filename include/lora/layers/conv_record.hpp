// What one forward pass of a convolution leaves for its backward pass.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "lora/adapter/dropout.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/layers/images.hpp"

namespace lora {

/// U = A drop(X) (rank x positions, where positions count over all samples), the dropout bits of X and its extents: all
/// that backward needs beside X and dY. With DoRA also Z, what its magnitude multiplies, and the norms it divides by.
/// Owned by the caller, one per pass that is still to be differentiated; reusing it allocates only to grow.
template <RealScalar Scalar, int Dim>
class ConvRecord {
 public:
  /// Where this batch stands in the dropout sequence; its rows are samples. Set it before the forward pass.
  DropoutPosition position;

  /// Samples of the last forward pass; -1 before the first.
  [[nodiscard]] Index samples() const noexcept { return samples_; }
  /// Spatial extents of its input.
  [[nodiscard]] const ImageExtents<Dim>& extents() const noexcept { return extents_; }
  /// U, rank x positions.
  [[nodiscard]] MatrixView<const Scalar> down_projection() const noexcept {
    return {down_.data(), rank_, positions_, positions_, 1};
  }
  [[nodiscard]] const DropoutBits& dropout_bits() const noexcept { return bits_; }
  /// With DoRA Z, samples x (out_channels * output extents); else without columns.
  [[nodiscard]] MatrixView<const Scalar> unscaled_output() const noexcept {
    return {unscaled_.data(), std::max<Index>(samples_, 0), outputs_, outputs_, 1};
  }
  /// With DoRA the norms of the rows of W0 + s*B*A, out_channels scalars.
  [[nodiscard]] const Scalar* row_norms() const noexcept { return norms_.data(); }

  /// Bytes the last forward pass needs to have kept.
  [[nodiscard]] std::size_t bytes() const noexcept {
    if (samples_ < 0) return 0;
    return static_cast<std::size_t>(rank_ * positions_ + samples_ * outputs_ + channels_) * sizeof(Scalar) +
           bits_.bytes();
  }

  /// Forgets the last pass and keeps its memory. Backward refuses the record until the next forward pass is complete.
  void clear() noexcept {
    samples_ = -1;
    rank_ = 0;
    outputs_ = 0;
    channels_ = 0;
    bits_.clear();
  }

  /// What a forward pass fills.
  struct Room {
    MatrixView<Scalar> down;      ///< rank x positions
    MatrixView<Scalar> unscaled;  ///< samples x (out_channels * output_size) with DoRA
    Scalar* norms;                ///< out_channels with DoRA
  };
  /// Makes room for a pass over `samples` images; `out_channels` is 0 without DoRA. For the forward pass of a layer,
  /// which calls keep() when all is filled.
  [[nodiscard]] Room prepare(Index samples, Index rank, Index output_size, Index out_channels) {
    grow(down_, rank * samples * output_size);
    grow(unscaled_, samples * out_channels * output_size);
    grow(norms_, out_channels);
    return {{down_.data(), rank, samples * output_size, samples * output_size, 1},
            {unscaled_.data(), samples, out_channels * output_size, out_channels * output_size, 1},
            norms_.data()};
  }
  void keep(Index samples, const ImageExtents<Dim>& extents, Index rank, Index output_size,
            Index out_channels) noexcept {
    samples_ = samples;
    extents_ = extents;
    rank_ = rank;
    positions_ = samples * output_size;
    outputs_ = out_channels * output_size;
    channels_ = out_channels;
  }
  [[nodiscard]] DropoutBits& dropout_bits() noexcept { return bits_; }

 private:
  static void grow(std::vector<Scalar>& memory, Index size) {
    if (memory.size() < static_cast<std::size_t>(size)) memory.resize(static_cast<std::size_t>(size));
  }

  Index samples_ = -1;
  ImageExtents<Dim> extents_{};
  Index rank_ = 0;
  Index positions_ = 0;
  Index outputs_ = 0;
  Index channels_ = 0;
  std::vector<Scalar> down_;
  std::vector<Scalar> unscaled_;
  std::vector<Scalar> norms_;
  DropoutBits bits_;
};

}  // namespace lora
