// SPDX-License-Identifier: MIT
// Which rows a training step sees: an order that follows from a seed and the step alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/philox.hpp"
#include "lora/core/types.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// Batches of the rows 0, ..., count - 1. Each epoch is a permutation that seed and epoch decide, on every platform, so
/// the position in the data is the step itself and any step can be the first. The last batch of an epoch may be
/// smaller.
class BatchOrder {
 public:
  /// @throws lora::ConfigError unless count and batch_size are positive
  BatchOrder(Index count, Index batch_size, std::uint64_t seed) : batch_size_(batch_size), seed_(seed) {
    if (count < 1) throw lora::ConfigError("BatchOrder", "count", "1 or more", std::to_string(count));
    if (batch_size < 1) throw lora::ConfigError("BatchOrder", "batch_size", "1 or more", std::to_string(batch_size));
    order_.resize(static_cast<std::size_t>(count));
  }

  [[nodiscard]] Index per_epoch() const noexcept { return (count() + batch_size_ - 1) / batch_size_; }

  /// Rows of the batch of step 0, 1, ... Valid until the next call.
  [[nodiscard]] std::span<const Index> batch(Index step) {
    if (const Index epoch = step / per_epoch(); epoch != epoch_) shuffle(epoch);
    const Index first = step % per_epoch() * batch_size_;
    return std::span(order_).subspan(static_cast<std::size_t>(first),
                                     static_cast<std::size_t>(std::min(batch_size_, count() - first)));
  }

 private:
  [[nodiscard]] Index count() const noexcept { return static_cast<Index>(order_.size()); }

  // Fisher and Yates. The bias of the modulus is below count / 2^64.
  void shuffle(Index epoch) {
    std::iota(order_.begin(), order_.end(), Index{0});
    const lora::RandomStream stream(seed_, static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order_.size() - 1; i > 0; --i) {
      const auto words = stream.block(i);
      std::swap(order_[i], order_[(std::uint64_t{words[0]} << 32U | words[1]) % (i + 1)]);
    }
    epoch_ = epoch;
  }

  Index batch_size_;
  std::uint64_t seed_;
  Index epoch_ = -1;
  std::vector<Index> order_;
};

}  // namespace examples::sentence_encoder
