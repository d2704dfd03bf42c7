// SPDX-License-Identifier: MIT
// 4-bit weights of bitsandbytes: against its rule, written and read again, and every refusal.
#include "lora/io/bitsandbytes.hpp"

#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/little_endian.hpp"
#include "support/bits.hpp"
#include "support/golden.hpp"
#include "support/message_of.hpp"

namespace lora::testing::bitsandbytes_test {
namespace {

/// A tensor to be written.
struct Stored {
  Dtype dtype = Dtype::U8;
  std::vector<Index> shape;
  std::vector<std::byte> bytes;
};

using Parts = std::map<std::string, Stored>;

template <class T>
Stored stored(Dtype dtype, const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  for (std::size_t i = 0; i < values.size(); ++i) store_little_endian(values[i], bytes.data() + i * sizeof(T));
  return {dtype, {static_cast<Index>(values.size())}, std::move(bytes)};
}

Stored text(const std::string& json) { return stored(Dtype::U8, std::vector<char>(json.begin(), json.end())); }

std::vector<std::byte> file_of(const Parts& parts) {
  SafetensorsWriter writer;
  for (const auto& [name, part] : parts) writer.add(name, part.dtype, part.shape, part.bytes);
  return writer.to_bytes();
}

Golden golden_of(const std::string& name) { return Golden::load(golden_path("quantized/" + name + "_6x512")); }

/// The tensors of a golden weight under the names that a file has.
Parts golden_parts(const std::string& name) {
  const Golden golden = golden_of(name);
  const std::string state = "weight.quant_state.bitsandbytes__" + name.substr(0, 3);
  Parts parts{{"weight", stored(Dtype::U8, golden.bytes("weight.bitsandbytes"))},
              {state, stored(Dtype::U8, golden.bytes(state))}};
  parts["weight"].shape.push_back(1);
  const bool nested = golden.contains("weight.nested_absmax");
  if (nested) parts["weight.absmax"] = stored(Dtype::U8, golden.bytes("weight.absmax"));
  for (const char* part : {"absmax", "quant_map", "nested_absmax", "nested_quant_map"}) {
    const std::string full = std::string("weight.") + part;
    if (parts.contains(full) || !golden.contains(full)) continue;
    const auto values = golden.matrix<float>(full);
    parts[full] = stored(Dtype::F32, std::vector<float>(values.data(), values.data() + values.size()));
  }
  return parts;
}

template <class Format>
Matrix<float> values_of(const QuantizedWeight<Format>& weight) {
  Matrix<float> values(weight.out_features(), weight.in_features());
  read_back(weight, view_of(values));
  return values;
}

constexpr std::array<const char*, 6> golden_names{"nf4_b64",  "nf4_b128",       "fp4_b64",
                                                  "fp4_b128", "nf4_b64_nested", "nf4_b128_nested"};

TEST(BitsandbytesWeight, HasTheValuesOfTheRule) {
  for (const char* name : golden_names) {
    SCOPED_TRACE(name);
    const auto bytes = file_of(golden_parts(name));
    const auto file = SafetensorsFile::from_bytes(bytes);
    ASSERT_TRUE(is_bitsandbytes_weight(file, "weight"));
    EXPECT_FALSE(is_bitsandbytes_weight(file, "weight.absmax"));
    const BitsandbytesState state = bitsandbytes_state(file, "weight");
    EXPECT_EQ(state.out_features, 6);
    EXPECT_EQ(state.in_features, 512);
    EXPECT_EQ(state.nested_block_size, std::string_view(name).ends_with("nested") ? 256 : 0);
    visit_format(state.type, state.block_size, [&]<class Format>(Format) {
      const auto weight = bitsandbytes_weight<Format>(file, "weight");
      EXPECT_TRUE(same_bits(values_of(weight), golden_of(name).matrix<float>("decoded")));
    });
  }
}

// 48 blocks and 32 to a scale: the second scale is twice the first, and with no offset so are the weights.
TEST(BitsandbytesWeight, EveryNestedScaleIsThatOfItsBlocks) {
  Parts parts = golden_parts("nf4_b64_nested");
  const auto state = [](const std::string& nested) {
    return text(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [6, 512], )"
                R"("nested_blocksize": )" +
                nested + R"(, "nested_offset": 0})");
  };
  const std::string name = "weight.quant_state.bitsandbytes__nf4";
  const auto values = [&] {
    const auto bytes = file_of(parts);
    return values_of(bitsandbytes_weight<formats::NF4<64>>(SafetensorsFile::from_bytes(bytes), "weight"));
  };
  parts["weight.nested_absmax"] = stored(Dtype::F32, std::vector<float>{0.5F});
  parts[name] = state("256");
  Matrix<float> expected = values();
  expected.bottomRows(2) *= 2.0F;
  parts["weight.nested_absmax"] = stored(Dtype::F32, std::vector<float>{0.5F, 1.0F});
  parts[name] = state("32");
  EXPECT_TRUE(same_bits(values(), expected));
}

// Quantizing the golden weight and writing it gives the file that bitsandbytes' rule gives, byte for byte.
TEST(BitsandbytesWeight, IsWrittenAsTheRuleSays) {
  for (const char* name : {"nf4_b64", "nf4_b128", "fp4_b64", "fp4_b128"}) {
    SCOPED_TRACE(name);
    const auto expected = file_of(golden_parts(name));
    const auto state = bitsandbytes_state(SafetensorsFile::from_bytes(expected), "weight");
    visit_format(state.type, state.block_size, [&]<class Format>(Format) {
      const auto weight = golden_of(name).matrix<float>("weight");
      SafetensorsWriter writer;
      add_bitsandbytes_weight(writer, "weight", QuantizedWeight<Format>::quantize(view_of(weight)), state.dtype);
      EXPECT_EQ(writer.to_bytes(), expected);
    });
  }
}

// The mean of the scales is summed in another order there, so that it may differ in its last bits.
TEST(BitsandbytesWeight, IsWrittenWithNestedScalesAsTheRuleSays) {
  for (const char* name : {"nf4_b64_nested", "nf4_b128_nested"}) {
    SCOPED_TRACE(name);
    const Parts golden = golden_parts(name);
    const auto expected = file_of(golden);
    const auto file = SafetensorsFile::from_bytes(expected);
    const auto state = bitsandbytes_state(file, "weight");
    visit_format(state.type, state.block_size, [&]<class Format>(Format) {
      const auto weight = QuantizedWeight<Format>::quantize(view_of(golden_of(name).matrix<float>("weight")));
      SafetensorsWriter writer;
      add_bitsandbytes_weight(writer, "weight", weight, state.dtype, BitsandbytesScales::nested);
      const auto written_bytes = writer.to_bytes();
      const auto written = SafetensorsFile::from_bytes(written_bytes);
      EXPECT_EQ(written.names(), file.names());
      for (const auto& [part, tensor] : golden) {
        if (part.ends_with("nested_absmax") || part.ends_with("__nf4")) continue;
        const auto bytes = written.tensor(part).bytes;
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), file.tensor(part).bytes.begin())) << part;
      }
      const auto own = bitsandbytes_state(written, "weight");
      EXPECT_EQ(own.nested_block_size, state.nested_block_size);
      EXPECT_NEAR(own.nested_offset, state.nested_offset, 2e-7F * state.nested_offset);
    });
  }
}

