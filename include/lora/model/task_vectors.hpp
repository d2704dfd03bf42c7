// SPDX-License-Identifier: MIT
// Arithmetic on task vectors (differences of fine-tuned models): pruning, sign election, weighted merging.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/philox.hpp"
#include "lora/core/rounding.hpp"
#include "lora/core/types.hpp"
#include "lora/model/combine_options.hpp"

namespace lora {

/// Keeps the k = trunc(density * n) elements of largest magnitude and sets the others to zero. Among equal magnitudes
/// at the threshold the first elements are kept (torch.topk does not specify which). Linear time; allocates n scalars.
/// @throws ConfigError unless density is in [0, 1]; std::bad_alloc. Pre: no element is a NaN.
/// Source: the first step of TIES, Yadav et al., arXiv 2306.01708, section 3; PEFT's magnitude_based_pruning.
template <RealScalar Scalar>
void prune_by_magnitude(std::span<Scalar> values, double density) {
  if (!(density >= 0.0 && density <= 1.0)) {
    throw ConfigError("prune_by_magnitude", "density", "a number in [0, 1]", detail::number_text(density));
  }
  const auto kept = static_cast<std::size_t>(density * static_cast<double>(values.size()));
  if (kept >= values.size()) return;
  if (kept == 0) return std::fill(values.begin(), values.end(), Scalar(0));
  std::vector<Scalar> magnitudes(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) magnitudes[i] = std::abs(values[i]);
  const auto edge = magnitudes.begin() + static_cast<std::ptrdiff_t>(kept - 1);
  std::nth_element(magnitudes.begin(), edge, magnitudes.end(), [](Scalar a, Scalar b) { return a > b; });
  const Scalar smallest_kept = *edge;
  auto room_at_edge = std::count(magnitudes.begin(), edge + 1, smallest_kept);
  for (Scalar& value : values) {
    const Scalar magnitude = std::abs(value);
    const bool stays = magnitude > smallest_kept || (magnitude == smallest_kept && room_at_edge-- > 0);
    if (!stays) value = 0;
  }
}

/// Keeps each element with probability `density`, divided by `density`, and sets the others to zero, so that every
/// element keeps its expectation. Element i is kept if the i-th 53-bit number in `stream`, two per block from
/// `first_block` on, is below density: the same elements on every platform, but not those of torch's generator. At
/// density 1 nothing changes. Does not allocate.
/// @throws ConfigError unless density is in (0, 1].
/// Source: DARE, Yu et al., arXiv 2311.03099, section 3.2; PEFT's random_pruning with rescale.
template <RealScalar Scalar>
void prune_at_random(std::span<Scalar> values, double density, const RandomStream& stream,
                     std::uint64_t first_block = 0) {
  if (!(density > 0.0 && density <= 1.0)) {
    throw ConfigError("prune_at_random", "density", "a number in (0, 1]", detail::number_text(density));
  }
  if (density >= 1.0) return;
  std::array<std::uint32_t, 4> words{};
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i % 2 == 0) words = stream.block(first_block + i / 2);
    const std::size_t first = i % 2 * 2;
    const std::uint64_t bits = (std::uint64_t{words[first]} << 32U | words[first + 1]) >> 11U;
    const bool stays = static_cast<double>(bits) * 0x1p-53 < density;
    values[i] = stays ? static_cast<Scalar>(static_cast<double>(values[i]) / density) : Scalar(0);
  }
}

namespace detail {

template <RealScalar Scalar>
void check_task_vectors(std::string_view operation, std::span<const std::span<const Scalar>> vectors,
                        std::span<const double> weights, std::size_t size) {
  if (vectors.size() != weights.size()) {
    std::string expected = std::to_string(vectors.size());
    throw ShapeError(operation, "weights", expected.append(" numbers"), std::to_string(weights.size()));
  }
  for (const auto& vector : vectors) {
    if (vector.size() != size) {
      std::string expected = std::to_string(size);
      throw ShapeError(operation, "vectors", expected.append(" elements each"), std::to_string(vector.size()));
    }
  }
}

[[nodiscard]] inline int sign_of(double value) noexcept { return (value > 0.0) - (value < 0.0); }

}  // namespace detail

/// out = sum over i, in order, of weights[i] * vectors[i]. Each step is one fused multiply-add in double, and the sum
/// is rounded once: the same bits on every platform. `out` may be one of the vectors. Does not allocate.
/// @throws ShapeError when sizes differ.
template <RealScalar Scalar>
void weighted_sum(std::span<const std::span<const Scalar>> vectors, std::span<const double> weights,
                  std::span<Scalar> out) {
  detail::check_task_vectors("weighted_sum", vectors, weights, out.size());
  for (std::size_t j = 0; j < out.size(); ++j) {
    double sum = 0;
    for (std::size_t i = 0; i < vectors.size(); ++i) sum = detail::fused(weights[i], vectors[i][j], sum);
    out[j] = static_cast<Scalar>(sum);
  }
}

/// Elects a sign for every element and averages, with weights, the vectors with that sign:
///   sign_j = +1 if the sum over i of v_ij (`total`), or of the signs of v_ij (`frequency`), is >= 0, else -1;
///   out_j = sum of weights[i] * v_ij over the i with sgn(v_ij) = sign_j, divided by their number, 0 without any.
/// The election ignores the weights; zeros have no sign and are ignored. `out` may be one of the vectors. Does not
/// allocate. @throws ShapeError when sizes differ.
/// Source: TIES, arXiv 2306.01708, section 3, steps 2 and 3; PEFT's calculate_majority_sign_mask and disjoint_merge.
template <RealScalar Scalar>
void disjoint_merge(std::span<const std::span<const Scalar>> vectors, std::span<const double> weights,
                    MajoritySign method, std::span<Scalar> out) {
  detail::check_task_vectors("disjoint_merge", vectors, weights, out.size());
  for (std::size_t j = 0; j < out.size(); ++j) {
    double election = 0;
    for (const auto& vector : vectors) {
      election += method == MajoritySign::total ? static_cast<double>(vector[j]) : detail::sign_of(vector[j]);
    }
    const int elected = election >= 0.0 ? 1 : -1;
    double sum = 0;
    int count = 0;
    for (std::size_t i = 0; i < vectors.size(); ++i) {
      if (detail::sign_of(vectors[i][j]) != elected) continue;
      sum = detail::fused(weights[i], vectors[i][j], sum);
      ++count;
    }
    out[j] = static_cast<Scalar>(count == 0 ? 0.0 : sum / count);
  }
}

}  // namespace lora
