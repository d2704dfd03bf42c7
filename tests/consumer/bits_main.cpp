// SPDX-License-Identifier: MIT
// Prints the bits of what a few steps of training and merging give, for a comparison between two ways to build.
#include <cstdio>
#include <cstring>
#include <lora/lora.hpp>

namespace {

// FNV-1a over the bytes.
template <class Scalar>
void print(const char* name, const lora::Matrix<Scalar>& matrix) {
  unsigned long long hash = 0xcbf29ce484222325U;
  for (const Scalar value : matrix.reshaped()) {
    unsigned char bytes[sizeof(Scalar)];
    std::memcpy(bytes, &value, sizeof(Scalar));
    for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3U;
  }
  std::printf("%s %016llx\n", name, hash);
}

template <class Scalar>
lora::Matrix<Scalar> numbers(lora::Index rows, lora::Index columns, unsigned seed) {
  lora::Matrix<Scalar> matrix(rows, columns);
  for (Scalar& value : matrix.reshaped()) {
    seed = seed * 1664525U + 1013904223U;
    value = static_cast<Scalar>(seed >> 8U) / 16777216 - Scalar(0.5);
  }
  return matrix;
}

template <class Scalar>
void run() {
  constexpr lora::Index outputs = 67;
  constexpr lora::Index inputs = 45;
  const auto W0 = numbers<Scalar>(outputs, inputs, 1);
  const auto X = numbers<Scalar>(19, inputs, 2);
  const auto target = numbers<Scalar>(19, outputs, 3);
  lora::LoraLinear<Scalar> layer(W0, {.rank = 5, .alpha = 10, .dropout = 0.1F}, /*seed=*/42);
  lora::AdamW<Scalar> optimizer({.learning_rate = 1e-2F});
  layer.train();
  for (int step = 0; step < 4; ++step) {
    const lora::Matrix<Scalar> Y = layer.forward(X);
    print<Scalar>("Y", Y);
    print<Scalar>("dX", layer.backward(Y - target));
    optimizer.step(layer.parameters());
    layer.zero_grad();
  }
  print<Scalar>("A", layer.lora_A());
  print<Scalar>("B", layer.lora_B());
  layer.eval();
  print<Scalar>("merged", layer.weight());
  print<Scalar>("inferred", layer.forward(X));
  layer.train();
  print<Scalar>("unmerged", layer.weight());
}

}  // namespace

int main() {
  run<float>();
  run<double>();
}
