// SPDX-License-Identifier: MIT
// Compiled with -ffast-math, under which the compiler takes every number for a finite one: the reducer must still
// refuse weights that are not.
#include <cstdio>
#include <limits>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/mpi/gradient_reducer.hpp"
#include "lora/mpi/session.hpp"

#if !defined(__FINITE_MATH_ONLY__) || __FINITE_MATH_ONLY__ != 1
#error "compile this with -ffast-math"
#endif

namespace {

int accepted_weights(const lora::mpi::Communicator& world) {
  lora::Trainable<float> trainable{lora::Matrix<float>::Ones(1, 2), {}, {}};
  const std::vector<lora::Parameter<float>> parameters = {trainable.parameter("p", lora::ParameterRole::weight)};
  lora::mpi::GradientReducer<float> reducer(world, parameters);
  int accepted = 0;
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const volatile double weight = bad;  // unknown to the compiler
    try {
      reducer.reduce(parameters, weight);
      std::printf("a weight of %g is accepted\n", weight);
      ++accepted;
    } catch (const lora::ConfigError&) {
    }
  }
  return accepted;
}

}  // namespace

int main(int argc, char** argv) { return lora::mpi::run(argc, argv, accepted_weights); }
