// SPDX-License-Identifier: MIT
// The part of a batch that one rank computes.
#pragma once

#include <algorithm>
#include <string>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace lora::mpi {

/// The elements begin, ..., end() - 1.
struct Shard {
  Index begin = 0;  ///< first element
  Index count = 0;  ///< number of elements

  /// One past the last element.
  [[nodiscard]] Index end() const noexcept { return begin + count; }
  bool operator==(const Shard&) const = default;
};

/// Divides `total` elements among `size` ranks: contiguous, in the order of the ranks, each element once. Counts differ
/// by at most one; the longer shards come first. Ranks beyond `total` get none.
/// @throws ConfigError unless total >= 0 and 0 <= rank < size
[[nodiscard]] inline Shard shard(Index total, int rank, int size) {
  if (total < 0) throw ConfigError("lora::mpi::shard", "total", "a number that is not negative", std::to_string(total));
  if (rank < 0 || rank >= size) {
    throw ConfigError("lora::mpi::shard", "rank", "0 <= rank < size",
                      std::to_string(rank) + " of " + std::to_string(size));
  }
  const Index least = total / size;
  const Index longer = total % size;
  return {rank * least + std::min<Index>(rank, longer), least + (rank < longer ? 1 : 0)};
}

}  // namespace lora::mpi
