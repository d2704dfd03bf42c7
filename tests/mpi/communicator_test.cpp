// SPDX-License-Identifier: MIT
// A communicator is its own: numbered ranks, messages apart from others', errors as exceptions.
#include "lora/mpi/communicator.hpp"

#include <chrono>
#include <climits>
#include <gtest/gtest.h>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "mpi/ranks.hpp"

namespace lora::testing::communicator_test {
namespace {

using mpi::Communicator;
using mpi::MpiError;

TEST(Communicator, RanksAreNumberedFromZero) {
  const auto ranks = gather<double>(Matrix<double>::Constant(1, 1, world().rank()));
  ASSERT_EQ(static_cast<int>(ranks.size()), world().size());
  for (std::size_t i = 0; i < ranks.size(); ++i) EXPECT_EQ(ranks[i](0, 0), static_cast<double>(i));
}

TEST(Communicator, MessagesOfTwoDoNotMeet) {
  const Communicator first(world().handle());
  const Communicator second(world().handle());
  const int next = (first.rank() + 1) % first.size();
  const int sent[2] = {1, 2};
  int got[2] = {0, 0};
  MPI_Request requests[4];
  // Received in the other order, with equal sources and tags.
  MPI_Irecv(&got[1], 1, MPI_INT, MPI_ANY_SOURCE, 0, second.handle(), &requests[0]);
  MPI_Irecv(&got[0], 1, MPI_INT, MPI_ANY_SOURCE, 0, first.handle(), &requests[1]);
  MPI_Isend(&sent[0], 1, MPI_INT, next, 0, first.handle(), &requests[2]);
  MPI_Isend(&sent[1], 1, MPI_INT, next, 0, second.handle(), &requests[3]);
  MPI_Waitall(4, requests, MPI_STATUSES_IGNORE);
  EXPECT_EQ(got[0], 1);
  EXPECT_EQ(got[1], 2);
}

TEST(Communicator, AMovedOneKeepsItsRanks) {
  Communicator first(world().handle());
  const Communicator second(std::move(first));
  EXPECT_EQ(second.rank(), world().rank());
  EXPECT_EQ(second.size(), world().size());
  second.barrier();
}

TEST(Communicator, AFailedCallThrowsWithItsNameAndMpisText) {
  const Communicator ranks(world().handle());
  int value = 0;
  try {
    mpi::detail::check("MPI_Bcast", MPI_Bcast(&value, 1, MPI_INT, -5, ranks.handle()));
    ADD_FAILURE() << "a root of -5 is accepted";
  } catch (const MpiError& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.rfind("MPI_Bcast: ", 0), 0U) << text;
    EXPECT_NE(text.find("root"), std::string::npos) << text;
    int error_class = MPI_SUCCESS;
    MPI_Error_class(error.code(), &error_class);
    EXPECT_EQ(error_class, MPI_ERR_ROOT);
  }
}

TEST(Communicator, WithATimeoutItWaitsForRanksThatAreLate) {
  const Communicator ranks(world().handle(), std::chrono::minutes(10));
  if (ranks.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  ranks.barrier();
  int sum = 0;
  const int one = 1;
  ranks.complete("MPI_Iallreduce", [&](MPI_Request* request) {
    return MPI_Iallreduce(&one, &sum, 1, MPI_INT, MPI_SUM, ranks.handle(), request);
  });
  EXPECT_EQ(sum, ranks.size());
}

TEST(Communicator, ATimeoutIsPositive) {
  for (const int bad : {0, -1}) {
    EXPECT_THROW(Communicator(MPI_COMM_SELF, std::chrono::milliseconds(bad)), ConfigError) << bad;
  }
  EXPECT_EQ(Communicator(MPI_COMM_SELF, std::chrono::seconds(2)).timeout(), std::chrono::milliseconds(2000));
  EXPECT_EQ(Communicator(MPI_COMM_SELF).timeout(), std::nullopt);
}

TEST(Communicator, CountsBeyondAnIntAreRefused) {
  EXPECT_EQ(mpi::detail::checked_count("test", Index{INT_MAX}), INT_MAX);
  EXPECT_THROW(static_cast<void>(mpi::detail::checked_count("test", Index{INT_MAX} + 1)), ShapeError);
}

}  // namespace
}  // namespace lora::testing::communicator_test
