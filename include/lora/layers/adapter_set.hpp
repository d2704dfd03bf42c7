// SPDX-License-Identifier: MIT
// The adapters of one layer, and which of them are active.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/core/error.hpp"
#include "lora/core/executor.hpp"
#include "lora/layers/operation.hpp"

namespace lora {

/// Named adapters in the order they were added. An adapter's address does not change when others are added or removed.
/// A value: a copy copies the adapters. A function that throws has changed nothing.
template <RealScalar Scalar>
class AdapterSet {
 public:
  using Adapter = LoraAdapter<Scalar>;

  AdapterSet() = default;
  AdapterSet(const AdapterSet& other) : enabled_(other.enabled_), next_id_(other.next_id_) {
    reserve(other.adapters_.size());
    active_.assign(other.active_.begin(), other.active_.end());
    by_name_.assign(other.by_name_.begin(), other.by_name_.end());
    with_bias_.assign(other.with_bias_.begin(), other.with_bias_.end());
    for (const auto& adapter : other.adapters_) adapters_.push_back(std::make_unique<Adapter>(*adapter));
  }
  AdapterSet(AdapterSet&&) noexcept = default;
  AdapterSet& operator=(const AdapterSet& other) { return *this = AdapterSet(other); }
  AdapterSet& operator=(AdapterSet&&) noexcept = default;
  ~AdapterSet() = default;

  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(adapters_.size()); }
  [[nodiscard]] const Adapter& operator[](Index i) const noexcept { return *adapters_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] Adapter& operator[](Index i) noexcept { return *adapters_[static_cast<std::size_t>(i)]; }

  /// Position of the adapter, or -1. O(log size).
  [[nodiscard]] Index find(std::string_view name) const noexcept {
    const auto place = by_name_.begin() + place_of(name);
    return place != by_name_.end() && (*this)[*place].name() == name ? *place : -1;
  }
  /// @throws ConfigError listing the existing adapters.
  [[nodiscard]] Index index_of(const Operation& operation, std::string_view name) const {
    const Index found = find(name);
    if (found < 0) throw ConfigError(operation.text(), "adapter", known_names(), detail::quoted(name));
    return found;
  }
  /// Position of the adapter with this id. Pre: it exists.
  [[nodiscard]] Index position_of(std::uint64_t id) const noexcept {
    Index i = 0;
    while ((*this)[i].id() != id) ++i;
    return i;
  }
  /// @throws ConfigError for a name that is unknown or given twice.
  template <class Names>
  [[nodiscard]] std::vector<Index> positions(const Operation& operation, const Names& names) const {
    std::vector<Index> found;
    for (const std::string_view name : names) {
      const Index i = index_of(operation, name);
      if (std::find(found.begin(), found.end(), i) != found.end()) {
        throw ConfigError(operation.text(), "names", "every adapter once",
                          detail::joined({detail::quoted(name), " again"}));
      }
      found.push_back(i);
    }
    return found;
  }

  /// @throws ConfigError when an adapter has that name.
  void require_new(const Operation& operation, std::string_view name) const {
    if (find(name) < 0) return;
    throw ConfigError(operation.text(), "name", "one that no adapter of the layer has", detail::quoted(name));
  }
  /// @throws ConfigError when two of those for which answers(position) holds train the layer's bias: a model gives a
  /// layer as many of them as it likes, and one at a time can be used.
  void require_one_bias(const Operation& operation, FunctionRef<bool(Index)> answers) const {
    const Adapter* owner = nullptr;
    for (const Index i : with_bias_) {
      const Adapter& adapter = (*this)[i];
      if (adapter.bias.size() == 0 || !answers(i)) continue;
      if (owner != nullptr) {
        throw ConfigError(operation.text(), "adapters", "one that trains the layer's bias",
                          detail::joined({detail::quoted(owner->name()), " and ", detail::quoted(adapter.name())}));
      }
      owner = &adapter;
    }
  }
  /// Makes room for one more adapter, and for all of them to be active. @throws std::bad_alloc
  void reserve_one() {
    if (adapters_.size() == adapters_.capacity()) reserve(2 * adapters_.size() + 1);
  }
  /// Adds an adapter with a new name, after reserve_one(), and assigns its id. The first one becomes active.
  void adopt(std::unique_ptr<Adapter> adapter) noexcept {
    adapter->set_id(next_id_++);
    by_name_.insert(by_name_.begin() + place_of(adapter->name()), size());
    adapters_.push_back(std::move(adapter));
    note_bias(size() - 1);
    if (size() == 1) active_.push_back(0);
  }
  /// reserve_one() and adopt(). @throws std::bad_alloc
  void add(Adapter adapter) {
    auto held = std::make_unique<Adapter>(std::move(adapter));
    reserve_one();
    adopt(std::move(held));
  }
  /// Removes an adapter. If it was the only active one, successor() becomes active.
  void erase(Index gone) noexcept {
    if (const Index next = successor(gone); next >= 0) active_.push_back(next);
    for (std::vector<Index>* const positions : {&active_, &by_name_, &with_bias_}) take_out(*positions, gone);
    adapters_.erase(adapters_.begin() + gone);
  }
  /// Position of the adapter that becomes active when this one is removed: the first of the others in alphabetical
  /// order, as in PEFT, if this one is the only active one. -1 if none does.
  [[nodiscard]] Index successor(Index gone) const noexcept {
    if (size() == 1 || active_.size() != 1 || active_.front() != gone) return -1;
    return by_name_[by_name_.front() == gone ? 1 : 0];
  }
  void clear() noexcept {
    for (std::vector<Index>* const positions : {&active_, &by_name_, &with_bias_}) positions->clear();
    adapters_.clear();
  }
  /// Exchanges the adapter at a position with another one; the name stays at the position. No number is copied.
  void swap(Index i, Adapter& other) noexcept {
    Adapter& own = (*this)[i];
    std::swap(own, other);
    own.swap_name(other);
    own.set_id(next_id_++);
    note_bias(i);
  }
  /// Replaces the adapter at a position by one of the same name.
  void replace(Index i, Adapter adapter) noexcept {
    adapter.set_id(next_id_++);
    (*this)[i] = std::move(adapter);
    note_bias(i);
  }

