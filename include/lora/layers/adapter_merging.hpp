// SPDX-License-Identifier: MIT
// Merging a layer's adapters into its weight, and taking them out again.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "lora/adapter/dora.hpp"
#include "lora/core/workspace.hpp"
#include "lora/layers/adapter_set.hpp"
#include "lora/layers/operation.hpp"
#include "lora/weight/merge_stack.hpp"

namespace lora {

/// A view of the parts of a layer that merging changes: its weight, the stack of what is merged, whose keys are the
/// adapters' ids, and every adapter's merged(). An adapter with DoRA scales the rows of what it is merged into, so it
/// is merged directly into W0, below the others. A function that throws has changed nothing.
template <class Kind>
class AdapterMerging {
 public:
  using Scalar = typename Kind::Scalar;

  /// All outlive this object.
  AdapterMerging(const Kind& kind, const WeightRef<Scalar>& weight, AdapterSet<Scalar>& adapters,
                 MergeStack<Scalar>& stack, std::span<const double> squared_norms) noexcept
      : kind_(kind), weight_(weight), adapters_(adapters), stack_(stack), squared_norms_(squared_norms) {}

  /// Merges these, in this order, on top of those already merged. If one with DoRA goes below others, the records of
  /// those are held twice until the call ends. @throws StateError; ConfigError when two that are merged or active then
  /// train the layer's bias; std::bad_alloc
  void merge(const Operation& operation, const std::vector<Index>& which) const;
  /// Takes out those for which leaves(position) is true. Throws only if one that leaves is below one that stays.
  /// @throws StateError if a sum without the former is not finite; std::bad_alloc
  void remove(const Operation& operation, FunctionRef<bool(Index)> leaves) const;
  /// Takes out all but the first `size`.
  void truncate(std::size_t size) const noexcept;

  [[nodiscard]] Index dora_count(const std::vector<Index>& which) const noexcept {
    return std::count_if(which.begin(), which.end(), [&](Index i) { return adapters_[i].uses_dora(); });
  }

 private:
  // Lets these be what is merged above the first `kept`.
  void replace(const Operation& operation, std::size_t kept, std::span<const Index> others) const;
  void push(const Operation& operation, Index i) const;
  void mark() const noexcept;

  const Kind& kind_;
  WeightRef<Scalar> weight_;
  AdapterSet<Scalar>& adapters_;
  MergeStack<Scalar>& stack_;
  std::span<const double> squared_norms_;
};

template <class Kind>
void AdapterMerging<Kind>::merge(const Operation& operation, const std::vector<Index>& which) const {
  std::vector<Index> order;
  for (std::size_t m = 0; m < stack_.size(); ++m) order.push_back(adapters_.position_of(stack_.key(m)));
  for (const Index i : which) {
    if (std::find(order.begin(), order.end(), i) == order.end()) order.push_back(i);
  }
  if (order.size() == stack_.size()) return;
  if (!adapters_.enabled()) throw StateError(operation.text(), "layer", "enabled adapters", "disabled ones");
  const auto writes = [&](Index i) { return adapters_[i].rank() > 0 || adapters_[i].uses_dora(); };
  if (!weight_.mergeable() && std::any_of(order.begin(), order.end(), writes)) {
    throw StateError(operation.text(), "weight",
                     "one that can be merged into (answer unmerged; or make the layer over a PackedWeight copy, as "
                     "dequantized() gives; or over what requantize() makes of the weight and the update)",
                     "a read-only weight, or one of a kind that cannot be merged into");
  }
  if (dora_count(order) > 1) {
    throw StateError(operation.text(), "adapters", "at most one with use_dora among those that are merged together",
                     std::to_string(dora_count(order)));
  }
  adapters_.require_one_bias(operation, [&](Index i) {
    const auto working = adapters_.working();
    return std::find(order.begin(), order.end(), i) != order.end() ||
           std::find(working.begin(), working.end(), i) != working.end();
  });
  const auto dora = std::find_if(order.begin(), order.end(), [&](Index i) { return adapters_[i].uses_dora(); });
  std::size_t kept = stack_.size();
  if (dora != order.end() && dora >= order.begin() + static_cast<std::ptrdiff_t>(kept)) {
    std::rotate(order.begin(), dora, dora + 1);
    kept = 0;
  }
  replace(operation, kept, std::span<const Index>(order).subspan(kept));
}

template <class Kind>
void AdapterMerging<Kind>::remove(const Operation& operation, FunctionRef<bool(Index)> leaves) const {
  std::vector<Index> stay;
  std::size_t first = stack_.size();
  for (std::size_t m = 0; m < stack_.size(); ++m) {
    const Index i = adapters_.position_of(stack_.key(m));
    if (leaves(i)) {
      first = std::min(first, m);
    } else if (m > first) {
      stay.push_back(i);
    }
  }
  replace(operation, first, stay);
}

template <class Kind>
void AdapterMerging<Kind>::truncate(std::size_t size) const noexcept {
  stack_.truncate(weight_, size);
  mark();
}

template <class Kind>
void AdapterMerging<Kind>::replace(const Operation& operation, std::size_t kept, std::span<const Index> others) const {
  if (others.empty()) return truncate(kept);
  stack_.replace(weight_, kept, [&] {
    for (const Index i : others) push(operation, i);
  });
  mark();
}

template <class Kind>
void AdapterMerging<Kind>::push(const Operation& operation, Index i) const {
  const LoraAdapter<Scalar>& adapter = adapters_[i];
  Workspace workspace;
  const auto whole = kind_.whole_update(adapter, workspace);
  const std::string naming = operation.text() + " of " + detail::quoted(adapter.name());
  const Index scaled = adapter.uses_dora() ? kind_.blocks().outputs : 0;
  const auto norms = workspace.row<double>(scaled);
  const auto factors = workspace.row<Scalar>(scaled);
  if (scaled > 0) {
    row_norms(weight_, whole.update, squared_norms_, norms.data, workspace);
    magnitude_factors(kind_.blocks(), adapter.magnitude, norms.data, factors.data);
  }
  stack_.push(naming, weight_, adapter.id(), whole.update, {factors.data, static_cast<std::size_t>(scaled)});
}

template <class Kind>
void AdapterMerging<Kind>::mark() const noexcept {
  for (Index i = 0; i < adapters_.size(); ++i) adapters_[i].set_merged(stack_.contains(adapters_[i].id()));
}

}  // namespace lora
