// SPDX-License-Identifier: MIT
// What a user writes first: a new layer answers like its base layer, in either mode.
#include <cstdlib>
#include <iostream>
#include <lora/lora.hpp>

int main() {
  const lora::Matrix<float> W0 = lora::Matrix<float>::Constant(3, 5, 0.5F);
  const lora::RowVector<float> bias = lora::RowVector<float>::Zero(3);
  lora::LoraLinear<float> layer(W0, bias, {.rank = 2, .alpha = 4}, /*seed=*/42);

  const lora::Matrix<float> X = lora::Matrix<float>::Ones(4, 5);
  layer.eval();
  const lora::Matrix<float> Y = layer.forward(X);
  if (!(Y.array() == 2.5F).all()) {
    std::cerr << "expected 2.5 everywhere, got\n" << Y << '\n';
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