  /// Positions of the adapters that train the layer's bias or have one of B, in ascending order.
  [[nodiscard]] const std::vector<Index>& with_bias() const noexcept { return with_bias_; }

  /// Positions of the active adapters in their order, enabled or not.
  [[nodiscard]] const std::vector<Index>& active() const noexcept { return active_; }
  /// `chosen` names each position at most once.
  void set_active(const std::vector<Index>& chosen) noexcept { active_.assign(chosen.begin(), chosen.end()); }

  [[nodiscard]] bool enabled() const noexcept { return enabled_; }
  void set_enabled(bool enabled) noexcept { enabled_ = enabled; }
  /// Positions of the adapters in use: the active ones, or none while adapters are disabled.
  [[nodiscard]] std::span<const Index> working() const noexcept {
    return enabled_ ? std::span<const Index>(active_) : std::span<const Index>();
  }

  /// The adapter that calls without a name refer to: the first active one, or null.
  [[nodiscard]] const Adapter* first() const noexcept { return active_.empty() ? nullptr : &(*this)[active_.front()]; }
  [[nodiscard]] Adapter* first() noexcept { return active_.empty() ? nullptr : &(*this)[active_.front()]; }

 private:
  [[nodiscard]] std::string known_names() const {
    if (adapters_.empty()) return "a name, once an adapter is added";
    return detail::one_of(adapters_, [](const auto& adapter) -> const std::string& { return adapter->name(); });
  }

  void reserve(std::size_t count) {
    for (std::vector<Index>* const positions : {&active_, &by_name_, &with_bias_}) positions->reserve(count);
    adapters_.reserve(count);
  }
  // Where a name is or would be in by_name_.
  [[nodiscard]] std::ptrdiff_t place_of(std::string_view name) const noexcept {
    const auto before = [this](Index i, std::string_view other) { return (*this)[i].name() < other; };
    return std::lower_bound(by_name_.begin(), by_name_.end(), name, before) - by_name_.begin();
  }
  void note_bias(Index i) noexcept {
    const bool has_bias = (*this)[i].bias.size() > 0 || (*this)[i].lora_bias.size() > 0;
    const auto place = std::lower_bound(with_bias_.begin(), with_bias_.end(), i);
    const bool noted = place != with_bias_.end() && *place == i;
    if (has_bias && !noted) with_bias_.insert(place, i);
    if (noted && !has_bias) with_bias_.erase(place);
  }
  static void take_out(std::vector<Index>& positions, Index gone) noexcept {
    positions.erase(std::remove(positions.begin(), positions.end(), gone), positions.end());
    for (Index& i : positions) i -= i > gone ? 1 : 0;
  }

  std::vector<std::unique_ptr<Adapter>> adapters_;
  // Positions; each list has room for all of them.
  std::vector<Index> active_;
  std::vector<Index> by_name_;
  std::vector<Index> with_bias_;
  bool enabled_ = true;
  std::uint64_t next_id_ = 1;
};

}  // namespace lora
