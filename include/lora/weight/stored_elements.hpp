// SPDX-License-Identifier: MIT
// How merging reads and writes the elements of a weight, for each way of storing them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "lora/core/finite.hpp"
#include "lora/core/rounding.hpp"
#include "lora/core/types.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/kernels/half_update.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora::detail {

/// Elements that are the weight's scalars.
template <class Scalar>
struct ScalarElements {
  using Element = Scalar;
  static constexpr bool fuses_update = true;  ///< without factors DeltaSource::update does all

  [[nodiscard]] static bool finite(Scalar element) noexcept { return is_finite(element); }
  [[nodiscard]] static Scalar value(Scalar element) noexcept { return element; }
  /// What is stored after merging into `weight`; `factor` is null if outputs are not scaled.
  [[nodiscard]] static Scalar merged(Scalar weight, Scalar delta, const Scalar* factor) noexcept {
    if (factor == nullptr) return weight + delta;
    return detail::sum(weight, delta) * *factor;
  }
  [[nodiscard]] static kernels::ExactUpdate apply(Scalar* weights, const Scalar* delta,
                                                  const kernels::RunFactors<Scalar>& run, std::int8_t* codes,
                                                  Index count, Scalar* originals) noexcept {
    return kernels::apply_scaled(weights, delta, run, codes, count, originals);
  }
  static Index restore(Scalar* weights, const Scalar* delta, const kernels::RunFactors<Scalar>& run,
                       const std::int8_t* codes, Index count, const Scalar* originals) noexcept {
    return kernels::restore_scaled(weights, delta, run, codes, count, originals);
  }
};

/// Elements that are the bits of 16-bit numbers.
template <class Format>
struct HalfElements {
  using Element = std::uint16_t;
  static constexpr bool fuses_update = false;

  [[nodiscard]] static bool finite(std::uint16_t element) noexcept {
    return kernels::detail::finite_half<Format>(element);
  }
  [[nodiscard]] static float value(std::uint16_t element) noexcept {
    return kernels::HalfNumber<Format>::value(element);
  }
  [[nodiscard]] static std::uint16_t merged(std::uint16_t weight, float delta, const float* factor) noexcept {
    return kernels::detail::merged_half<Format>(weight, delta, factor == nullptr ? 1.0F : *factor);
  }
  [[nodiscard]] static kernels::ExactUpdate apply(std::uint16_t* weights, const float* delta,
                                                  const kernels::RunFactors<float>& run, std::int8_t* codes,
                                                  Index count, std::uint16_t* originals) noexcept {
    return kernels::apply_half<Format>(weights, delta, run, codes, count, originals);
  }
  static Index restore(std::uint16_t* weights, const float* delta, const kernels::RunFactors<float>& run,
                       const std::int8_t* codes, Index count, const std::uint16_t* originals) noexcept {
    return kernels::restore_half<Format>(weights, delta, run, codes, count, originals);
  }
};

/// body(elements) with the one of these types that a weight's elements have.
template <class Scalar, class Body>
void with_elements(WeightStorage storage, const Body& body) {
  if constexpr (std::is_same_v<Scalar, float>) {  // weights of 16 bits compute in float
    if (storage == WeightStorage::f16) return body(HalfElements<formats::F16>());
    if (storage == WeightStorage::bf16) return body(HalfElements<formats::BF16>());
  }
  body(ScalarElements<Scalar>());
}

}  // namespace lora::detail
