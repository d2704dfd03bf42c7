// train, eval, merge and unmerge: the state machine that all layers share.
#pragma once

#include <string_view>

#include "lora/core/error.hpp"

namespace lora {

/// Base of a layer that can merge. `Layer` provides `void apply_merge()` and `void apply_unmerge() noexcept`, which
/// are only called in the state they start from, and `bool merges_weights() const`.
///
/// A layer starts in training mode, unmerged. Every call is idempotent; after any sequence of calls the layer is in
/// the state the last of them names. When merging throws, neither mode nor weight has changed.
template <class Layer>
class MergeState {
 public:
  /// Training mode; with merge_weights also unmerges. `train(false)` is `eval()`. @throws as merge().
  Layer& train(bool mode = true) {
    if (!mode) return eval();
    if (self().merges_weights()) unmerge();
    training_ = true;
    return self();
  }

  /// Evaluation mode; with merge_weights also merges. @throws as merge().
  Layer& eval() {
    if (self().merges_weights()) merge();
    training_ = false;
    return self();
  }

  /// Adds s*B*A to the weight in place. @throws StateError when that is not finite or the weight is read-only,
  /// std::bad_alloc; then nothing has changed.
  Layer& merge() {
    if (!merged_) {
      self().apply_merge();
      merged_ = true;
    }
    return self();
  }

  /// Makes the adapter part of the weight for good; the layer is a plain one of rank 0 afterwards. Layers that offer
  /// it have `void drop_merged_adapter()`, which forgets the merge and the adapter. @throws as merge()
  Layer& merge_and_unload() {
    merge();
    self().drop_merged_adapter();
    merged_ = false;
    return self();
  }

  /// Restores the weight bit for bit.
  Layer& unmerge() noexcept {
    if (merged_) {
      self().apply_unmerge();
      merged_ = false;
    }
    return self();
  }

  [[nodiscard]] bool training() const noexcept { return training_; }
  [[nodiscard]] bool merged() const noexcept { return merged_; }

 protected:
  MergeState() = default;
  ~MergeState() = default;
  MergeState(const MergeState&) = default;
  MergeState(MergeState&&) noexcept = default;
  MergeState& operator=(const MergeState&) = default;
  MergeState& operator=(MergeState&&) noexcept = default;

  /// @throws StateError while merged
  void require_unmerged(std::string_view operation) const {
    if (merged_) {
      throw StateError(operation, "layer", "an unmerged layer (call train() or unmerge() first)", "a merged one");
    }
  }

  /// True while the factors must not change.
  [[nodiscard]] const bool* merged_flag() const noexcept { return &merged_; }

 private:
  [[nodiscard]] Layer& self() noexcept { return static_cast<Layer&>(*this); }

  bool training_ = true;
  bool merged_ = false;
};

}  // namespace lora
