// SPDX-License-Identifier: MIT
// What tests on several ranks share: the communicator of all of them, and comparisons across it.
#pragma once

#include <cstddef>
#include <cstring>
#include <gtest/gtest.h>
#include <vector>

#include "lora/mpi/communicator.hpp"

namespace lora::testing {

/// All ranks of the job that runs these tests; set by the program before the first test.
inline const mpi::Communicator*& world_pointer() noexcept {
  static const mpi::Communicator* pointer = nullptr;
  return pointer;
}
[[nodiscard]] inline const mpi::Communicator& world() { return *world_pointer(); }

/// The arrays of all ranks, in the order of the ranks. All have the same size.
template <class Scalar>
[[nodiscard]] std::vector<Matrix<Scalar>> gather(const Matrix<Scalar>& mine) {
  const auto bytes = static_cast<std::size_t>(mine.size()) * sizeof(Scalar);
  std::vector<unsigned char> all(bytes * static_cast<std::size_t>(world().size()) + 1);
  MPI_Allgather(mine.data(), static_cast<int>(bytes), MPI_BYTE, all.data(), static_cast<int>(bytes), MPI_BYTE,
                world().handle());
  std::vector<Matrix<Scalar>> result(static_cast<std::size_t>(world().size()), mine);
  for (std::size_t rank = 0; rank < result.size() && bytes > 0; ++rank) {
    std::memcpy(result[rank].data(), all.data() + rank * bytes, bytes);
  }
  return result;
}

/// Success on every rank when all hold the same bits.
template <class Scalar>
[[nodiscard]] ::testing::AssertionResult same_on_all_ranks(const Matrix<Scalar>& mine) {
  const auto all = gather(mine);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    if (mine.size() > 0 &&
        std::memcmp(all[0].data(), all[rank].data(), static_cast<std::size_t>(mine.size()) * sizeof(Scalar)) != 0) {
      return ::testing::AssertionFailure() << "rank 0 holds\n" << all[0] << "\nand rank " << rank << "\n" << all[rank];
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace lora::testing
