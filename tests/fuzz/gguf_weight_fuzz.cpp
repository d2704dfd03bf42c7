// SPDX-License-Identifier: MIT
// Any bytes given to the reader of GGUF files end in one of the library's errors, or in tensors whose values are read
// alike as floats, laid out as a weight, and in place.
#include <cstddef>
#include <cstdint>
#include <span>

#include "fuzz/weight_values.hpp"
#include "lora/io/gguf_weight.hpp"

namespace lora::gguf_weight_fuzz {
namespace {

using fuzzing::require_same;
using fuzzing::Values;
using fuzzing::values_of;

void read(const lora::GgufTensor& tensor) {
  // The values of a byte may take 8 bytes; those of a file of 64 kB are few.
  const Values values = lora::read_gguf_tensor(tensor);
  if (tensor.type == lora::GgufType::F32) return;
  lora::visit_format(tensor.type, [&]<class Format>(Format) {
    require_same(values_of(lora::gguf_weight<Format>(tensor)), values);
    require_same(values_of(lora::gguf_weight_in_place<Format>(tensor, nullptr)), values);
  });
}

}  // namespace
}  // namespace lora::gguf_weight_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lora::gguf_weight_fuzz;
  try {
    const auto contents = lora::parse_gguf(std::as_bytes(std::span(data, size)));
    for (const lora::GgufTensor& tensor : contents.tensors) {
      try {
        read(tensor);
      } catch (const lora::Error&) {
      }
    }
  } catch (const lora::Error&) {
  }
  return 0;
}
