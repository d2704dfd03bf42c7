// SPDX-License-Identifier: MIT
#include <cstdlib>
#include <lora/lora.hpp>

int main() {
  const lora::Matrix<float> W0 = lora::Matrix<float>::Constant(3, 5, 0.5F);
  const lora::LoraLinear<float> layer(W0, {.rank = 2, .alpha = 4}, /*seed=*/42);
  const lora::Matrix<float> Y = layer.infer(lora::Matrix<float>::Ones(4, 5));
  return (Y.array() == 2.5F).all() ? EXIT_SUCCESS : EXIT_FAILURE;
}
