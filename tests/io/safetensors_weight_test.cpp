// SPDX-License-Identifier: MIT
// F16 and BF16 tensors as weights: values, where they are stored, and every refusal.
#include "lora/io/safetensors_weight.hpp"

#include <gtest/gtest.h>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "lora/io/safetensors_writer.hpp"
#include "support/bits.hpp"
#include "support/golden.hpp"
#include "support/message_of.hpp"

namespace lora::testing::safetensors_weight_test {
namespace {

template <class Format>
Matrix<float> values_of(const QuantizedWeight<Format>& weight) {
  Matrix<float> values(weight.out_features(), weight.in_features());
  read_back(weight, view_of(values));
  return values;
}

/// A file with the golden weight of a format as the tensor "w".
std::vector<std::byte> file_of(const std::string& format, Dtype dtype) {
  const auto packed = Golden::load(golden_path("quantized/" + format + "_6x512")).bytes("packed");
  SafetensorsWriter writer;
  writer.add("w", dtype, {6, 512}, std::as_bytes(std::span(packed)));
  return writer.to_bytes();
}

template <class Format>
void expect_golden(const std::string& name, Dtype dtype) {
  const auto bytes = file_of(name, dtype);
  const auto expected = Golden::load(golden_path("quantized/" + name + "_6x512")).matrix<float>("decoded");
  const auto file = SafetensorsFile::from_bytes(bytes);
  const auto laid_out = safetensors_weight<Format>(file.tensor("w"));
  EXPECT_TRUE(same_bits(values_of(laid_out), expected)) << name;
  EXPECT_LT(laid_out.bytes(), 6 * 512 * sizeof(float) * 3 / 2) << "16 rows of 2 bytes";
  const auto in_place = safetensors_weight_in_place<Format>(file, "w");
  EXPECT_TRUE(same_bits(values_of(in_place), expected)) << name;
  EXPECT_EQ(in_place.bytes(), 0U);
}

TEST(SafetensorsWeight, HasTheValuesThatTheFileHas) {
  expect_golden<formats::F16>("f16", Dtype::F16);
  expect_golden<formats::BF16>("bf16", Dtype::BF16);
}

TEST(SafetensorsWeight, InPlaceKeepsTheMappingAlive) {
  const TemporaryFolder folder;
  const auto bytes = file_of("f16", Dtype::F16);
  write_file(folder / "f", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  std::optional<SafetensorsFile> file = SafetensorsFile::open(folder / "f");
  const auto weight = safetensors_weight_in_place<formats::F16>(*file, "w");
  file.reset();
  const auto expected = Golden::load(golden_path("quantized/f16_6x512")).matrix<float>("decoded");
  EXPECT_TRUE(same_bits(values_of(weight), expected));
}

TEST(SafetensorsWeight, RefusesOtherDtypesAndShapes) {
  SafetensorsWriter writer;
  const std::vector<std::byte> eight(8);
  writer.add("bf16", Dtype::BF16, {2, 2}, eight);
  writer.add("row", Dtype::F16, {4}, eight);
  writer.add("cube", Dtype::F16, {1, 2, 2}, eight);
  writer.add("empty", Dtype::F16, {Index{1} << 30, 0}, {});
  const auto bytes = writer.to_bytes();
  const auto file = SafetensorsFile::from_bytes(bytes, "file");
  const auto refusal = [&](const char* name) {
    const auto in_place =
        message_of<SafetensorsError>([&] { static_cast<void>(safetensors_weight_in_place<formats::F16>(file, name)); });
    if (file.contains(name)) {
      EXPECT_EQ(in_place, message_of<SafetensorsError>(
                              [&] { static_cast<void>(safetensors_weight<formats::F16>(file.tensor(name))); }));
    }
    return in_place;
  };
  EXPECT_EQ(refusal("bf16"), "safetensors UnexpectedDtype: file: tensor \"bf16\": expected F16, got BF16");
  EXPECT_EQ(refusal("row"),
            "safetensors UnexpectedShape: file: tensor \"row\": expected two dimensions of 1 or more, got [4]");
  EXPECT_NE(refusal("cube").find("got [1, 2, 2]"), std::string::npos);
  EXPECT_NE(refusal("empty").find("got [1073741824, 0]"), std::string::npos);
  EXPECT_NE(refusal("absent").find("TensorNotFound"), std::string::npos);
}

}  // namespace
}  // namespace lora::testing::safetensors_weight_test
