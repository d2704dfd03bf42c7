// The parameters of a model on several ranks: checks that they match, and gives all ranks the same initial values.
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

/// One line per parameter: "encoder.0.qkv.lora_A.weight 8 x 768 float", in order.
template <class Scalar>
[[nodiscard]] std::string layout_text(std::span<const Parameter<Scalar>> parameters) {
  std::string text;
  for (const auto& parameter : parameters) {
    text.append(parameter.name()).append(" ").append(shape_text(parameter.rows(), parameter.cols()));
    text.append(std::is_same_v<Scalar, float> ? " float\n" : " double\n");
  }
  return text;
}

/// Gives every rank the values that rank `root` has. Collective. Gradients and optimiser states stay.
/// Each parameter is sent separately and in place: only the preceding comparison of names and shapes allocates.
/// @throws ConfigError on every rank when names, shapes or scalars differ between ranks; StateError while merged;
/// MpiError
template <class Range>
  requires ParameterRange<const Range>
void broadcast_values(const Communicator& ranks, const Range& parameters, int root = 0) {
  using Scalar = parameter_scalar_t<const Range>;
  const std::span<const Parameter<Scalar>> list(parameters);
  require_agreement(ranks, "parameters", layout_text(list));
  for (const auto& parameter : list) {
    auto value = parameter.value();
    const int count = detail::checked_count("lora::mpi::broadcast_values", value.size());
    detail::check("MPI_Bcast", MPI_Bcast(value.data(), count, detail::datatype<Scalar>(), root, ranks.handle()));
  }
}

}  // namespace lora::mpi
