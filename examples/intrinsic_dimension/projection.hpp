// SPDX-License-Identifier: MIT
// A fixed random subspace of a large parameter space, never held as a matrix.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/philox.hpp"
#include "lora/core/types.hpp"
#include "lora/core/workspace.hpp"

namespace examples::intrinsic_dimension {

using lora::Index;

/// P (D x d), the projection of theta = theta_0 + P theta_d, with P^T P = I up to the last block.
///
/// The D parameters are dealt to blocks of n, a power of two with n >= d. The rows of a block are those of
///
///     sqrt(n / D) * H S3 H S2 H S1,  its first d columns,
///
/// where H is the orthonormal Walsh-Hadamard matrix (n x n) and S1, S2, S3 are diagonals of random signs, new ones for
/// every block. Each whole block contributes n / D * I to P^T P, so columns are orthonormal exactly when the blocks
/// divide D, and otherwise nearly so: with b whole blocks, the squared length of P x lies between
/// b n / D and (b + lanes) n / D times that of x.
///
/// Why this one: a dense P for D = 535,818 and d = 1024 takes 2.2 GB. The Fastfood transform that Aghajanyan et al. use
/// (H G Pi H B with a Gaussian diagonal G and a permutation Pi) needs 2 D floats and D indices, and its columns are
/// orthonormal in expectation only. With signs in place of G and a third round in place of Pi every block is
/// orthogonal, there is nothing to gather, and blocks of n rather than D make a product cost 3 D log2(n) additions. H
/// S3 H S2 H S1 is the structured orthogonal matrix of Yu et al. The price: entries are sums of n^2 signs rather than
/// exact normal deviates. That is why n is at least 1024 however small d is.
///
/// The same seed gives the same P on every platform, and P of a smaller d is the first columns of P of a larger one as
/// long as n is the same. One object serves one thread at a time; a product allocates nothing.
///
/// Sources: Li et al., arXiv 1804.08838; Aghajanyan et al., arXiv 2012.13255, section 3; Le, Sarlos, Smola, "Fastfood",
/// ICML 2013; Yu et al., "Orthogonal Random Features", arXiv 1610.09072, section 4.
class SubspaceProjection {
 public:
  /// Blocks that are transformed together, side by side, so that every butterfly is a loop over contiguous numbers.
  static constexpr Index lanes = 8;
  static constexpr Index smallest_block = 1024;

  /// @throws lora::ConfigError unless 1 <= subspace <= parameters; std::bad_alloc
  SubspaceProjection(Index parameters, Index subspace, std::uint64_t seed)
      : parameters_(parameters), subspace_(subspace), block_(block_size(parameters, subspace)) {
    signs_.resize(static_cast<std::size_t>(groups() * rounds * group_size()));
    const lora::RandomStream stream(seed, static_cast<std::uint64_t>(block_));
    for (std::size_t i = 0; i < signs_.size(); i += 128) {
      const auto words = stream.block(i / 128);
      for (std::size_t bit = 0; bit < 128; ++bit) {
        signs_[i + bit] = (words[bit / 32] >> (bit % 32) & 1U) != 0 ? 1.0F : -1.0F;
      }
    }
  }

  [[nodiscard]] Index parameters() const noexcept { return parameters_; }  ///< D
  [[nodiscard]] Index subspace() const noexcept { return subspace_; }      ///< d
  [[nodiscard]] Index block() const noexcept { return block_; }            ///< n

  /// theta (D) = P coordinates (d).
  void apply(std::span<const float> coordinates, std::span<float> theta) {
    check("apply", coordinates, theta);
    float* const x = scratch();
    for (Index g = 0; g < groups(); ++g) {
      for (Index q = 0; q < subspace_; ++q) row(x, q).setConstant(coordinates[static_cast<std::size_t>(q)]);
      std::fill(x + subspace_ * lanes, x + group_size(), 0.0F);
      for (Index round = 0; round < rounds; ++round) {
        multiply_signs(x, g, round);
        hadamard(x);
      }
      Values(theta.data() + g * group_size(), group_parameters(g)) = scale() * Values(x, group_parameters(g));
    }
  }

