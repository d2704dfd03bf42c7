// SPDX-License-Identifier: MIT
// Learning rates over time.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>

#include "lora/core/error.hpp"
#include "lora/optim/hyperparameter.hpp"

namespace lora {

/// Options of WarmupCosine. Steps count updates.
struct WarmupCosineOptions {
  double learning_rate = 1e-3;    ///< the peak, reached at step warmup_steps
  double floor = 0.0;             ///< reached at step total_steps and kept from then on
  std::int64_t warmup_steps = 0;  ///< in [0, total_steps]
  std::int64_t total_steps = 1;   ///< at least 1
};

/// Linear warm-up, then half a cosine down to a floor. For step t = 0, 1, ... with w = warmup_steps, T = total_steps:
///
///     rate(t) = peak * t / w                                                         t < w
///     rate(t) = floor + (peak - floor) * (1 + cos(pi * (t - w) / (T - w))) / 2       w <= t < T
///     rate(t) = floor                                                                T <= t
///
/// A function of the step alone: call `optimizer.set_learning_rate(schedule(t))` before update t. It keeps no state, so
/// resuming needs only t. With w = T the warm-up ends at the floor. With floor 0 it is get_cosine_schedule_with_warmup
/// of huggingface/transformers; step 0 of a warm-up has rate 0. Safe from any thread.
/// Source: Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, for the cosine.
class WarmupCosine {
 public:
  /// @throws ConfigError unless 0 <= floor <= learning_rate, both finite, 0 <= warmup_steps <= total_steps and
  /// total_steps >= 1.
  explicit WarmupCosine(const WarmupCosineOptions& options) : options_(options) {
    detail::require_not_negative<double>("WarmupCosine", "learning_rate", options.learning_rate);
    detail::require_not_negative<double>("WarmupCosine", "floor", options.floor);
    if (options.floor > options.learning_rate) {
      throw ConfigError("WarmupCosine", "floor", "at most " + detail::number_text(options.learning_rate),
                        detail::number_text(options.floor));
    }
    if (options.total_steps < 1) {
      throw ConfigError("WarmupCosine", "total_steps", "at least 1", std::to_string(options.total_steps));
    }
    if (options.warmup_steps < 0 || options.warmup_steps > options.total_steps) {
      throw ConfigError("WarmupCosine", "warmup_steps", "a number in [0, " + std::to_string(options.total_steps) + "]",
                        std::to_string(options.warmup_steps));
    }
  }

  /// The options it was created with.
  [[nodiscard]] const WarmupCosineOptions& options() const noexcept { return options_; }

  /// The rate for update number `step`, which counts from 0. @throws ConfigError if it is negative.
  [[nodiscard]] double operator()(std::int64_t step) const {
    const auto& [peak, floor, warmup, total] = options_;
    if (step < 0) throw ConfigError("WarmupCosine", "step", "a number that is not negative", std::to_string(step));
    if (step >= total) return floor;
    if (step < warmup) return peak * (static_cast<double>(step) / static_cast<double>(warmup));
    const double progress = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
    return std::lerp(floor, peak, (1 + std::cos(std::numbers::pi * progress)) / 2);
  }

 private:
  WarmupCosineOptions options_;
};

}  // namespace lora
