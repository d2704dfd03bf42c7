// What one pass through a layer with several adapters leaves behind: records and gradients, one an adapter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lora/adapter/gradients.hpp"
#include "lora/adapter/record.hpp"

namespace lora {

/// The LoraRecords of one forward pass, in the order of the adapters that took part. Owned by the caller, one per pass
/// that is still to be differentiated; reusing it allocates only to grow.
template <RealScalar Scalar>
class MultiLoraRecord {
 public:
  /// Where this batch stands in the dropout sequence of every adapter. Set it before the forward pass. Adapters drop
  /// independently because their seeds differ.
  DropoutPosition position;

  /// Rows of the batch of the last forward pass; -1 before the first.
  [[nodiscard]] Index rows() const noexcept { return rows_; }
  /// Number of adapters that took part.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// Record of the i-th adapter that took part.
  [[nodiscard]] const LoraRecord<Scalar>& operator[](std::size_t i) const noexcept { return entries_[i].record; }
  [[nodiscard]] LoraRecord<Scalar>& operator[](std::size_t i) noexcept { return entries_[i].record; }
  /// Its id.
  [[nodiscard]] std::uint64_t id(std::size_t i) const noexcept { return entries_[i].id; }

  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (std::size_t i = 0; i < size_; ++i) total += entries_[i].record.bytes();
    return total;
  }

  /// Forgets the last pass and keeps its memory. Backward refuses the record until the next forward pass is complete.
  void clear() noexcept {
    rows_ = -1;
    size_ = 0;
  }
  /// Makes room for the records of `size` adapters, to be filled. For the forward pass of a layer.
  void prepare(std::size_t size) {
    clear();
    if (entries_.size() < size) entries_.resize(size);
    size_ = size;
  }
  /// The record of the i-th adapter, whose id is given, without what it held.
  [[nodiscard]] LoraRecord<Scalar>& start(std::size_t i, std::uint64_t id) noexcept {
    Entry& entry = entries_[i];
    entry.id = id;
    entry.record.clear();
    entry.record.position = position;
    return entry.record;
  }
  /// The pass is complete.
  void finish(Index rows) noexcept { rows_ = rows; }

 private:
  struct Entry {
    std::uint64_t id = 0;
    LoraRecord<Scalar> record;
  };

  Index rows_ = -1;
  std::size_t size_ = 0;
  std::vector<Entry> entries_;
};

/// Gradients of the active adapters of one layer, in their order.
template <RealScalar Scalar>
struct MultiLoraGradients {
  std::vector<LoraGradients<Scalar>> adapters;

  void set_zero() noexcept {
    for (auto& gradients : adapters) gradients.set_zero();
  }

  /// Adds another worker's gradients of the same adapters.
  MultiLoraGradients& operator+=(const MultiLoraGradients& other) noexcept {
    for (std::size_t i = 0; i < adapters.size(); ++i) adapters[i] += other.adapters[i];
    return *this;
  }

  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const auto& gradients : adapters) total += gradients.bytes();
    return total;
  }
};

}  // namespace lora
