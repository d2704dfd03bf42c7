// SPDX-License-Identifier: MIT
// The training step that LoRA saves: every weight of the layer trains.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/panel.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/weight/packed.hpp"

namespace lora::bench {

/// Y = X W^T + bias with a W (out_features x in_features) that trains, written as well as the library's kernels allow:
/// W lives packed, so that no pass lays it out anew; the gradient dW = dY^T X comes out in that layout, a piece at a
/// time, and AdamW consumes each piece while it is in cache, so that dW is never held whole. One thread.
template <RealScalar Scalar>
class FullUpdateLinear {
 public:
  /// out_features is a multiple of a kernel's width unit, so that the panels hold no padding.
  /// @throws ConfigError otherwise
  FullUpdateLinear(const Matrix<Scalar>& w0, const RowVector<Scalar>& bias, const AdamWOptions& options)
      : weight_(view_of(w0)), bias_(bias), optimizer_(options) {
    if (w0.rows() % kernels::width_unit<Scalar> != 0) {
      throw ConfigError("FullUpdateLinear", "out_features",
                        "a multiple of " + std::to_string(kernels::width_unit<Scalar>), std::to_string(w0.rows()));
    }
    states_.resize(static_cast<std::size_t>(weight_.tile_count()));
    piece_gradient_.resize(static_cast<std::size_t>(max_tile_size));
  }

  [[nodiscard]] Index parameter_count() const noexcept { return weight_.out_features() * weight_.in_features(); }
  [[nodiscard]] const PackedWeight<Scalar>& weight() const noexcept { return weight_; }
  [[nodiscard]] std::size_t moment_bytes() const noexcept {
    std::size_t total = 0;
    for (const auto& state : states_) total += state.bytes();
    return total;
  }

  void forward(const Matrix<Scalar>& x, Matrix<Scalar>& y) {
    weight_.product(view_of(x), bias_.data(), {}, view_of(y), workspace_);
  }

  /// dX (N x in_features) from the weight of the forward pass, then dW and the step of AdamW.
  void backward_and_update(const Matrix<Scalar>& x, const Matrix<Scalar>& dy, Matrix<Scalar>& dx) {
    weight_.product_transposed(view_of(dy), {}, view_of(dx), workspace_);
    const MatrixView<const Scalar> xt = transposed(x);
    auto* const panel =
        panel_.template reserve<Scalar>(static_cast<std::size_t>(kernels::panel_width<Scalar> * dy.rows()));
    Index packed = -1;
    for (Index t = 0; t < weight_.tile_count(); ++t) {
      const WeightTile<Scalar> tile = weight_.tile(t);
      const Index b = tile.first_position / kernels::panel_width<Scalar>;
      if (b != packed) kernels::pack_panel(weight_.isa(), view_of(dy).transpose(), b, panel);
      packed = b;
      multiply_piece(xt.middle_rows(tile.first_line, tile.lines), panel, tile.line_stride);
      const Parameter<Scalar> parameter("weight", ParameterRole::weight, tile.data, piece_gradient_.data(), tile.lines,
                                        tile.line_stride, states_[static_cast<std::size_t>(t)]);
      optimizer_.step({&parameter, 1});
    }
  }

 private:
  // X^T, in_features x N with contiguous rows: read column by column, a power of two of bytes between rows would leave
  // the cache a few sets to live in.
  [[nodiscard]] MatrixView<const Scalar> transposed(const Matrix<Scalar>& x) {
    auto* const data = transposed_.template reserve<Scalar>(static_cast<std::size_t>(x.size()));
    kernels::transpose_kernel<Scalar>(weight_.isa())(x.data(), x.cols(), x.rows(), x.cols(), data, x.rows(), x.rows());
    return {data, x.cols(), x.rows(), x.rows(), 1};
  }

  // gradient (lines x width) = xt (lines x N) * panel (N x width)
  void multiply_piece(const MatrixView<const Scalar>& xt, const Scalar* panel, Index width) {
    const Index block = kernels::even_block(xt.cols, kernels::inner_block<Scalar>);
    kernels::PanelProduct<Scalar> product;
    product.rows = xt.rows;
    product.width = width;
    product.columns = width;
    product.out = piece_gradient_.data();
    product.out_stride = width;
    for (Index i = 0; i < xt.cols; i += block) {
      product.terms.left = &xt(0, i);
      product.terms.left_row = xt.row_stride;
      product.terms.left_step = 1;
      product.terms.right = panel + i * width;
      product.terms.depth = std::min(block, xt.cols - i);
      kernels::multiply_kernel<Scalar>(weight_.isa())(product);
      product.accumulate = true;
    }
  }

  PackedWeight<Scalar> weight_;
  RowVector<Scalar> bias_;
  AdamW<Scalar> optimizer_;
  std::vector<Moments<Scalar>> states_;
  std::vector<Scalar> piece_gradient_;
  AlignedBuffer transposed_;
  AlignedBuffer panel_;
  Workspace workspace_;
};

}  // namespace lora::bench