TEST(BitsandbytesWeight, NestedScalesAreNearAndExactWhereAllAreEqual) {
  Matrix<float> values(40, 1024);
  for (Index i = 0; i < values.size(); ++i) values.data()[i] = static_cast<float>((i * 7919 % 1009) - 504) * 0.01F;
  const auto nested_and_back = [](const Matrix<float>& of) {
    SafetensorsWriter writer;
    add_bitsandbytes_weight(writer, "w", QuantizedWeight<formats::NF4<32>>::quantize(view_of(of)), Dtype::F32,
                            BitsandbytesScales::nested);
    const auto bytes = writer.to_bytes();
    return values_of(bitsandbytes_weight<formats::NF4<32>>(SafetensorsFile::from_bytes(bytes), "w"));
  };
  const auto floats = values_of(QuantizedWeight<formats::NF4<32>>::quantize(view_of(values)));
  // Scales are at most 5.04, all within 5.04 of their mean.
  EXPECT_LE((nested_and_back(values) - floats).cwiseAbs().maxCoeff(), 5.04F * 0.00711F);
  const Matrix<float> equal = Matrix<float>::Constant(3, 64, -0.375F);
  EXPECT_TRUE(same_bits(nested_and_back(equal), equal));
}

TEST(BitsandbytesWeight, EveryBlockSizeAndDtypeIsWrittenAndRead) {
  for (const auto type : {BitsandbytesType::nf4, BitsandbytesType::fp4}) {
    for (const Index block_size : bitsandbytes_block_sizes) {
      for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
        visit_format(type, block_size, [&]<class Format>(Format) {
          Matrix<float> values(2, 4096);
          for (Index i = 0; i < values.size(); ++i) values.data()[i] = static_cast<float>(i % 37 - 18) * 0.25F;
          const auto weight = QuantizedWeight<Format>::quantize(view_of(values));
          SafetensorsWriter writer;
          add_bitsandbytes_weight(writer, "w", weight, dtype);
          const auto bytes = writer.to_bytes();
          const auto file = SafetensorsFile::from_bytes(bytes);
          const auto state = bitsandbytes_state(file, "w");
          EXPECT_EQ(state.type, type);
          EXPECT_EQ(state.block_size, block_size);
          EXPECT_EQ(state.dtype, dtype);
          EXPECT_TRUE(same_bits(values_of(bitsandbytes_weight<Format>(file, "w")), values_of(weight)));
        });
      }
    }
  }
}

