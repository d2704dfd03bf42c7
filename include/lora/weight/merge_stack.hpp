// SPDX-License-Identifier: MIT
// Several updates merged into one frozen weight. Each can be taken out again, exactly.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/executor.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/merge_undo.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// What is kept while updates are merged into a weight: one MergeUndo each, in the order of merging. Number i holds the
/// difference between W_i and W_(i-1), where W_i = round(W_(i-1) + delta_i), so only the last one can be undone
/// directly; removing an inner one undoes those above it and merges them again (replace()).
///
/// Keys are the caller's names for the updates. Pass every function the weight that the stack belongs to.
template <RealScalar Scalar>
class MergeStack {
 public:
  /// The caller's number for an update.
  using Key = std::uint64_t;

  /// Updates that are merged.
  [[nodiscard]] std::size_t size() const noexcept { return keys_.size(); }
  /// Whether nothing is merged.
  [[nodiscard]] bool empty() const noexcept { return keys_.empty(); }
  /// Key of the update that was merged as number `i`.
  [[nodiscard]] Key key(std::size_t i) const noexcept { return keys_[i]; }
  /// Whether the update of that key is merged.
  [[nodiscard]] bool contains(Key key) const noexcept {
    return std::find(keys_.begin(), keys_.end(), key) != keys_.end();
  }

  /// W <- f (.) (W + s*B*A), where f are `output_factors`, or ones. @throws like MergeUndo::merge; neither weight nor
  /// stack changes then.
  void push(std::string_view operation, WeightRef<Scalar> weight, Key key, const LowRankUpdate<Scalar>& update,
            std::span<const Scalar> output_factors = {}) {
    if (undos_.size() == undos_.capacity()) undos_.reserve(2 * undos_.size() + 1);
    if (keys_.size() == keys_.capacity()) keys_.reserve(2 * keys_.size() + 1);
    undos_.push_back(MergeUndo<Scalar>::merge(operation, weight, update, output_factors));
    keys_.push_back(key);
  }

  /// Takes out, bit for bit, the updates merged after the first `size`.
  void truncate(WeightRef<Scalar> weight, std::size_t size) noexcept {
    while (undos_.size() > size) {
      undos_.back().unmerge(weight);
      undos_.pop_back();
      keys_.pop_back();
    }
  }

  /// Takes out the updates merged after the first `size`, and lets `push_others` push others in their place. If that
  /// throws, all is as before, bit for bit: the undos of the former updates are kept until then. @throws
  /// std::bad_alloc, and what push_others throws
  void replace(WeightRef<Scalar> weight, std::size_t size, FunctionRef<void()> push_others) {
    const auto tail = static_cast<std::ptrdiff_t>(size);
    const std::vector<Key> keys(keys_.begin() + tail, keys_.end());
    std::vector<MergeUndo<Scalar>> undos(keys.size());
    for (std::size_t i = keys.size(); i-- > 0;) undos_[size + i].unmerge(weight);
    std::move(undos_.begin() + tail, undos_.end(), undos.begin());
    undos_.erase(undos_.begin() + tail, undos_.end());
    keys_.erase(keys_.begin() + tail, keys_.end());
    try {
      push_others();
    } catch (...) {
      truncate(weight, size);
      for (std::size_t i = 0; i < keys.size(); ++i) {  // into memory that these vectors have kept
        undos[i].merge_again(weight);
        undos_.push_back(std::move(undos[i]));
        keys_.push_back(keys[i]);
      }
      throw;
    }
  }

  /// Writes W0 to `out` (out_features x in_features, any strides), bit for bit, while `weight` stays merged. Holds no
  /// more than a piece of it at a time. @throws ShapeError; StateError when the weight is not readable; std::bad_alloc
  void read_base(WeightRef<Scalar> weight, const MatrixView<Scalar>& out) const {
    std::vector<typename MergeUndo<Scalar>::Cursor> cursors(undos_.size());
    MergeUndo<Scalar>::read_unmerged(weight, undos_, cursors, out);
  }

  /// Forgets the updates: they become a permanent part of the weight.
  void forget() noexcept {
    std::vector<Key>().swap(keys_);
    std::vector<MergeUndo<Scalar>>().swap(undos_);
  }

  /// Bytes held besides the copies of the factors: about one per weight for every update.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const MergeUndo<Scalar>& undo : undos_) total += undo.bytes();
    return total;
  }

 private:
  std::vector<Key> keys_;
  std::vector<MergeUndo<Scalar>> undos_;
};

#if defined(LORA_COMPILED)
extern template class MergeStack<float>;
extern template class MergeStack<double>;
#endif

}  // namespace lora
