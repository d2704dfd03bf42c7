// SPDX-License-Identifier: MIT
// Compiled once as it is and once with -ffast-math, under which compilers reorder sums, divide by multiplying with
// reciprocals and take fused multiply-adds apart: what is promised to have the same bits has them still.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "lora/core/random.hpp"
#include "lora/weight/quantized.hpp"
#include "support/fnv1a.hpp"

namespace {

using lora::Index;
using lora::Matrix;
using lora::testing::fnv1a;

int failures = 0;

void expect_hash(const char* what, std::uint64_t got, std::uint64_t expected) {
  if (got == expected) return;
  std::printf("%s: 0x%016llxU instead of 0x%016llxU\n", what, static_cast<unsigned long long>(got),
              static_cast<unsigned long long>(expected));
  ++failures;
}

Matrix<float> numbers(Index rows, Index cols, std::uint64_t seed) {
  Matrix<float> values(rows, cols);
  lora::fill_uniform(lora::view_of(values), 1.0, lora::RandomStream(seed, 0));
  return values;
}

template <class Weight>
Matrix<float> product(const Weight& weight, const Matrix<float>& x) {
  lora::Workspace workspace;
  Matrix<float> y(x.rows(), weight.out_features());
  weight.product(lora::view_of(x), nullptr, {}, lora::view_of(y), workspace);
  return y;
}

void rows_do_not_depend_on_the_batch() {
  const auto weight = lora::QuantizedWeight<lora::formats::Q8_0>::quantize(lora::view_of(numbers(48, 256, 1)));
  const Matrix<float> x = numbers(2, 256, 2);
  const Matrix<float> together = product(weight, x);
  const Matrix<float> alone = product(weight, Matrix<float>(x.topRows(1)));
  if (std::memcmp(together.data(), alone.data(), 48 * sizeof(float)) == 0) return;
  std::puts("a row of a product depends on the batch");
  ++failures;
}

}  // namespace

int main() {
  Matrix<double> normal(1, 100000);
  lora::fill_normal(lora::view_of(normal), 1.0, lora::RandomStream(42, 0));
  expect_hash("normal deviates", fnv1a(normal.data(), sizeof(double) * 100000), 0x78a7f87d34c86b46U);

  using Int8Weight = lora::QuantizedWeight<lora::formats::Q8_0, lora::Compute::int8>;
  const auto weight = Int8Weight::quantize(lora::view_of(numbers(40, 256, 3)));
  const Matrix<float> y = product(weight, numbers(7, 256, 4));
  expect_hash("a product in 8 bits", fnv1a(y.data(), sizeof(float) * 7 * 40), 0xe46d540049f88e37U);

  rows_do_not_depend_on_the_batch();
  return failures;
}
