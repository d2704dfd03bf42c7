// SPDX-License-Identifier: MIT
// What one forward pass records for its backward pass.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "lora/adapter/dropout.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace lora {

/// The size of a batch.
struct BatchShape {
  Index rows = -1;                    ///< samples of a convolution
  Index inputs = 0;                   ///< of a row
  std::array<Index, 3> extents = {};  ///< of the images of a convolution
};

/// Everything the backward pass of a layer needs besides its input X and the gradient dY. For every active adapter
/// these are the dropout bits and U = drop(X) A^T (N x rank), and with DoRA also Z (N x out_features), which the
/// magnitude multiplies, and the norms it is divided by. Owned by the caller, one for each pass still to be
/// differentiated; reuse allocates only to grow.
///
/// A tape is complete once its forward pass has ended. After a pass that throws, backward refuses the tape.
template <RealScalar Scalar>
class LoraTape {
 public:
  /// The position of this batch in the dropout sequence of every adapter. Set it before the forward pass.
  DropoutPosition position;

  /// Rows of the batch (samples of a convolution) of the last forward pass; -1 before the first.
  [[nodiscard]] Index rows() const noexcept { return batch_.rows; }

  /// Bytes kept from the last forward pass: with one adapter in float 4 N r + N ceil(k / 8), and with DoRA another 4 N
  /// d + 8 d.
  [[nodiscard]] std::size_t bytes() const noexcept {
    if (rows() < 0) return 0;
    std::size_t total = 0;
    for (std::size_t i = 0; i < adapter_count_; ++i) total += adapters_[i].bits.bytes();
    for (std::size_t i = 0; i < pass_count_; ++i) total += passes_[i].bytes();
    return total;
  }

  /// Forgets the last pass and keeps its memory.
  void clear() noexcept {
    batch_.rows = -1;
    adapter_count_ = 0;
    pass_count_ = 0;
  }

  /// What is kept for one adapter that took part.
  struct Adapter {
    std::uint64_t id = 0;  ///< of the adapter in its layer
    Index rank = 0;        ///< this adapter's columns of U
    bool drops = false;    ///< whether it dropped elements of its input
    DropoutBits bits;      ///< of the kept elements; empty unless it drops
  };

  /// What is kept for one product with the weight: the adapters computed within it share U.
  class Pass {
   public:
    /// U, N x the sum of the ranks that share this product.
    [[nodiscard]] MatrixView<Scalar> down() noexcept { return {down_.data(), rows_, cols_, cols_, 1}; }
    /// U, N x the sum of the ranks that share this product.
    [[nodiscard]] MatrixView<const Scalar> down() const noexcept { return {down_.data(), rows_, cols_, cols_, 1}; }
    /// With DoRA Z, N x out_features; otherwise empty.
    [[nodiscard]] MatrixView<Scalar> unscaled() noexcept { return {unscaled_.data(), z_rows_, z_cols_, z_cols_, 1}; }
    /// With DoRA Z, N x out_features; otherwise empty.
    [[nodiscard]] MatrixView<const Scalar> unscaled() const noexcept {
      return {unscaled_.data(), z_rows_, z_cols_, z_cols_, 1};
    }
    /// With DoRA one norm for each adapted output.
    [[nodiscard]] double* norms() noexcept { return norms_.data(); }
    /// With DoRA one norm for each adapted output.
    [[nodiscard]] const double* norms() const noexcept { return norms_.data(); }

    /// Room for U of this shape. @throws std::bad_alloc
    void reserve_down(Index rows, Index cols) {
      grow(down_, rows * cols);
      rows_ = rows;
      cols_ = cols;
      z_rows_ = z_cols_ = norm_count_ = 0;
    }
    /// Room for Z of this shape and for `norms` norms. @throws std::bad_alloc
    void reserve_unscaled(Index rows, Index cols, Index norms) {
      grow(unscaled_, rows * cols);
      grow(norms_, norms);
      z_rows_ = rows;
      z_cols_ = cols;
      norm_count_ = norms;
    }
    [[nodiscard]] std::size_t bytes() const noexcept {
      return static_cast<std::size_t>(rows_ * cols_ + z_rows_ * z_cols_) * sizeof(Scalar) +
             static_cast<std::size_t>(norm_count_) * sizeof(double);
    }

   private:
    template <class T>
    static void grow(std::vector<T>& memory, Index size) {
      if (memory.size() < static_cast<std::size_t>(size)) memory.resize(static_cast<std::size_t>(size));
    }

    Index rows_ = 0;
    Index cols_ = 0;
    Index z_rows_ = 0;
    Index z_cols_ = 0;
    Index norm_count_ = 0;
    std::vector<Scalar> down_;
    std::vector<Scalar> unscaled_;
    std::vector<double> norms_;
  };

  /// For the forward pass of a layer: forgets the last pass and makes room for the adapters and products of a new one.
  /// Fill these before finish(). @throws std::bad_alloc
  void start(std::size_t adapters, std::size_t passes) {
    clear();
    if (adapters_.size() < adapters) adapters_.resize(adapters);
    if (passes_.size() < passes) passes_.resize(passes);
    adapter_count_ = adapters;
    pass_count_ = passes;
  }
  /// Marks the tape as complete.
  void finish(const BatchShape& batch) noexcept { batch_ = batch; }

  /// Of the last forward pass.
  [[nodiscard]] const BatchShape& batch() const noexcept { return batch_; }
  /// Elements of an input row of the last forward pass.
  [[nodiscard]] Index inputs() const noexcept { return batch_.inputs; }
  /// Adapters that took part in the last forward pass.
  [[nodiscard]] std::size_t adapter_count() const noexcept { return adapter_count_; }
  /// What is kept for adapter i, below adapter_count().
  [[nodiscard]] Adapter& adapter(std::size_t i) noexcept { return adapters_[i]; }
  /// What is kept for adapter i, below adapter_count().
  [[nodiscard]] const Adapter& adapter(std::size_t i) const noexcept { return adapters_[i]; }
  /// Products with the weight in the last forward pass.
  [[nodiscard]] std::size_t pass_count() const noexcept { return pass_count_; }
  /// What is kept for product i, below pass_count().
  [[nodiscard]] Pass& pass(std::size_t i) noexcept { return passes_[i]; }
  /// What is kept for product i, below pass_count().
  [[nodiscard]] const Pass& pass(std::size_t i) const noexcept { return passes_[i]; }

 private:
  BatchShape batch_;
  std::size_t adapter_count_ = 0;
  std::size_t pass_count_ = 0;
  std::vector<Adapter> adapters_;
  std::vector<Pass> passes_;
};

/// The same class under its former name.
template <RealScalar Scalar>
using LoraRecord = LoraTape<Scalar>;

}  // namespace lora
