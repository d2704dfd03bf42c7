// SPDX-License-Identifier: MIT
#include "lora/io/safetensors_reader.hpp"

#include <array>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "io/files.hpp"
#include "lora/core/little_endian.hpp"
#include "lora/io/safetensors_writer.hpp"

namespace lora::safetensors_reader_test {
namespace {

using testing::safetensors_bytes;
using testing::TemporaryFolder;

// "f" F32 2 x 3, "h" F16 [2], "i" I64 scalar, "cube" U8 2 x 1 x 2, "none" F32 0 x 3; the data starts unaligned.
const std::string header_text =
    R"({"f":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"h":{"dtype":"F16","shape":[2],"data_offsets":[24,28]},)"
    R"("i":{"dtype":"I64","shape":[],"data_offsets":[28,36]},"cube":{"dtype":"U8","shape":[2,1,2],"data_offsets":[36,40]},)"
    R"("none":{"dtype":"F32","shape":[0,3],"data_offsets":[40,40]},"__metadata__":{"k":"v"}})";

std::vector<std::byte> example(std::size_t padding = 0) {
  auto file = safetensors_bytes(header_text + std::string(padding, ' '), 40);
  std::byte* data = file.data() + file.size() - 40;
  for (int i = 0; i < 6; ++i) store_little_endian(static_cast<float>(i + 1), data + 4 * i);
  store_little_endian(std::uint16_t{0x3C00}, data + 24);
  store_little_endian(std::uint16_t{0xC000}, data + 26);
  store_little_endian(std::int64_t{-7}, data + 28);
  return file;
}

template <class Call>
SafetensorsErrorKind refusal(const Call& call, std::string* message = nullptr) {
  try {
    call();
  } catch (const SafetensorsError& error) {
    if (message != nullptr) *message = error.what();
    return error.kind();
  }
  throw std::runtime_error("nothing was refused");
}

TEST(SafetensorsFile, ListsAndFindsTensors) {
  const auto bytes = example();
  const auto file = SafetensorsFile::from_bytes(bytes);
  EXPECT_EQ(file.size(), 5U);
  EXPECT_EQ(file.names(), (std::vector<std::string_view>{"cube", "f", "h", "i", "none"}));
  EXPECT_TRUE(file.contains("f"));
  EXPECT_FALSE(file.contains("g"));
  EXPECT_FALSE(file.contains("__metadata__"));
  EXPECT_FALSE(file.contains(""));
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_EQ(file.metadata().size(), 1U);
}

TEST(SafetensorsFile, TensorShowsTheFilesOwnBytes) {
  const auto bytes = example();
  const auto file = SafetensorsFile::from_bytes(bytes);
  const TensorView cube = file.tensor("cube");
  EXPECT_EQ(cube.name, "cube");
  EXPECT_EQ(cube.dtype, Dtype::U8);
  EXPECT_EQ(cube.shape, (std::vector<Index>{2, 1, 2}));
  EXPECT_EQ(cube.bytes.data(), bytes.data() + bytes.size() - 4);
  EXPECT_EQ(cube.bytes.size(), 4U);
  EXPECT_EQ(cube.size(), 4);
}

template <class Scalar>
class SafetensorsMatrix : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SafetensorsMatrix, Scalars);

TYPED_TEST(SafetensorsMatrix, ReadsAtEveryAlignment) {
  for (std::size_t padding = 0; padding < 8; ++padding) {
    const auto bytes = example(padding);
    const auto file = SafetensorsFile::from_bytes(bytes);
    const Matrix<TypeParam> f = file.matrix<TypeParam>("f");
    EXPECT_EQ(f, (Matrix<TypeParam>{{1, 2, 3}, {4, 5, 6}}));
    const Matrix<TypeParam> h = file.matrix<TypeParam>("h");
    EXPECT_EQ(h, (Matrix<TypeParam>{{1, -2}}));
  }
}

TYPED_TEST(SafetensorsMatrix, KeepsTheShapeOfEmptyTensors) {
  const auto bytes = example();
  const Matrix<TypeParam> none = SafetensorsFile::from_bytes(bytes).template matrix<TypeParam>("none");
  EXPECT_EQ(none.rows(), 0);
  EXPECT_EQ(none.cols(), 3);
}

TYPED_TEST(SafetensorsMatrix, RefusesDtypesAndRanksThatAreNoRealMatrix) {
  const auto bytes = example();
  const auto file = SafetensorsFile::from_bytes(bytes);
  EXPECT_EQ(refusal([&] { static_cast<void>(file.matrix<TypeParam>("i")); }), SafetensorsErrorKind::unexpected_dtype);
  EXPECT_EQ(refusal([&] { static_cast<void>(file.matrix<TypeParam>("cube")); }),
            SafetensorsErrorKind::unexpected_shape);
}

TYPED_TEST(SafetensorsMatrix, TakesAnyNumberOfRowsThatDividesTheSize) {
  const auto bytes = example();
  const auto file = SafetensorsFile::from_bytes(bytes);
  EXPECT_EQ(file.tensor("f").matrix<TypeParam>(3), (Matrix<TypeParam>{{1, 2}, {3, 4}, {5, 6}}));
  EXPECT_EQ(file.tensor("none").matrix<TypeParam>(0).size(), 0);
  for (const Index rows : {-1, 0, 4}) {
    std::string message;
    EXPECT_EQ(refusal([&] { static_cast<void>(file.tensor("f").matrix<TypeParam>(rows)); }, &message),
              SafetensorsErrorKind::unexpected_shape);
    EXPECT_NE(message.find("elements for " + std::to_string(rows) + " rows"), std::string::npos) << message;
  }
}

TEST(TensorView, CopiesAnyRankAndExactIntegers) {
  const auto bytes = example();
  const auto file = SafetensorsFile::from_bytes(bytes);
  std::array<std::uint8_t, 4> cube{};
  file.tensor("cube").copy_to(std::span<std::uint8_t>(cube));
  EXPECT_EQ(std::memcmp(cube.data(), bytes.data() + bytes.size() - 4, 4), 0);
  std::array<std::int64_t, 1> i{};
  file.tensor("i").copy_to(std::span<std::int64_t>(i));
  EXPECT_EQ(i[0], -7);
}

TEST(TensorView, CopyRefusesAnotherIntegerOrSize) {
  const auto bytes = example();
  const auto file = SafetensorsFile::from_bytes(bytes);
  std::array<std::uint64_t, 1> wrong_type{};
  EXPECT_EQ(refusal([&] { file.tensor("i").copy_to(std::span<std::uint64_t>(wrong_type)); }),
            SafetensorsErrorKind::unexpected_dtype);
  std::array<std::int64_t, 2> wrong_size{};
  EXPECT_EQ(refusal([&] { file.tensor("i").copy_to(std::span<std::int64_t>(wrong_size)); }),
            SafetensorsErrorKind::unexpected_shape);
}

TEST(TensorView, MapsAlignedDataInPlaceAndRefusesTheRest) {
  int mapped = 0;
  for (std::size_t padding = 0; padding < 4; ++padding) {
    const auto bytes = example(padding);
    const auto file = SafetensorsFile::from_bytes(bytes);
    const TensorView f = file.tensor("f");
    if (f.mappable<float>()) {
      ++mapped;
      EXPECT_EQ(static_cast<const void*>(f.map<float>().data()), f.bytes.data());
      EXPECT_EQ(f.map<float>(), (Matrix<float>{{1, 2, 3}, {4, 5, 6}}));
    } else {
      EXPECT_EQ(refusal([&] { static_cast<void>(f.map<float>()); }), SafetensorsErrorKind::unexpected_dtype);
    }
    EXPECT_FALSE(f.mappable<double>());
    EXPECT_EQ(refusal([&] { static_cast<void>(f.map<double>()); }), SafetensorsErrorKind::unexpected_dtype);
  }
  EXPECT_EQ(mapped, is_little_endian ? 1 : 0);
}

TEST(SafetensorsFile, AMissingNameListsTheNearest) {
  const auto bytes = example();
  std::string message;
  EXPECT_EQ(refusal([&] { static_cast<void>(SafetensorsFile::from_bytes(bytes, "my file").tensor("cub")); }, &message),
            SafetensorsErrorKind::tensor_not_found);
  EXPECT_EQ(message.find("safetensors TensorNotFound: my file: expected a tensor \"cub\", got only \"cube\""), 0U)
      << message;
  const auto empty = safetensors_bytes("{}");
  refusal([&] { static_cast<void>(SafetensorsFile::from_bytes(empty).tensor("cub")); }, &message);
  EXPECT_NE(message.find("a file without tensors"), std::string::npos) << message;
}

TEST(SafetensorsFile, AnExtentBeyondAnIndexIsRefusedWhenAsked) {
  const auto bytes =
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}})");
  const auto file = SafetensorsFile::from_bytes(bytes);
  EXPECT_EQ(refusal([&] { static_cast<void>(file.tensor("a")); }), SafetensorsErrorKind::unexpected_shape);
}

