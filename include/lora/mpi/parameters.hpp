// SPDX-License-Identifier: MIT
// The parameters of a model on several ranks: that they are the same kind, and the same values to start from.
#pragma once

#include <span>
#include <string>
#include <type_traits>

#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/mpi/agreement.hpp"
#include "lora/mpi/communicator.hpp"
#include "lora/optim/moments.hpp"

namespace lora::mpi {

/// One line a parameter: "encoder.0.qkv.lora_A.weight 8 x 768 float", in order.
template <class Scalar>
[[nodiscard]] std::string layout_text(std::span<const Parameter<Scalar>> parameters) {
  std::string text;
  for (const auto& parameter : parameters) {
    text.append(parameter.name()).append(" ").append(shape_text(parameter.rows(), parameter.cols()));
    text.append(std::is_same_v<Scalar, float> ? " float\n" : " double\n");
  }
  return text;
}

/// Gives every rank the values that rank `root` has, of a layer, a model, or a range of handles. Collective. Gradients
/// and optimiser states stay. Each parameter travels by itself and in place: no allocation but for the comparison of
/// names and shapes before.
/// @throws ConfigError on every rank when names, shapes or scalars differ between ranks; StateError while merged;
/// MpiError
template <ParameterSource Source>
void broadcast_values(const Communicator& ranks, Source&& source, int root = 0) {
  using Scalar = source_scalar_t<Source>;
  const auto& parameters = lora::detail::parameter_range(source);
  const std::span<const Parameter<Scalar>> list = lora::detail::span_of(parameters);
  require_agreement(ranks, "parameters", layout_text(list));
  for (const auto& parameter : list) {
    auto value = parameter.value();
    const int count = detail::checked_count("lora::mpi::broadcast_values", value.size());
    ranks.complete("MPI_Ibcast", [&](MPI_Request* request) {
      return MPI_Ibcast(value.data(), count, detail::datatype<Scalar>(), root, ranks.handle(), request);
    });
  }
}

}  // namespace lora::mpi
