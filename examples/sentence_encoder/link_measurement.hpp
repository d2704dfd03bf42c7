// SPDX-License-Identifier: MIT
// How long the ranks at hand take to average gradients.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/mpi/communicator.hpp"
#include "lora/mpi/gradient_reducer.hpp"
#include "sentence_encoder/traffic.hpp"

namespace examples::sentence_encoder {

/// Times GradientReducer::reduce for gradients of `sizes` floats: after one reduction that is not counted, the median
/// of `repetitions`, each begun together and counted until the last rank has its result. Collective; every rank gets
/// the same numbers. @throws lora::ConfigError for a size or a number of repetitions below 1; lora::mpi::MpiError
[[nodiscard]] inline std::vector<ReductionTime> measure_reductions(const lora::mpi::Communicator& ranks,
                                                                   std::span<const lora::Index> sizes,
                                                                   int repetitions = 11) {
  constexpr std::string_view operation = "measure_reductions";
  if (repetitions < 1) throw lora::ConfigError(operation, "repetitions", "at least 1", std::to_string(repetitions));
  std::vector<ReductionTime> result;
  for (const lora::Index size : sizes) {
    if (size < 1) throw lora::ConfigError(operation, "sizes", "at least 1 scalar", std::to_string(size));
    lora::Trainable<float> tensor;
    tensor.value = lora::Matrix<float>::Zero(1, size);
    const std::vector<lora::Parameter<float>> parameters = {tensor.parameter("measured", lora::ParameterRole::weight)};
    lora::mpi::GradientReducer<float> reducer(ranks, parameters);
    std::vector<double> seconds;
    for (int i = 0; i <= repetitions; ++i) {
      ranks.barrier();
      const auto begin = std::chrono::steady_clock::now();
      reducer.reduce(parameters, 1);
      const double mine = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      double slowest = 0;
      ranks.complete("MPI_Iallreduce", [&](MPI_Request* request) {
        return MPI_Iallreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, ranks.handle(), request);
      });
      if (i > 0) seconds.push_back(slowest);
    }
    const auto middle = seconds.begin() + repetitions / 2;
    std::ranges::nth_element(seconds, middle);
    result.push_back({static_cast<double>(size) * sizeof(float), *middle});
  }
  return result;
}

}  // namespace examples::sentence_encoder
