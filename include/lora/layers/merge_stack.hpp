// Several updates merged into one frozen weight, each of which can be taken out again without a trace.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/merge_undo.hpp"

namespace lora {

/// What is kept while updates stand merged in a weight: one MergeUndo each, in the order of merging. Record i holds
/// what separates W_i from W_(i-1), where W_i = round(W_(i-1) + delta_i), so that only the last one can be undone
/// directly; taking out an inner one undoes those above it and merges them again.
///
/// Keys are the caller's names for the updates. Every function takes the one weight that the stack belongs to.
template <RealScalar Scalar>
class MergeStack {
 public:
  using Key = std::uint64_t;

  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  /// Key of the update that was merged as number `i`.
  [[nodiscard]] Key key(std::size_t i) const noexcept { return entries_[i].key; }
  [[nodiscard]] bool contains(Key key) const noexcept {
    return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.key == key; });
  }

  /// W <- f (.) (W + s*B*A), where f are `output_factors`, or ones. @throws as MergeUndo::merge; then neither weight
  /// nor stack has changed.
  template <FrozenWeight Weight>
  void push(std::string_view operation, Weight& weight, Key key, const LowRankUpdate<Scalar>& update,
            std::span<const Scalar> output_factors = {}) {
    if (entries_.size() == entries_.capacity()) entries_.reserve(2 * entries_.size() + 1);
    entries_.push_back({key, MergeUndo<Scalar>::merge(operation, weight, update, output_factors)});
  }

  /// Takes out the updates merged after the first `size` ones. Bit for bit.
  template <FrozenWeight Weight>
  void truncate(Weight& weight, std::size_t size) noexcept {
    while (entries_.size() > size) {
      entries_.back().record.unmerge(weight);
      entries_.pop_back();
    }
  }

  /// Takes out the updates with `leaves(key)`: the weight is then, bit for bit, as if the others had been merged alone
  /// in their order. `update_of(key)` gives the update that was pushed under a key, without output factors: an update
  /// that has some stays only below those that leave. Does not throw where those that leave stand above those that
  /// stay. @throws std::bad_alloc, or StateError where a sum without the leaving update is not finite. Then those that
  /// leave are out, and of those above the lowest of them a first part is merged again and the rest is out.
  template <FrozenWeight Weight, class Leaves, class UpdateOf>
  void remove(std::string_view operation, Weight& weight, const Leaves& leaves, const UpdateOf& update_of) {
    std::size_t first = 0;
    while (first < size() && !leaves(key(first))) ++first;
    std::vector<Key> stay;
    for (std::size_t i = first; i < size(); ++i) {
      if (!leaves(key(i))) stay.push_back(key(i));
    }
    truncate(weight, first);
    for (const Key k : stay) push(operation, weight, k, update_of(k));
  }

  /// W0 into `out` (out_features x in_features, any strides), bit for bit, while `weight` stays merged. Under more than
  /// one update allocates a copy of the weight. @throws std::bad_alloc
  template <FrozenWeight Weight>
  void read_base(const Weight& weight, const MatrixView<Scalar>& out) const {
    if (empty()) return read_back(weight, out);
    if (size() == 1) return entries_.front().record.read_unmerged(weight, out);
    if constexpr (std::is_copy_constructible_v<Weight>) {
      Weight copy(weight);
      read_undone(copy, size(), out);
    } else {
      // A weight of the same shape and orientation is cut into the same tiles, in the order the records count in.
      const Index d = weight.out_features();
      const Index k = weight.in_features();
      const bool by_output = weight.tile(0).lines_are_outputs;
      std::vector<Scalar> memory(static_cast<std::size_t>(by_output ? d * k : (d + 1) * k));
      const MatrixView<Scalar> below{memory.data(), d, k, by_output ? k : 1, by_output ? 1 : d + 1};
      entries_.back().record.read_unmerged(weight, below);
      Weight copy(below);
      read_undone(copy, size() - 1, out);
    }
  }

  /// Bytes held beyond the copies of the factors: about one a weight for every update.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const Entry& entry : entries_) total += entry.record.bytes();
    return total;
  }

 private:
  struct Entry {
    Key key;
    MergeUndo<Scalar> record;
  };

  template <class Weight>
  void read_undone(Weight& copy, std::size_t count, const MatrixView<Scalar>& out) const {
    while (count > 0) entries_[--count].record.unmerge(copy);
    read_back(copy, out);
  }

  std::vector<Entry> entries_;
};

}  // namespace lora
