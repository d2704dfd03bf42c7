// SPDX-License-Identifier: MIT
// The IDX reader believes nothing that the file does not bear out.
#include "common/idx.hpp"

#include <gtest/gtest.h>
#include <string>

#include "examples/idx_bytes.hpp"
#include "examples/temporary_folder.hpp"

namespace idx_test {
namespace {

using examples::read_idx;
using examples::testing::gzip;
using examples::testing::idx_bytes;
using examples::testing::TemporaryFolder;

examples::IdxArray read_bytes(const std::string& file_bytes, std::size_t rank, std::size_t limit = 1U << 20U) {
  const TemporaryFolder folder;
  return read_idx(folder.write("array.gz", file_bytes), rank, limit);
}

/// What the refusal of a file says.
std::string refusal(const std::string& file_bytes, std::size_t rank, std::size_t limit = 1U << 20U) {
  try {
    static_cast<void>(read_bytes(file_bytes, rank, limit));
  } catch (const lora::FormatError& error) {
    return error.what();
  }
  return "accepted";
}

#define EXPECT_REFUSED_FOR(words, ...) \
  EXPECT_NE(refusal(__VA_ARGS__).find(words), std::string::npos) << refusal(__VA_ARGS__)

TEST(Idx, ReadsShapeAndValues) {
  const auto array = read_bytes(gzip(idx_bytes({2, 1, 3}, "abcdef")), 3);
  EXPECT_EQ(array.shape, (std::vector<std::size_t>{2, 1, 3}));
  EXPECT_EQ(std::string(array.values.begin(), array.values.end()), "abcdef");
}

TEST(Idx, ReadsAnArrayWithoutElements) { EXPECT_TRUE(read_bytes(gzip(idx_bytes({0, 28, 28}, "")), 3).values.empty()); }

TEST(Idx, ReadsMoreThanOneChunk) {
  const std::string values(3'000'001, 'x');
  const auto array = read_bytes(gzip(idx_bytes({3'000'001}, values)), 1, 1U << 22U);
  EXPECT_EQ(array.values.size(), values.size());
  EXPECT_EQ(array.values.back(), 'x');
}

TEST(Idx, RefusesAFileThatIsNotThere) {
  EXPECT_THROW(static_cast<void>(read_idx("/nonexistent/array.gz", 1)), lora::IoError);
}

TEST(Idx, RefusesWhatIsNoGzipStream) {
  EXPECT_REFUSED_FOR("gzip", idx_bytes({2}, "ab"), 1);
  EXPECT_REFUSED_FOR("gzip", "", 1);
}

TEST(Idx, RefusesATruncatedStream) {
  const std::string whole = gzip(idx_bytes({1000}, std::string(1000, 'a')));
  for (const std::size_t size : {whole.size() - 1, whole.size() - 8, whole.size() / 2, std::size_t{11}}) {
    EXPECT_NE(refusal(whole.substr(0, size), 1), "accepted") << size;
  }
}

TEST(Idx, RefusesAWrongChecksum) {
  std::string bytes = gzip(idx_bytes({4}, "abcd"));
  bytes[bytes.size() - 8] = static_cast<char>(bytes[bytes.size() - 8] ^ 1);
  EXPECT_REFUSED_FOR("intact", bytes, 1);
}

TEST(Idx, RefusesAnotherMagicNumber) {
  std::string bytes = idx_bytes({1}, "a");
  bytes[1] = 1;
  EXPECT_REFUSED_FOR("magic", gzip(bytes), 1);
}

TEST(Idx, RefusesAnotherType) { EXPECT_REFUSED_FOR("type", gzip(idx_bytes({1}, "abcd", '\x0D')), 1); }
TEST(Idx, RefusesAnotherRank) { EXPECT_REFUSED_FOR("rank 3", gzip(idx_bytes({1}, "a")), 3); }
TEST(Idx, RefusesTooFewValues) { EXPECT_REFUSED_FOR("6 bytes of values", gzip(idx_bytes({2, 3}, "abcde")), 2); }
TEST(Idx, RefusesTooManyValues) { EXPECT_REFUSED_FOR("end of the file", gzip(idx_bytes({2, 3}, "abcdefg")), 2); }
TEST(Idx, RefusesMissingExtents) { EXPECT_REFUSED_FOR("extent", gzip(idx_bytes({2}, "ab").substr(0, 6)), 1); }

TEST(Idx, RefusesExtentsWhoseProductOverflows) {
  constexpr std::uint32_t most = 0xFFFFFFFFU;
  EXPECT_REFUSED_FOR("at most", gzip(idx_bytes({most, most, most}, "abc")), 3, 1U << 30U);
  EXPECT_REFUSED_FOR("at most", gzip(idx_bytes({0x10000, 0x10000, 0x10000, 0x10000}, "abc")), 4, 1U << 30U);
}

TEST(Idx, RefusesMoreThanTheLimit) {
  EXPECT_REFUSED_FOR("at most 5", gzip(idx_bytes({2, 3}, "abcdef")), 2, 5);
  EXPECT_EQ(read_bytes(gzip(idx_bytes({2, 3}, "abcdef")), 2, 6).values.size(), 6U);
}

}  // namespace
}  // namespace idx_test