  /// coordinates (d) = P^T theta (D).
  void apply_transposed(std::span<const float> theta, std::span<float> coordinates) {
    check("apply_transposed", coordinates, theta);
    float* const x = scratch();
    std::fill(coordinates.begin(), coordinates.end(), 0.0F);
    for (Index g = 0; g < groups(); ++g) {
      const float* const source = theta.data() + g * group_size();
      std::copy(source, source + group_parameters(g), x);
      std::fill(x + group_parameters(g), x + group_size(), 0.0F);
      for (Index round = rounds; round-- > 0;) {
        hadamard(x);
        multiply_signs(x, g, round);
      }
      for (Index q = 0; q < subspace_; ++q) coordinates[static_cast<std::size_t>(q)] += row(x, q).sum();
    }
    for (float& coordinate : coordinates) coordinate *= scale();
  }

 private:
  static constexpr Index rounds = 3;
  using Values = Eigen::Map<Eigen::ArrayXf>;
  using Row = Eigen::Array<float, lanes, 1>;
  using RowMap = Eigen::Map<Row, Eigen::Aligned16>;

  static Index block_size(Index parameters, Index subspace) {
    if (subspace < 1 || subspace > parameters) {
      throw lora::ConfigError("SubspaceProjection", "subspace", "1 to " + std::to_string(parameters),
                              std::to_string(subspace));
    }
    return std::max(smallest_block, static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(subspace))));
  }

  [[nodiscard]] Index group_size() const noexcept { return lanes * block_; }
  [[nodiscard]] Index groups() const noexcept { return (parameters_ + group_size() - 1) / group_size(); }
  [[nodiscard]] Index group_parameters(Index g) const noexcept {
    return std::min(group_size(), parameters_ - g * group_size());
  }
  // sqrt(n / D), and 1 / sqrt(n) for each H, which hadamard() leaves out.
  [[nodiscard]] float scale() const noexcept {
    return static_cast<float>(1.0 / (static_cast<double>(block_) * std::sqrt(static_cast<double>(parameters_))));
  }
  [[nodiscard]] float* scratch() { return scratch_.reserve<float>(static_cast<std::size_t>(group_size())); }
  [[nodiscard]] static RowMap row(float* x, Index q) noexcept { return RowMap(x + q * lanes); }

  void multiply_signs(float* x, Index g, Index round) const noexcept {
    Values(x, group_size()) *=
        Eigen::Map<const Eigen::ArrayXf>(signs_.data() + (g * rounds + round) * group_size(), group_size());
  }

  // x (n x lanes) = sqrt(n) H x.
  void hadamard(float* x) const noexcept {
    for (Index half = 1; half < block_; half *= 2) {
      for (Index first = 0; first < block_; first += 2 * half) {
        for (Index q = first; q < first + half; ++q) {
          RowMap a = row(x, q);
          RowMap b = row(x, q + half);
          const Row difference = a - b;
          a += b;
          b = difference;
        }
      }
    }
  }

  template <class Coordinates, class Theta>
  void check(const char* operation, const Coordinates& coordinates, const Theta& theta) const {
    const auto require = [&](const char* argument, std::size_t size, Index wanted) {
      if (static_cast<Index>(size) == wanted) return;
      throw lora::ShapeError(std::string("SubspaceProjection::") + operation, argument, std::to_string(wanted),
                             std::to_string(size));
    };
    require("coordinates", coordinates.size(), subspace_);
    require("theta", theta.size(), parameters_);
  }

  Index parameters_;
  Index subspace_;
  Index block_;
  std::vector<float> signs_;  ///< groups x rounds x n x lanes
  lora::AlignedBuffer scratch_;
};

}  // namespace examples::intrinsic_dimension
