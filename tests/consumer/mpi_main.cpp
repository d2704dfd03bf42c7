// SPDX-License-Identifier: MIT
// A rank alone, without mpirun: gradients stay what they are.
#include <cstdlib>
#include <lora/lora.hpp>
#include <lora/mpi/mpi.hpp>

int main(int argc, char** argv) {
  return lora::mpi::run(argc, argv, [](const lora::mpi::Communicator& ranks) {
    const lora::Matrix<float> W0 = lora::Matrix<float>::Constant(3, 5, 0.5F);
    lora::LoraLinear<float> layer(W0, {.rank = 2, .alpha = 4}, /*seed=*/42);
    lora::mpi::GradientReducer<float> reducer(ranks, layer.parameters());
    layer.gradients().A.setOnes();
    reducer.reduce(layer.parameters(), 1);
    return (layer.gradients().A.array() == 1.0F).all() ? EXIT_SUCCESS : EXIT_FAILURE;
  });
}
