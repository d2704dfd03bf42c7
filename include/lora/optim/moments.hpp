// SPDX-License-Identifier: MIT
// The parameters optimisers work on, and the state they keep: how large it is, and how to discard it.
#pragma once

#include <concepts>
#include <cstddef>
#include <iterator>
#include <span>
#include <type_traits>
#include <utility>

#include "lora/core/parameter.hpp"

namespace lora {

/// The scalar of the parameters in a range.
template <class Range>
using parameter_scalar_t = typename std::remove_cvref_t<decltype(*std::data(std::declval<Range&>()))>::Scalar;

/// A contiguous range of handles: a std::span, std::vector or std::array of Parameter<Scalar>.
template <class Range>
concept ParameterRange = requires(Range& range) {
  { std::data(range) } -> std::convertible_to<const Parameter<parameter_scalar_t<Range>>*>;
  { std::size(range) } -> std::convertible_to<std::size_t>;
};

namespace detail {

/// The range of handles: `source` itself, `trainable_parameters()` of a model, or `parameters()` of a layer.
template <class Source>
[[nodiscard]] decltype(auto) parameter_range(Source& source) {
  if constexpr (requires { source.trainable_parameters(); }) {
    return source.trainable_parameters();
  } else if constexpr (requires { source.parameters(); }) {
    return source.parameters();
  } else {
    return (source);
  }
}

template <class Source>
using parameter_range_t = std::remove_reference_t<decltype(parameter_range(std::declval<Source&>()))>;

template <class Range>
[[nodiscard]] std::span<const Parameter<parameter_scalar_t<Range>>> span_of(const Range& range) noexcept {
  return {std::data(range), std::size(range)};
}

}  // namespace detail

/// A source of parameters to train: a range of handles, a layer (`parameters()`), or a model
/// (`trainable_parameters()`).
template <class Source>
concept ParameterSource = ParameterRange<detail::parameter_range_t<std::remove_reference_t<Source>>>;

/// The scalar of a source's parameters.
template <class Source>
using source_scalar_t = parameter_scalar_t<detail::parameter_range_t<std::remove_reference_t<Source>>>;

/// Bytes of optimiser state held for these parameters: 0 before the first step. No allocation.
template <ParameterSource Source>
[[nodiscard]] std::size_t moment_bytes(Source&& source) {
  const auto& parameters = detail::parameter_range(source);
  std::size_t total = 0;
  for (const auto& parameter : detail::span_of(parameters)) {
    if (parameter.size() != 0) total += parameter.moments().bytes();
  }
  return total;
}

/// Discards and frees the optimiser state of these parameters; the next step is a first step, and any optimiser may
/// take it. Learning-rate scales are kept.
template <ParameterSource Source>
void reset_moments(Source&& source) {
  const auto& parameters = detail::parameter_range(source);
  for (const auto& parameter : detail::span_of(parameters)) {
    if (parameter.size() != 0) parameter.moments().forget();
  }
}

}  // namespace lora
