// SPDX-License-Identifier: MIT
// The values of one adapter over a whole model, independent of any layer: what files hold and models exchange.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "lora/core/finite.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// The kind of an adapted module. Determines the names and shapes of its tensors in files.
enum class ModuleKind : std::uint8_t { linear, embedding, conv1d, conv2d, conv3d };

/// What an adapter has learned for one module, as matrices for every kind: delta weight = scaling * B * A. With pissa
/// and olora that is the delta of W0 without the start, not of W0; plain_adapter gives factors of the latter.
template <RealScalar Scalar>
struct ModuleWeights {
  ModuleKind kind = ModuleKind::linear;  ///< of the adapted layer
  /// rank x in_features; rank x num_embeddings; rank x (in_channels * kernel elements). With QALoRA rank x
  /// in_features / group, and A P takes its place in the delta weight (adapter/qalora.hpp).
  Matrix<Scalar> A;
  /// out_features x rank; embedding_dim x rank; out_channels x rank.
  Matrix<Scalar> B;
  RowVector<Scalar> lora_bias;     ///< out_features, or empty
  RowVector<Scalar> magnitude;     ///< out_features with DoRA, or empty
  std::vector<Index> kernel_size;  ///< of a convolution, one number per dimension
  double scaling = 1;              ///< s: alpha / rank, or alpha / sqrt(rank)
  Index qalora_group_size = 0;     ///< inputs that share a column of A with QALoRA; 0 without

  /// Rows of A.
  [[nodiscard]] Index rank() const noexcept { return A.rows(); }
};

/// A tensor that an adapter replaces whole: a trained bias, or a tensor of a module to save.
template <RealScalar Scalar>
struct SavedTensor {
  std::vector<Index> shape;    ///< as in files
  std::vector<Scalar> values;  ///< row-major
};

/// One adapter: its modules by dotted name ("layers.0.q_proj"), and the tensors it replaces by full name
/// ("layers.0.q_proj.bias", "head.weight"). A value.
template <RealScalar Scalar>
struct AdapterWeights {
  std::map<std::string, ModuleWeights<Scalar>> modules;  ///< by the module's dotted name
  std::map<std::string, SavedTensor<Scalar>> saved;      ///< by the tensor's full name
};

namespace detail {

/// Whether a module's scaling is the one that its configuration gives. PEFT computes that from the file's integers with
/// one or two rounded operations.
[[nodiscard]] inline bool same_scaling(double scaling, double configured) noexcept {
  return is_finite(scaling) &&
         std::abs(scaling - configured) <= 4 * std::numeric_limits<double>::epsilon() * std::abs(configured);
}

}  // namespace detail
}  // namespace lora
