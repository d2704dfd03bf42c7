// SPDX-License-Identifier: MIT
// Tensors of GGUF files as weights: against what ggml decodes, and every refusal.
#include "lora/io/gguf_weight.hpp"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "io/gguf_bytes.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/transposed.hpp"
#include "support/bits.hpp"
#include "support/golden.hpp"
#include "support/message_of.hpp"
#include "support/random_blocks.hpp"

namespace lora::testing::gguf_weight_test {
namespace {

Golden golden_of(GgufType type) {
  std::string name(name_of(type));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return Golden::load(golden_path("quantized/" + name + "_6x512"));
}

GgufBytes file_of(GgufType type, const std::vector<std::uint64_t>& extents, const std::vector<std::uint8_t>& bytes) {
  GgufBytes file = GgufBytes::header(1, 0).tensor("w", extents, static_cast<std::uint32_t>(type), 0).pad(32);
  for (const std::uint8_t byte : bytes) file.u8(byte);
  return file;
}

/// The golden weight of a type in a file of its own.
GgufBytes file_of(GgufType type) { return file_of(type, {512, 6}, golden_of(type).bytes("packed")); }

std::vector<GgufType> types_of_formats() {
  std::vector<GgufType> types(gguf_types.begin(), gguf_types.end());
  types.erase(std::find(types.begin(), types.end(), GgufType::F32));
  return types;
}

template <class Weight>
Matrix<float> values_of(const Weight& weight) {
  Matrix<float> values(weight.out_features(), weight.in_features());
  read_back(weight, view_of(values));
  return values;
}

TEST(GgufWeight, HasTheValuesThatGgmlDecodes) {
  for (const GgufType type : types_of_formats()) {
    SCOPED_TRACE(name_of(type));
    const GgufBytes file = file_of(type);
    const GgufContents contents = parse_gguf(file.bytes());
    const GgufTensor& tensor = contents.tensors[0];
    const auto expected = golden_of(type).matrix<float>("decoded");
    EXPECT_TRUE(same_bits(read_gguf_tensor(tensor), expected));
    visit_format(type, [&]<class Format>(Format) {
      const auto laid_out = gguf_weight<Format>(tensor);
      EXPECT_TRUE(same_bits(values_of(laid_out), expected));
      EXPECT_GT(laid_out.bytes(), 0U);
      const auto in_place = gguf_weight_in_place<Format>(tensor, nullptr);
      EXPECT_TRUE(same_bits(values_of(in_place), expected));
      EXPECT_EQ(in_place.bytes(), 0U);
      const TransposedWeight table(gguf_weight<Format>(tensor));
      EXPECT_TRUE(same_bits(values_of(table), Matrix<float>(expected.transpose())));
    });
  }
}

TEST(GgufWeight, InPlaceKeepsTheFileAlive) {
  auto file = std::make_shared<const GgufBytes>(file_of(GgufType::Q4_K));
  const std::weak_ptr<const GgufBytes> watch = file;
  {
    const auto weight = gguf_weight_in_place<formats::Q4_K>(parse_gguf(file->bytes()).tensors[0], file);
    file.reset();
    EXPECT_FALSE(watch.expired());
    EXPECT_TRUE(same_bits(values_of(weight), golden_of(GgufType::Q4_K).matrix<float>("decoded")));
  }
  EXPECT_TRUE(watch.expired());
}

TEST(ReadGgufRows, GivesAnyRowsOfAnyType) {
  for (const GgufType type : types_of_formats()) {
    const GgufBytes file = file_of(type);
    const GgufContents contents = parse_gguf(file.bytes());
    const auto expected = golden_of(type).matrix<float>("decoded");
    for (Index first = 0; first <= 6; ++first) {
      Matrix<float> rows(std::min<Index>(6 - first, 2), 512);
      read_gguf_rows(contents.tensors[0], static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(rows.rows()),
                     {rows.data(), static_cast<std::size_t>(rows.size())});
      EXPECT_TRUE(same_bits(rows, Matrix<float>(expected.middleRows(first, rows.rows())))) << name_of(type) << first;
    }
  }
}

TEST(ReadGgufRows, ReadsFloatsAndMoreThanTwoDimensions) {
  GgufBytes file = GgufBytes::header(1, 0).tensor("w", {3, 1, 2, 2}, 0, 0).pad(32);
  for (int i = 0; i < 12; ++i) file.f32(static_cast<float>(i));
  const GgufContents contents = parse_gguf(file.bytes());
  const Matrix<float> values = read_gguf_tensor(contents.tensors[0]);
  ASSERT_EQ(values.rows(), 4);
  for (Index i = 0; i < 12; ++i) EXPECT_EQ(values.data()[i], static_cast<float>(i));
}

TEST(ReadGgufRows, RefusesRowsOutsideAndOtherSizes) {
  const GgufBytes file = file_of(GgufType::Q8_0);
  const GgufContents contents = parse_gguf(file.bytes());
  const auto refusal = [&](std::uint64_t first, std::uint64_t count, std::size_t size) {
    std::vector<float> values(size);
    return message_of<ShapeError>([&] { read_gguf_rows(contents.tensors[0], first, count, values); });
  };
  const auto most = std::numeric_limits<std::uint64_t>::max();
  EXPECT_EQ(refusal(5, 2, 1024), "read_gguf_rows: tensor \"w\": expected rows of its 6, got 2 from row 5 on");
  EXPECT_NE(refusal(7, 0, 0).find("0 from row 7 on"), std::string::npos);
  EXPECT_NE(refusal(1, most, 0).find("from row 1 on"), std::string::npos);
  EXPECT_EQ(refusal(0, 1, 511), "read_gguf_rows: values: expected 512 elements, got 511");
}

// A matrix counts its rows with a sign.
TEST(ReadGgufTensor, RefusesMoreRowsThanAMatrixCanHave) {
  const GgufTensor tensor{"w", GgufType::F32, {0, std::uint64_t{1} << 63U, 1, 1}, {}};
  EXPECT_EQ(message_of<ShapeError>([&] { static_cast<void>(read_gguf_tensor(tensor)); }),
            "read_gguf_tensor: tensor \"w\": expected extents below 2^63, got 0 x 9223372036854775808 x 1 x 1");
}

TEST(GgufWeight, RefusesAnotherTypeAndMoreThanTwoDimensions) {
  const GgufBytes file = file_of(GgufType::Q4_0);
  const GgufContents contents = parse_gguf(file.bytes());
  const auto& tensor = contents.tensors[0];
  EXPECT_EQ(message_of<FormatError>([&] { static_cast<void>(gguf_weight<formats::Q4_1>(tensor)); }),
            "gguf_weight: tensor \"w\": expected Q4_1, got Q4_0");
  EXPECT_EQ(message_of<FormatError>([&] { static_cast<void>(gguf_weight_in_place<formats::F16>(tensor, nullptr)); }),
            "gguf_weight_in_place: tensor \"w\": expected F16, got Q4_0");
  const GgufBytes stack = file_of(GgufType::Q8_0, {32, 1, 2}, std::vector<std::uint8_t>(68));
  const GgufContents experts = parse_gguf(stack.bytes());
  EXPECT_EQ(message_of<FormatError>([&] { static_cast<void>(gguf_weight<formats::Q8_0>(experts.tensors[0])); }),
            "gguf_weight: tensor \"w\": expected two dimensions of 1 or more, got 32 x 1 x 2 x 1");
}

TEST(GgufWeight, TakesOneExpertOfAStack) {
  const GgufBytes file = file_of(GgufType::Q8_0, {64, 3, 2}, testing::random_blocks<formats::Q8_0>(6, 64, 1));
  const GgufContents contents = parse_gguf(file.bytes());
  const Matrix<float> all = read_gguf_tensor(contents.tensors[0]);
  for (const Index expert : {0, 1}) {
    const GgufTensor one = gguf_matrix_of(contents.tensors[0], static_cast<std::uint64_t>(expert));
    Matrix<float> values(3, 64);
    read_back(gguf_weight<formats::Q8_0>(one), view_of(values));
    EXPECT_EQ(values, all.middleRows(3 * expert, 3));
  }
  EXPECT_EQ(message_of<ShapeError>([&] { static_cast<void>(gguf_matrix_of(contents.tensors[0], 2)); }),
            "gguf_matrix_of: tensor \"w\": expected a matrix of its 2, got 2");
}

// The file does not bound the rows of a matrix without columns.
TEST(GgufWeight, RefusesATensorWithoutElements) {
  const std::uint64_t rows = std::uint64_t{std::numeric_limits<std::size_t>::max()} / 4 + 1;
  const GgufBytes file = file_of(GgufType::Q4_K, {0, rows}, {});
  const GgufContents contents = parse_gguf(file.bytes());
  EXPECT_NE(message_of<FormatError>([&] {
              static_cast<void>(gguf_weight<formats::Q4_K>(contents.tensors[0]));
            }).find("two dimensions of 1 or more, got 0 x " + std::to_string(rows) + " x 1 x 1"),
            std::string::npos);
  EXPECT_EQ(read_gguf_tensor(contents.tensors[0]).size(), 0);
}

}  // namespace
}  // namespace lora::testing::gguf_weight_test