TEST(BitsandbytesWeight, OtherBlockSizesAndDtypesAreNotWritten) {
  EXPECT_THROW(visit_format(BitsandbytesType::nf4, 48, [](auto) {}), ConfigError);
  SafetensorsWriter writer;
  EXPECT_EQ(message_of<ConfigError>(
                [&] { add_bitsandbytes_weight(writer, "w", QuantizedWeight<formats::NF4<64>>(), Dtype::F64); }),
            "add_bitsandbytes_weight: dtype: expected F32, F16 or BF16, got F64");
}

constexpr const char* nf4_state = "weight.quant_state.bitsandbytes__nf4";

/// What reading the golden weight says after `change` has been done to its tensors.
std::string refusal(const std::function<void(Parts&)>& change, const std::string& name = "nf4_b64") {
  Parts parts = golden_parts(name);
  change(parts);
  const auto bytes = file_of(parts);
  const auto file = SafetensorsFile::from_bytes(bytes, "file");
  return message_of<FormatError>([&] { static_cast<void>(bitsandbytes_weight<formats::NF4<64>>(file, "weight")); });
}

std::string refusal_of_state(const std::string& json, const std::string& name = "nf4_b64") {
  return refusal([&](Parts& parts) { parts[nf4_state] = text(json); }, name);
}

void expect_words(const std::string& message, const std::string& words) {
  EXPECT_NE(message.find(words), std::string::npos) << message;
}

TEST(BitsandbytesWeightRefuses, MissingTensors) {
  expect_words(refusal([](Parts& parts) { parts.erase(nf4_state); }), "a 4-bit weight");
  for (const char* name : {"weight", "weight.absmax", "weight.quant_map"}) {
    expect_words(refusal([&](Parts& parts) { parts.erase(name); }), "TensorNotFound");
  }
  for (const char* name : {"weight.nested_absmax", "weight.nested_quant_map"}) {
    expect_words(refusal([&](Parts& parts) { parts.erase(name); }, "nf4_b64_nested"), "TensorNotFound");
  }
  expect_words(refusal([](Parts& parts) { parts["weight.quant_state.bitsandbytes__fp4"] = parts.at(nf4_state); }),
               "file: tensor \"weight\": expected one quant_state, got that of nf4 and that of fp4");
}

TEST(BitsandbytesWeightRefuses, StatesThatAreNotItsJson) {
  expect_words(refusal_of_state("{"), "expected an object in JSON, got other text");
  expect_words(refusal_of_state("[1]"), "an object in JSON");
  expect_words(refusal_of_state("{}"), "\"quant_type\": expected a text, got none");
  expect_words(refusal_of_state(R"({"quant_type": 4})"), "expected a text");
  expect_words(refusal_of_state(R"({"quant_type": "fp4"})"), "\"quant_type\": expected \"nf4\", got \"fp4\"");
  expect_words(refusal_of_state(std::string(4097, ' ')), "at most 4096 bytes, got 4097");
  expect_words(refusal_of_state(std::string(4096, '[')), "an object in JSON");
  expect_words(refusal([](Parts& parts) { parts[nf4_state] = stored(Dtype::F32, std::vector<float>{1}); }),
               "expected JSON as U8, got F32");
}

