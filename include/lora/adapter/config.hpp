// SPDX-License-Identifier: MIT
// How a layer is adapted: the options PEFT's LoraConfig has for one layer.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// Which biases train. `lora_only` trains those of adapted layers, `all` those of every layer.
enum class BiasMode : std::uint8_t { none, all, lora_only };

/// How A and B are initialised; the names are those of PEFT's `init_lora_weights`.
enum class InitLoraWeights : std::uint8_t {
  kaiming_uniform,  ///< A ~ U(-1/sqrt(in_features), 1/sqrt(in_features)), B = 0; PEFT's `true`
  gaussian,         ///< A ~ N(0, 1/rank^2), B = 0; PEFT's "gaussian"
  random,           ///< A as kaiming_uniform, B ~ U(-1/sqrt(rank), 1/sqrt(rank)); PEFT's `false`, for tests
  orthogonal,       ///< A and B random with B A = 0; PEFT's "orthogonal"; the rank must be even
  pissa,            ///< s*B*A is the principal part of W0 (arXiv 2404.02948); PEFT's "pissa"
  olora             ///< B A is the first part of W0's QR factorisation (arXiv 2406.01775); PEFT's "olora"
};

/// Whether an initialisation computes A and B from the frozen weight. Such an adapter adds s (B A - B0 A0) to W0, where
/// A0 and B0 are its start; W0 itself is never written.
[[nodiscard]] constexpr bool takes_from_weight(InitLoraWeights init) noexcept {
  return init == InitLoraWeights::pissa || init == InitLoraWeights::olora;
}

/// Options of one adapted layer. A plain aggregate: `{.rank = 8, .alpha = 16, .dropout = 0.05}`.
struct LoraConfig {
  Index rank = 8;      ///< r; 0 makes a plain frozen layer
  double alpha = 8;    ///< scaling is alpha / rank, or alpha / sqrt(rank) with `use_rslora`
  double dropout = 0;  ///< probability in [0, 1) of dropping an element of the adapter's input in training, rounded to
                       ///< a multiple of 2^-32, which must be below 1
  bool fan_in_fan_out = false;     ///< the weight is stored in_features x out_features, as GPT-2's Conv1D stores it
  bool merge_weights = true;       ///< eval() merges and train() unmerges
  bool use_rslora = false;         ///< rank-stabilised scaling (arXiv 2312.03732)
  bool use_dora = false;           ///< a trainable magnitude for every output (arXiv 2402.09353)
  bool use_qalora = false;         ///< A sees sums over groups of inputs (adapter/qalora.hpp, arXiv 2309.14717)
  Index qalora_group_size = 16;    ///< with `use_qalora`: inputs of a group, which divides in_features
  bool lora_bias = false;          ///< B has a trainable bias: y gains scaling * lora_bias
  BiasMode bias = BiasMode::none;  ///< which biases train with the adapter
  InitLoraWeights init_lora_weights = InitLoraWeights::kaiming_uniform;  ///< how A and B start
  /// With pissa: power iterations of a randomised decomposition, PEFT's "pissa_niter_n"; 0 decomposes exactly.
  Index pissa_niter = 0;

  /// s = alpha / rank, or alpha / sqrt(rank); 0 at rank 0.
  [[nodiscard]] double scaling() const noexcept {
    if (rank == 0) return 0.0;
    const auto r = static_cast<double>(rank);
    return alpha / (use_rslora ? std::sqrt(r) : r);
  }

  /// Inputs that share a column of A with use_qalora; 0 without.
  [[nodiscard]] Index group_size() const noexcept { return use_qalora ? qalora_group_size : 0; }

  /// Whether the bias of a layer with this configuration trains. A layer of rank 0 is not a LoRA layer.
  [[nodiscard]] bool trains_bias() const noexcept {
    return bias == BiasMode::all || (bias == BiasMode::lora_only && rank > 0);
  }
};

namespace detail {

/// An element is dropped if its 32 random bits are below this threshold: probability * 2^32, rounded. Pre: probability
/// in [0, 1]. From 1 - 2^-33 on, the result is 2^32 and every element is dropped.
[[nodiscard]] constexpr std::uint64_t drop_threshold(double probability) noexcept {
  return static_cast<std::uint64_t>(probability * 0x1p32 + 0.5);
}

/// PEFT ignores lora_bias with use_qalora, and has no DoRA with it.
LORA_COLD inline void check_qalora(std::string_view operation, const LoraConfig& config) {
  if (!config.use_qalora) return;
  if (config.rank == 0) throw ConfigError(operation, "use_qalora", "rank 1 or more with it", "rank 0");
  if (config.qalora_group_size < 1) {
    throw ConfigError(operation, "qalora_group_size", "1 or more", std::to_string(config.qalora_group_size));
  }
  if (config.use_dora) throw ConfigError(operation, "use_dora", "false with use_qalora", "true");
  if (config.lora_bias) throw ConfigError(operation, "lora_bias", "false with use_qalora", "true");
  if (takes_from_weight(config.init_lora_weights)) {
    throw ConfigError(operation, "init_lora_weights", "neither pissa nor olora with use_qalora", "one of them");
  }
}

LORA_COLD inline void check_initialization(std::string_view operation, const LoraConfig& config) {
  const InitLoraWeights init = config.init_lora_weights;
  if (init == InitLoraWeights::orthogonal && config.rank % 2 != 0) {
    throw ConfigError(operation, "rank", "an even number with orthogonal initialisation", std::to_string(config.rank));
  }
  if (config.lora_bias && (init == InitLoraWeights::orthogonal || takes_from_weight(init))) {
    throw ConfigError(operation, "lora_bias", "false with orthogonal, pissa and olora", "true");
  }
  if (config.pissa_niter < 0) {
    throw ConfigError(operation, "pissa_niter", "0 or more", std::to_string(config.pissa_niter));
  }
}

}  // namespace detail

/// @throws ConfigError naming the first option that is out of range.
LORA_COLD inline void check_config(std::string_view operation, const LoraConfig& config) {
  if (config.rank < 0) throw ConfigError(operation, "rank", "0 or more", std::to_string(config.rank));
  if (!is_finite(config.alpha)) {
    throw ConfigError(operation, "alpha", "a finite number", detail::number_text(config.alpha));
  }
  if (!is_finite(config.dropout) || !(config.dropout >= 0.0 && config.dropout < 1.0)) {
    throw ConfigError(operation, "dropout", "a probability in [0, 1)", detail::number_text(config.dropout));
  }
  if (detail::drop_threshold(config.dropout) > 0xFFFFFFFFU) {
    throw ConfigError(operation, "dropout", "a probability in [0, 1) that keeps at least one element in 2^32",
                      detail::joined({"1 - ", detail::number_text(1.0 - config.dropout)}));
  }
  if (config.lora_bias && config.rank == 0)
    throw ConfigError(operation, "lora_bias", "rank 1 or more with it", "rank 0");
  if (config.use_dora && config.rank == 0) throw ConfigError(operation, "use_dora", "rank 1 or more with it", "rank 0");
  if (config.use_dora && config.lora_bias) throw ConfigError(operation, "lora_bias", "false with use_dora", "true");
  detail::check_qalora(operation, config);
  detail::check_initialization(operation, config);
}

}  // namespace lora
