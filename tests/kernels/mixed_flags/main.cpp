// SPDX-License-Identifier: MIT
// Compiled without any -march and linked with native.cpp, which is compiled with -march=native: weights made in one
// unit must work in the other, with the same bits, whichever copy of an inline function the linker keeps.
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "products.hpp"

namespace {

std::vector<float> numbers(lora::Index count, unsigned seed) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    seed = seed * 1664525U + 1013904223U;
    value = static_cast<float>(seed >> 8U) / 16777216.0F - 0.5F;
  }
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

int main() {
  using mixed_flags::inputs;
  using mixed_flags::outputs;
  using mixed_flags::rows;
  const std::vector<float> elements = numbers(outputs * inputs, 1);
  const std::vector<float> x = numbers(rows * inputs, 2);
  auto plain = std::make_unique<lora::PackedWeight<float>>(mixed_flags::make_weight(elements.data()));
  auto native = std::make_unique<lora::PackedWeight<float>>(mixed_flags::make_weight_native(elements.data()));
  std::array<std::vector<float>, 4> y;
  std::array<std::vector<float>, 4> dx;
  for (std::size_t i = 0; i < 4; ++i) {
    y.at(i).resize(static_cast<std::size_t>(rows * outputs));
    dx.at(i).resize(static_cast<std::size_t>(rows * inputs));
    const auto& weight = i < 2 ? *plain : *native;
    const auto run = i % 2 == 0 ? &mixed_flags::run_products : &mixed_flags::run_products_native;
    run(weight, x.data(), y.at(i).data(), dx.at(i).data());
  }
  for (std::size_t i = 1; i < 4; ++i) {
    if (!same_bits(y.at(i), y.at(0)) || !same_bits(dx.at(i), dx.at(0))) {
      std::printf("results differ between translation units (%zu)\n", i);
      return 1;
    }
  }
  std::puts("same bits from both translation units");
  return 0;
}
