// SPDX-License-Identifier: MIT
// The checks of a whole optimiser step, made before any value changes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/parameter.hpp"
#include "lora/core/types.hpp"
#include "lora/optim/hyperparameter.hpp"

namespace lora::detail {

/// Checks all parameters of a step. Holds scratch that only grows, so that later steps allocate nothing.
template <class Scalar>
class StepCheck {
 public:
  /// @throws StateError for a parameter that is locked, has no memory, shares memory with another one (or is listed
  /// twice), or whose state another optimiser filled. @throws ConfigError for an unusable learning_rate_scale.
  void operator()(std::string_view operation, std::string_view owner, double learning_rate,
                  std::span<const Parameter<Scalar>> parameters) {
    extents_.clear();
    for (const auto& parameter : parameters) {
      parameter.require_unlocked(operation);
      if (parameter.size() == 0) continue;
      require_memory(operation, parameter);
      require_not_negative<Scalar>(operation, "learning_rate_scale", parameter.learning_rate_scale());
      require_not_negative<Scalar>(operation, "learning_rate * learning_rate_scale",
                                   learning_rate * parameter.learning_rate_scale());
      require_owner(operation, owner, parameter);
      const Scalar* value = parameter.value().data();
      add_extent(value, value + parameter.size(), parameter);
      add_extent(&parameter.moments(), &parameter.moments() + 1, parameter);
    }
    require_distinct(operation);
  }

 private:
  // Memory that a step writes to.
  struct Extent {
    std::uintptr_t begin;
    std::uintptr_t end;
    const std::string* name;  // of the parameter
    bool operator<(const Extent& other) const noexcept { return begin < other.begin; }
  };

  void add_extent(const void* begin, const void* end, const Parameter<Scalar>& parameter) {
    extents_.push_back(
        {reinterpret_cast<std::uintptr_t>(begin), reinterpret_cast<std::uintptr_t>(end), &parameter.name()});
  }

  static void require_memory(std::string_view operation, const Parameter<Scalar>& parameter) {
    if (parameter.value().data() == nullptr || parameter.gradient().data() == nullptr) {
      throw StateError(operation, parameter.name(), "memory for value and gradient", "a null pointer");
    }
  }

  static void require_owner(std::string_view operation, std::string_view owner, const Parameter<Scalar>& parameter) {
    const auto& state = parameter.moments();
    const bool untouched = state.steps == 0 && state.first.empty() && state.second.empty();
    if (state.owner.empty() ? untouched : state.owner == owner && state.steps > 0) return;
    throw StateError(operation, parameter.name(),
                     "no state, or that of " + std::string(owner) + " after some steps (reset_moments starts afresh)",
                     "state of '" + std::string(state.owner) + "' after " + std::to_string(state.steps) + " steps");
  }

  void require_distinct(std::string_view operation) {
    std::sort(extents_.begin(), extents_.end());
    for (std::size_t i = 1; i < extents_.size(); ++i) {
      const Extent& low = extents_[i - 1];
      const Extent& high = extents_[i];
      if (high.begin >= low.end) continue;
      throw StateError(operation, "parameters", "each parameter once, with memory of its own",
                       "'" + *low.name + "' and '" + *high.name + "', which share it");
    }
  }

  std::vector<Extent> extents_;
};

/// @throws StateError unless `moment` has as many scalars as the parameter.
template <class Scalar>
void require_moment_size(std::string_view operation, const Parameter<Scalar>& parameter,
                         const std::vector<Scalar>& moment) {
  if (moment.size() == static_cast<std::size_t>(parameter.size())) return;
  throw StateError(operation, parameter.name(), "a moment of " + std::to_string(parameter.size()) + " scalars",
                   std::to_string(moment.size()));
}

}  // namespace lora::detail
