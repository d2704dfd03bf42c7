// SPDX-License-Identifier: MIT
// Number formats of frozen weights: blocks that ggml and bitsandbytes' rule wrote, and products with what they hold.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "conformance/cases.hpp"
#include "lora/format/formats.hpp"
#include "lora/layers/linear.hpp"
#include "support/absmax_blocks.hpp"

namespace lora::conformance {
namespace number_format_case {
namespace {

using Bytes = std::vector<std::uint8_t>;

struct File {
  GoldenCase& golden;
  Comparison& comparison;
  std::string format;
  Index rows;
  Index cols;
  Index block;
  bool nested;
};

File described(GoldenCase& golden, Comparison& comparison) {
  Options& options = golden.options();
  const auto number = [&](const std::string& key) { return std::stoll(options.get<std::string>(key)); };
  return {golden,
          comparison,
          options.get<std::string>("format"),
          number("rows"),
          number("cols"),
          number("block"),
          options.get<std::string>("nested", "False") == "True"};
}

bool same_bits(const float* a, const float* b, Index count) {
  return std::equal(a, a + count, b, [](float one, float other) {
    return std::bit_cast<std::uint32_t>(one) == std::bit_cast<std::uint32_t>(other);
  });
}

void check_products(const File& file, const Matrix<float>& weight) {
  LoraLinear<float> layer(weight, LoraConfig{.rank = 1}, 1);  // B = 0 at the start
  const auto x = file.golden.matrix<float>("x");
  const auto dy = file.golden.matrix<float>("dy");
  const double norm = static_cast<double>(weight.norm());
  const auto close = [&](const char* name, const Matrix<float>& ours, const Matrix<float>& inputs) {
    const double norms = norm * static_cast<double>(inputs.rowwise().norm().maxCoeff());
    file.comparison.close<float>(name, ours, file.golden.matrix<float>(name), Comparison::rounding_bound<float>, norms);
  };
  close("y", layer.forward(x), x);
  close("dx", layer.backward(dy), dy);
}

template <formats::NumberFormat Format>
void check(const File& file, const Bytes& blocks) {
  const auto expected = file.golden.matrix<float>("decoded");
  const auto weight = file.golden.matrix<float>("weight");
  const Index stride = formats::row_bytes<Format>(file.cols);
  file.comparison.equal("the number of bytes", static_cast<Index>(blocks.size()), file.rows * stride);
  Matrix<float> decoded(file.rows, file.cols);
  for (Index row = 0; row < file.rows; ++row) {
    formats::decode_row<Format>(blocks.data() + row * stride, file.cols, decoded.row(row).data());
  }
  file.comparison.equal("decoding, bit for bit", same_bits(decoded.data(), expected.data(), decoded.size()), true);

  // A nested scale is not the one that the codes were chosen for.
  if constexpr (formats::EncodableFormat<Format>) {
    Bytes encoded(blocks.size());
    for (Index row = 0; row < file.rows && !file.nested; ++row) {
      formats::encode_row<Format>(weight.row(row).data(), file.cols, encoded.data() + row * stride);
    }
    if (!file.nested) file.comparison.equal("encoding, byte for byte", encoded == blocks, true);
  }
  check_products(file, decoded);
}

std::vector<float> scales_of(const File& file, const std::string& state) {
  GoldenCase& golden = file.golden;
  const auto text = golden.vector<std::uint8_t>("weight.quant_state.bitsandbytes__" + state);
  if (!file.nested) return golden.vector<float>("weight.absmax");
  const auto offset = nlohmann::json::parse(text.begin(), text.end()).at("nested_offset").get<float>();
  return testing::nested_absmax(golden.vector<std::uint8_t>("weight.absmax"),
                                golden.vector<float>("weight.nested_quant_map").data(),
                                golden.vector<float>("weight.nested_absmax").data(), offset);
}

template <class Format>
void check_bitsandbytes(const File& file, const std::string& state, const formats::detail::Codebook& book) {
  const auto map = file.golden.vector<float>("weight.quant_map");
  file.comparison.equal("the table of the codes", map.size() == 16 && same_bits(map.data(), book.values.data(), 16),
                        true);
  const auto codes = file.golden.vector<std::uint8_t>("weight.bitsandbytes");
  check<Format>(file, testing::absmax_blocks<Format>(codes, scales_of(file, state)));
}

template <class Format>
bool checks_ggml(const File& file) {
  if (file.format != Format::name || file.block != Format::block_size) return false;
  check<Format>(file, file.golden.vector<std::uint8_t>("packed"));
  return true;
}

template <class... Formats>
bool checks_one_of(const File& file) {
  return (checks_ggml<Formats>(file) || ...);
}

template <Index BlockSize>
bool checks_block_size(const File& file) {
  if (file.block != BlockSize) return false;
  if (file.format == "NF4") {
    check_bitsandbytes<formats::NF4<BlockSize>>(file, "nf4", formats::detail::nf4_codebook);
    return true;
  }
  if (file.format == "FP4") {
    check_bitsandbytes<formats::FP4<BlockSize>>(file, "fp4", formats::detail::fp4_codebook);
    return true;
  }
  return false;
}

bool checks(const File& file) {
  using namespace formats;  // NOLINT(google-build-using-namespace): the names of the formats alone
  return checks_one_of<F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4>(
             file) ||
         checks_block_size<64>(file) || checks_block_size<128>(file);
}

}  // namespace
}  // namespace number_format_case

void check_number_format(GoldenCase& golden, Comparison& comparison) {
  const auto file = number_format_case::described(golden, comparison);
  if (!number_format_case::checks(file)) {
    throw UnknownCase("unknown format " + file.format + " with blocks of " + std::to_string(file.block));
  }
}

}  // namespace lora::conformance
