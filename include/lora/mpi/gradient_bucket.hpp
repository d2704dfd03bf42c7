// SPDX-License-Identifier: MIT
// Several gradients in one buffer, while they are averaged over the ranks.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "lora/core/rounding.hpp"
#include "lora/core/types.hpp"
#include "lora/mpi/communicator.hpp"
#include "lora/mpi/shard.hpp"

namespace lora::mpi {

/// Gradients of n scalars, packed one after the other, that p ranks average in two exchanges:
///
/// 1. `send`: rank j gets the j-th slice of n/p scalars from every rank (MPI_Ialltoallv);
/// 2. `average`: each rank forms f_0 g_0 + f_1 g_1 + ... for its own slice, in double, in the order of the ranks,
///    rounds once, and hands the slice to all (MPI_Iallgatherv); `unpack` waits and writes the gradients.
///
/// Every element is computed once, on one rank, from all contributions in a fixed order, and copied. So all ranks hold
/// the same bits, which depend neither on the order of arrival, nor on MPI's algorithms, nor on how gradients were
/// divided into buckets. Each rank sends 2 n (p-1)/p scalars and holds 2 n of them. Buffers only grow.
///
/// While an exchange is under way MPI reads and writes the buffers: do not move or destroy the bucket then.
template <RealScalar Scalar>
class GradientBucket {
 public:
  /// Packs the gradients and begins the first exchange. Collective, like all members below.
  void send(const Communicator& ranks, std::span<const std::span<Scalar>> gradients) {
    gradients_.assign(gradients.begin(), gradients.end());
    lay_out(ranks);
    Scalar* next = packed_.data();
    for (const auto& gradient : gradients_) next = std::ranges::copy(gradient, next).out;
    detail::check("MPI_Ialltoallv",
                  MPI_Ialltoallv(packed_.data(), counts_.data(), offsets_.data(), type(), received_.data(),
                                 own_counts_.data(), own_offsets_.data(), type(), ranks.handle(), &request_));
  }

  /// Lets MPI work on the exchange; never waits. True if none is under way any more.
  bool progress() {
    int done = 0;
    detail::check("MPI_Test", MPI_Test(&request_, &done, MPI_STATUS_IGNORE));
    return done != 0;
  }

  /// Waits for the first exchange, averages with the ranks' `factors`, and begins the second. A rank with factor 0 adds
  /// nothing, whatever its gradients hold.
  void average(const Communicator& ranks, std::span<const double> factors) {
    ranks.wait("MPI_Ialltoallv", request_);
    average_slice(offsets_[static_cast<std::size_t>(ranks.rank())], factors);
    detail::check("MPI_Iallgatherv", MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, packed_.data(), counts_.data(),
                                                     offsets_.data(), type(), ranks.handle(), &request_));
  }

  /// Waits for the second exchange and writes the means into the gradients.
  void unpack(const Communicator& ranks) {
    ranks.wait("MPI_Iallgatherv", request_);
    const Scalar* next = packed_.data();
    for (const auto& gradient : gradients_) {
      std::copy_n(next, gradient.size(), gradient.data());
      next += gradient.size();
    }
  }

 private:
  static constexpr Index piece_size = 1024;
  using Piece = std::array<double, piece_size>;

  [[nodiscard]] static MPI_Datatype type() noexcept { return detail::datatype<Scalar>(); }

  void lay_out(const Communicator& ranks) {
    Index size = 0;
    for (const auto& gradient : gradients_) size += static_cast<Index>(gradient.size());
    static_cast<void>(detail::checked_count("lora::mpi::GradientBucket", size));
    const auto ranks_count = static_cast<std::size_t>(ranks.size());
    counts_.resize(ranks_count);
    offsets_.resize(ranks_count);
    own_offsets_.resize(ranks_count);
    const Shard own = shard(size, ranks.rank(), ranks.size());
    own_counts_.assign(ranks_count, static_cast<int>(own.count));
    for (int rank = 0; rank < ranks.size(); ++rank) {
      const Shard slice = shard(size, rank, ranks.size());
      const auto i = static_cast<std::size_t>(rank);
      counts_[i] = static_cast<int>(slice.count);
      offsets_[i] = static_cast<int>(slice.begin);
      own_offsets_[i] = detail::checked_count("lora::mpi::GradientBucket", own.count * rank);
    }
    packed_.resize(static_cast<std::size_t>(size));
    received_.resize(static_cast<std::size_t>(own.count) * ranks_count);
  }

  // In pieces that stay in the cache, so that the sums in double need no memory that grows.
  void average_slice(int offset, std::span<const double> factors) {
    const Index own = own_counts_.front();
    Piece sums;
    for (Index begin = 0; begin < own; begin += piece_size) {
      const Index size = std::min(piece_size, own - begin);
      sum_over_ranks(begin, size, factors, sums);
      Scalar* const means = packed_.data() + offset + begin;
      for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) means[i] = static_cast<Scalar>(sums[i]);
    }
  }

  // The sum starts at -0, so that a single contribution of factor 1 keeps its bits, including signed zeros.
  void sum_over_ranks(Index begin, Index size, std::span<const double> factors, Piece& sums) const {
    sums.fill(-0.0);
    for (std::size_t rank = 0; rank < factors.size(); ++rank) {
      if (factors[rank] != 0) add_product(factors[rank], received_.data() + own_offsets_[rank] + begin, size, sums);
    }
  }

  // Each product is rounded before it is added, whatever the including file's flags.
  static void add_product(double factor, const Scalar* from, Index size, Piece& sums) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
      sums[i] += lora::detail::product(factor, static_cast<double>(from[i]));
    }
  }

  std::vector<std::span<Scalar>> gradients_;
  std::vector<Scalar> packed_;    // n
  std::vector<Scalar> received_;  // p x n/p, in the order of the ranks
  std::vector<int> counts_;       // scalars of each rank's slice
  std::vector<int> offsets_;      // and where it begins in packed_
  std::vector<int> own_counts_;
  std::vector<int> own_offsets_;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

}  // namespace lora::mpi
