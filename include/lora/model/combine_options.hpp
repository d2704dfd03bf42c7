// SPDX-License-Identifier: MIT
// Options for combining several adapters into one: those of PEFT's add_weighted_adapter.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// How the adapters of one module are combined; the names are PEFT's. See combine_factors.
enum class CombinationType : std::uint8_t {
  linear,              ///< weighted sum
  cat,                 ///< weighted sum of concatenated factors: the rank is the sum of the ranks
  svd,                 ///< weighted sum, best approximation of rank `svd_rank`
  ties,                ///< magnitude pruning, sign election and disjoint mean of the factors (arXiv 2306.01708)
  ties_svd,            ///< the same of the delta weights, then svd
  dare_linear,         ///< random pruning with rescaling of the factors (arXiv 2311.03099), then weighted sum
  dare_ties,           ///< random pruning with rescaling, then sign election and disjoint mean, of the factors
  dare_linear_svd,     ///< dare_linear of the delta weights, then svd
  dare_ties_svd,       ///< dare_ties of the delta weights, then svd
  magnitude_prune,     ///< magnitude pruning of the factors, then weighted sum
  magnitude_prune_svd  ///< magnitude pruning of the delta weights, then svd
};

/// How the sign of an element is elected: by the sum of the values, or by the sum of their signs.
enum class MajoritySign : std::uint8_t { total, frequency };

/// Whether weighted sums are sums of delta weights, or what PEFT computes instead. See combine_factors.
enum class Compatibility : std::uint8_t { exact, peft };

/// Options of combine_factors and combine_adapters. A plain aggregate.
struct CombineOptions {
  CombinationType combination_type = CombinationType::svd;  ///< the method
  /// Fraction that pruning keeps, in [0, 1], and above 0 for dare_*. Required by types that prune.
  std::optional<double> density = std::nullopt;
  MajoritySign majority_sign_method = MajoritySign::total;  ///< for ties* and dare_ties*
  std::optional<Index> svd_rank = std::nullopt;             ///< for *svd; by default, the largest rank of the inputs
  /// For *svd: quantile in [0, 1] of the new factors' elements, to which they are clamped.
  std::optional<double> svd_clamp = std::nullopt;
  std::optional<std::uint64_t> seed = std::nullopt;    ///< required by dare_*
  Compatibility compatibility = Compatibility::exact;  ///< exact sums of delta weights, or PEFT's
};

namespace detail {

inline constexpr std::array<std::pair<CombinationType, std::string_view>, 11> combination_names{{
    {CombinationType::linear, "linear"},
    {CombinationType::cat, "cat"},
    {CombinationType::svd, "svd"},
    {CombinationType::ties, "ties"},
    {CombinationType::ties_svd, "ties_svd"},
    {CombinationType::dare_linear, "dare_linear"},
    {CombinationType::dare_ties, "dare_ties"},
    {CombinationType::dare_linear_svd, "dare_linear_svd"},
    {CombinationType::dare_ties_svd, "dare_ties_svd"},
    {CombinationType::magnitude_prune, "magnitude_prune"},
    {CombinationType::magnitude_prune_svd, "magnitude_prune_svd"},
}};

[[nodiscard]] constexpr bool drops_at_random(CombinationType type) noexcept {
  return type == CombinationType::dare_linear || type == CombinationType::dare_ties ||
         type == CombinationType::dare_linear_svd || type == CombinationType::dare_ties_svd;
}

[[nodiscard]] constexpr bool elects_signs(CombinationType type) noexcept {
  return type == CombinationType::ties || type == CombinationType::ties_svd || type == CombinationType::dare_ties ||
         type == CombinationType::dare_ties_svd;
}

[[nodiscard]] constexpr bool prunes(CombinationType type) noexcept {
  return drops_at_random(type) || elects_signs(type) || type == CombinationType::magnitude_prune ||
         type == CombinationType::magnitude_prune_svd;
}

/// Whether pruning works on delta weights, which an SVD then factors again.
[[nodiscard]] constexpr bool prunes_deltas(CombinationType type) noexcept {
  return type == CombinationType::ties_svd || type == CombinationType::dare_linear_svd ||
         type == CombinationType::dare_ties_svd || type == CombinationType::magnitude_prune_svd;
}

[[nodiscard]] constexpr bool ends_in_svd(CombinationType type) noexcept {
  return type == CombinationType::svd || prunes_deltas(type);
}

}  // namespace detail

/// PEFT's name: "ties_svd".
[[nodiscard]] constexpr std::string_view name_of(CombinationType type) noexcept {
  return detail::combination_names[static_cast<std::size_t>(type)].second;
}

/// The combination type of that name; nothing if there is none.
[[nodiscard]] constexpr std::optional<CombinationType> parse_combination_type(std::string_view name) noexcept {
  for (const auto& [type, its_name] : detail::combination_names) {
    if (its_name == name) return type;
  }
  return std::nullopt;
}

/// @throws ConfigError naming the first option that is missing or out of range.
inline void check_combine_options(std::string_view operation, const CombineOptions& options) {
  const CombinationType type = options.combination_type;
  const std::string with = std::string(" with ").append(name_of(type));
  const auto text = [](const std::optional<double>& number) { return number ? detail::number_text(*number) : "none"; };
  if (detail::prunes(type)) {
    const bool random = detail::drops_at_random(type);
    const double density = options.density.value_or(-1.0);
    if (!(density <= 1.0 && (random ? density > 0.0 : density >= 0.0))) {
      throw ConfigError(operation, "density", (random ? "a number in (0, 1]" : "a number in [0, 1]") + with,
                        text(options.density));
    }
    if (random && !options.seed) throw ConfigError(operation, "seed", "a seed" + with, "none");
  }
  if (!detail::ends_in_svd(type)) return;
  if (options.svd_rank && *options.svd_rank < 1) {
    throw ConfigError(operation, "svd_rank", "1 or more", std::to_string(*options.svd_rank));
  }
  if (options.svd_clamp && !(*options.svd_clamp >= 0.0 && *options.svd_clamp <= 1.0)) {
    throw ConfigError(operation, "svd_clamp", "a quantile in [0, 1]", text(options.svd_clamp));
  }
}

}  // namespace lora
