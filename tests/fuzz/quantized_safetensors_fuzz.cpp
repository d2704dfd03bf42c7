// SPDX-License-Identifier: MIT
// Any bytes given to the readers of 4-bit weights and of F16 and BF16 weights end in one of the library's errors, or in
// a weight whose rows are read alike one by one, and that is written and read again as it is.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "fuzz/weight_values.hpp"
#include "lora/io/bitsandbytes.hpp"
#include "lora/io/safetensors_weight.hpp"

namespace lora::quantized_safetensors_fuzz {
namespace {

using fuzzing::require_same;
using fuzzing::Values;
using fuzzing::values_of;

void read_four_bit(const lora::SafetensorsFile& file, std::string_view name) {
  const lora::BitsandbytesTensor tensor(file, name);
  const lora::BitsandbytesState& state = tensor.state();
  lora::visit_format(state.type, state.block_size, [&]<class Format>(Format) {
    const auto weight = lora::bitsandbytes_weight<Format>(file, name);
    const Values values = values_of(weight);
    Values rows(values.rows(), values.cols());
    for (lora::Index i = 0; i < rows.rows(); ++i) {
      tensor.read_rows(i, 1, {&rows(i, 0), static_cast<std::size_t>(rows.cols())});
    }
    require_same(rows, values);
    lora::SafetensorsWriter writer;
    lora::add_bitsandbytes_weight(writer, "w", weight, state.dtype);
    const auto bytes = writer.to_bytes();
    require_same(values_of(lora::bitsandbytes_weight<Format>(lora::SafetensorsFile::from_bytes(bytes), "w")), values);
  });
}

template <class Format>
void read_half(const lora::SafetensorsFile& file, std::string_view name) {
  require_same(values_of(lora::safetensors_weight_in_place<Format>(file, name)),
               values_of(lora::safetensors_weight<Format>(file.tensor(name))));
}

void read(const lora::SafetensorsFile& file, std::string_view name) {
  if (lora::is_bitsandbytes_weight(file, name)) return read_four_bit(file, name);
  if (file.tensor(name).dtype == lora::Dtype::F16) return read_half<lora::formats::F16>(file, name);
  return read_half<lora::formats::BF16>(file, name);
}

}  // namespace
}  // namespace lora::quantized_safetensors_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lora::quantized_safetensors_fuzz;
  try {
    const auto file = lora::SafetensorsFile::from_bytes(std::as_bytes(std::span(data, size)));
    for (const auto name : file.names()) {
      try {
        read(file, name);
      } catch (const lora::Error&) {
      }
    }
  } catch (const lora::Error&) {
  }
  return 0;
}
