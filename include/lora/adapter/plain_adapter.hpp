// SPDX-License-Identifier: MIT
// Converts an adapter of a residual weight into a plain adapter of the original weight.
#pragma once

#include <cmath>
#include <string_view>

#include "lora/adapter/config.hpp"
#include "lora/core/shape.hpp"

namespace lora {

/// An adapter of W0 itself: `config` has twice the rank, and an alpha that gives the same scaling.
template <RealScalar Scalar>
struct PlainAdapter {
  LoraConfig config;  ///< the adapter's, with twice its rank and an alpha of the same scaling
  Matrix<Scalar> A;   ///< 2 rank x in_features
  Matrix<Scalar> B;   ///< out_features x 2 rank
};

/// An adapter initialised with pissa or olora belongs to the residual W0 - s*B0*A0. Its update of W0 is s (B A - B0 A0)
/// = s [B, -B0] [A; A0], an adapter of twice the rank that any software can load on the original weight. `A0` and `B0`
/// are the factors at the start of training. The scaling stays the same: alpha becomes 2 alpha, or sqrt(2) alpha with
/// use_rslora. With use_dora the magnitude is unchanged, since it was trained with the matrix W0 + s (B A - B0 A0).
/// Allocates the result. Source: PEFT's subtract_mutated_init and save_pretrained.
/// @throws ShapeError
template <class DerivedA, class DerivedB, class DerivedA0, class DerivedB0>
[[nodiscard]] PlainAdapter<typename DerivedA::Scalar> plain_adapter(const LoraConfig& config,
                                                                    const Eigen::MatrixBase<DerivedA>& A,
                                                                    const Eigen::MatrixBase<DerivedB>& B,
                                                                    const Eigen::MatrixBase<DerivedA0>& A0,
                                                                    const Eigen::MatrixBase<DerivedB0>& B0) {
  constexpr std::string_view operation = "plain_adapter";
  check_shape(operation, "A", A, config.rank, -1);
  check_shape(operation, "B", B, -1, config.rank);
  check_shape(operation, "A0", A0, A.rows(), A.cols());
  check_shape(operation, "B0", B0, B.rows(), B.cols());
  PlainAdapter<typename DerivedA::Scalar> plain{config, {2 * A.rows(), A.cols()}, {B.rows(), 2 * B.cols()}};
  plain.config.rank *= 2;
  plain.config.alpha *= config.use_rslora ? std::sqrt(2.0) : 2.0;
  plain.config.init_lora_weights = InitLoraWeights::kaiming_uniform;
  plain.config.pissa_niter = 0;
  if (plain.A.size() > 0) plain.A << A.derived(), A0.derived();
  if (plain.B.size() > 0) plain.B << B.derived(), -B0.derived();
  return plain;
}

}  // namespace lora