TEST(SafetensorsFile, NamesWithNulAndControlCharactersAreWhole) {
  const auto bytes = safetensors_bytes(
      R"({"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},)"
      R"("":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
      3);
  const auto file = SafetensorsFile::from_bytes(bytes);
  EXPECT_EQ(std::to_integer<int>(file.tensor(std::string_view("a\0b", 3)).bytes[0]), 0);
  EXPECT_EQ(std::to_integer<int>(file.tensor("a").bytes[0]), 1);
  EXPECT_EQ(std::to_integer<int>(file.tensor("").bytes[0]), 2);
}

TEST(SafetensorsFile, OpensFilesAndNamesThemInErrors) {
  const TemporaryFolder folder;
  const auto bytes = example();
  std::ofstream(folder / "good", std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  EXPECT_EQ(SafetensorsFile::open(folder / "good").matrix<float>("f")(1, 2), 6.0F);
  EXPECT_THROW(static_cast<void>(SafetensorsFile::open(folder / "missing")), IoError);

  testing::write_file(folder / "short", "1234567");
  std::string message;
  EXPECT_EQ(refusal([&] { static_cast<void>(SafetensorsFile::open(folder / "short")); }, &message),
            SafetensorsErrorKind::header_too_small);
  EXPECT_NE(message.find((folder / "short").string()), std::string::npos) << message;
}

TEST(SafetensorsFile, CopiesAndMovesShareTheMapping) {
  const TemporaryFolder folder;
  const auto bytes = example();
  std::ofstream(folder / "file", std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  auto first = std::make_unique<SafetensorsFile>(SafetensorsFile::open(folder / "file"));
  const TensorView view = first->tensor("f");
  const SafetensorsFile second = *first;
  first.reset();
  std::filesystem::remove(folder / "file");
  EXPECT_EQ(view.bytes.data(), second.tensor("f").bytes.data());
  EXPECT_EQ(view.matrix<float>()(0, 1), 2.0F);
  EXPECT_EQ(view.name, "f");
}

TEST(SafetensorsFile, ManyThreadsReadOneFile) {
  const TemporaryFolder folder;
  const auto bytes = example();
  std::ofstream(folder / "file", std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  const auto file = SafetensorsFile::open(folder / "file");
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  constexpr int thread_count = 4;
  constexpr int repetitions = 50;
  for (int t = 0; t < thread_count; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < repetitions; ++i) {
        const SafetensorsFile copy = file;
        if (file.matrix<double>("f").sum() == 21.0 && copy.names().size() == 5 && !copy.contains("x")) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, thread_count * repetitions);
}

TEST(SafetensorsFile, ReadsTheSameAfterAPartWasReleased) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "t.safetensors";
  const Matrix<float> values = Matrix<float>::Random(300, 100);
  SafetensorsWriter writer;
  writer.add("w", values);
  writer.write(path);
  const auto file = SafetensorsFile::open(path);
  const auto tensor = file.tensor("w");
  EXPECT_EQ(file.matrix<float>("w"), values);
  file.release(tensor.bytes);
  EXPECT_EQ(file.matrix<float>("w"), values);
}

}  // namespace
}  // namespace lora::safetensors_reader_test