TEST(BitsandbytesWeightRefuses, BlockSizesDtypesAndShapesOutOfRange) {
  const auto state = [](const std::string& block, const std::string& dtype, const std::string& shape) {
    return R"({"quant_type": "nf4", "blocksize": )" + block + R"(, "dtype": )" + dtype + R"(, "shape": )" + shape + "}";
  };
  const std::string dtype = "\"float16\"";
  for (const char* block : {"0", "1", "48", "8192", "-64", "64.0", "\"64\"", "null", "18446744073709551615"}) {
    expect_words(refusal_of_state(state(block, dtype, "[6, 512]")),
                 "\"blocksize\": expected a power of two from 32 to 4096");
  }
  expect_words(refusal_of_state(state("64", "\"float64\"", "[6, 512]")), "got \"float64\"");
  for (const char* shape : {"6", "[6]", "[6, 512, 1]", "{}", "null"}) {
    expect_words(refusal_of_state(state("64", dtype, shape)), "\"shape\": expected a list of two extents");
  }
  for (const char* shape : {"[6, -512]", "[6, 512.0]", "[6, \"512\"]", "[9223372036854775808, 64]", "[0, 512]",
                            "[4611686018427387904, 0]", "[6, []]"}) {
    expect_words(refusal_of_state(state("64", dtype, shape)), "\"shape\": expected extents from 1 to 2^63 - 1");
  }
  const std::string greatest = std::to_string(std::numeric_limits<Index>::max());
  expect_words(refusal_of_state(state("64", dtype, "[" + greatest + ", " + greatest + "]")),
               "fewer than 2^63 elements");
  expect_words(refusal_of_state(state("64", dtype, "[6, 480]")),
               "tensor \"weight\": expected rows of a multiple of 64 columns, the block size, got 480 columns");
  expect_words(refusal_of_state(state("64", dtype, "[6, 576]")),
               "tensor \"weight\": expected 1728 bytes for a shape of [6, 576], got 1536");
  expect_words(refusal_of_state(state("128", dtype, "[6, 512]")), "expected 24 elements, got 48");
}

TEST(BitsandbytesWeightRefuses, TensorsOfAnotherDtypeOrSize) {
  const std::vector<float> floats(48, 1.0F);
  expect_words(refusal([&](Parts& parts) { parts["weight"] = stored(Dtype::F32, floats); }), "codes as U8, got F32");
  expect_words(refusal([&](Parts& parts) { parts["weight.absmax"] = stored(Dtype::I32, floats); }),
               "\"weight.absmax\": expected F32, got I32");
  expect_words(refusal([&](Parts& parts) { parts["weight.absmax"] = stored(Dtype::F32, std::vector<float>(47)); }),
               "\"weight.absmax\": expected 48 elements, got 47");
  expect_words(refusal([&](Parts& parts) { parts["weight.quant_map"] = stored(Dtype::F32, std::vector<float>(17)); }),
               "\"weight.quant_map\": expected 16 elements, got 17");
  const auto nested = [](const char* name, std::size_t size) {
    return refusal([&](Parts& parts) { parts[name] = stored(Dtype::F32, std::vector<float>(size)); }, "nf4_b64_nested");
  };
  expect_words(nested("weight.nested_absmax", 2), "\"weight.nested_absmax\": expected 1 elements, got 2");
  expect_words(nested("weight.nested_quant_map", 255), "expected 256 elements, got 255");
  expect_words(nested("weight.absmax", 48), "\"weight.absmax\": expected U8, got F32");
}

TEST(BitsandbytesWeightRefuses, AnotherTable) {
  expect_words(refusal([](Parts& parts) {
                 store_little_endian(0.5F, parts["weight.quant_map"].bytes.data() + 7 * sizeof(float));
               }),
               "tensor \"weight.quant_map\", code 7: expected 0, as in the table of nf4, got 0.5");
  expect_words(
      refusal([](Parts& parts) { parts["weight.quant_map"] = golden_parts("fp4_b64").at("weight.quant_map"); }),
      "code 0: expected -1");
}

TEST(BitsandbytesWeightRefuses, ScalesThatAreNotFinite) {
  for (const float value : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    expect_words(refusal([&](Parts& parts) {
                   store_little_endian(value, parts["weight.absmax"].bytes.data() + 5 * sizeof(float));
                 }),
                 "tensor \"weight.absmax\", block 5: expected a finite scale");
    expect_words(refusal([&](Parts& parts) { store_little_endian(value, parts["weight.nested_absmax"].bytes.data()); },
                         "nf4_b64_nested"),
                 "tensor \"weight.absmax\", block 0: expected a finite scale");
  }
  const auto offset = [](const std::string& value) {
    return refusal_of_state(R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [6, 512], )"
                            R"("nested_blocksize": 256, "nested_offset": )" +
                                value + "}",
                            "nf4_b64_nested");
  };
  for (const char* value : {"null", "\"1\"", "1e300"}) expect_words(offset(value), "\"nested_offset\"");
}

TEST(BitsandbytesWeightRefuses, AnotherFormatThanTheFiles) {
  const auto bytes = file_of(golden_parts("nf4_b64"));
  const auto file = SafetensorsFile::from_bytes(bytes, "file");
  EXPECT_EQ(message_of<FormatError>([&] { static_cast<void>(bitsandbytes_weight<formats::NF4<128>>(file, "weight")); }),
            "bitsandbytes_weight: file: tensor \"weight\": expected NF4 in blocks of 128, got nf4 in blocks of 64");
  EXPECT_THROW(static_cast<void>(bitsandbytes_weight<formats::FP4<64>>(file, "weight")), FormatError);
}

}  // namespace
}  // namespace lora::testing::bitsandbytes_test
