// What optimisers remember of parameters: how much it is, and how to forget it.
#pragma once

#include <concepts>
#include <cstddef>
#include <ranges>

#include "lora/core/parameter.hpp"

namespace lora {

/// The scalar of the parameters in a range.
template <class Range>
using parameter_scalar_t = typename std::ranges::range_value_t<Range>::Map::Scalar;

/// A contiguous range of handles: a ParameterList, a std::vector or a std::span of Parameter<Scalar>.
template <class Range>
concept ParameterRange = std::ranges::contiguous_range<Range> && std::ranges::sized_range<Range> &&
    std::same_as<std::ranges::range_value_t<Range>, Parameter<parameter_scalar_t<Range>>>;

/// Bytes of optimiser state held for these parameters: 0 before the first step. No allocation.
template <class Range>
  requires ParameterRange<const Range>
[[nodiscard]] std::size_t moment_bytes(const Range& parameters) noexcept {
  std::size_t total = 0;
  for (const auto& parameter : parameters) {
    if (parameter.size() != 0) total += parameter.moments().bytes();
  }
  return total;
}

/// Forgets what an optimiser remembers of these parameters and frees it; the next step is a first one, of any
/// optimiser.
template <class Range>
  requires ParameterRange<const Range>
void reset_moments(const Range& parameters) noexcept {
  for (const auto& parameter : parameters) {
    if (parameter.size() != 0) parameter.moments() = {};
  }
}

}  // namespace lora
