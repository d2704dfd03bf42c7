// SPDX-License-Identifier: MIT
// Tensors of a checkpoint that are stored in another way: their values, and what a GGUF file says of its types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "lora/io/gguf_type.hpp"
#include "storage.hpp"

namespace lora::tools {

/// Passes the values of a tensor, stored in another way, to a sink. `error` is known then.
[[nodiscard]] inline Producer converting(const StoredTensor& from, const Storage& to,
                                         const std::shared_ptr<RoundingError>& error) {
  return [from, to, error](const SafetensorsWriter::Sink& sink) {
    *error = {};
    std::vector<std::byte> bytes;
    const auto convert = [&](auto scalar) {
      using Scalar = decltype(scalar);
      for_each_row_block<Scalar>(from, [&](Index first, const Matrix<Scalar>& rows) {
        const Matrix<Scalar> back = encode_finite(std::string(from.name), to, rows, bytes, first);
        const Matrix<double> difference = (back - rows).template cast<double>();
        const double largest = difference.size() == 0 ? 0.0 : difference.cwiseAbs().maxCoeff();
        *error += {largest, difference.squaredNorm(), rows.template cast<double>().squaredNorm(), 0};
        sink(bytes);
      });
    };
    from.dtype == Dtype::F64 ? convert(double{}) : convert(float{});
  };
}

/// The number that general.file_type has for files of mostly one type. Source: llama.cpp, `enum llama_ftype`.
[[nodiscard]] inline std::uint32_t file_type_of(GgufType type) {
  switch (type) {
    case GgufType::F16:
      return 1;
    case GgufType::Q4_0:
      return 2;
    case GgufType::Q4_1:
      return 3;
    case GgufType::Q8_0:
      return 7;
    case GgufType::Q5_0:
      return 8;
    case GgufType::Q5_1:
      return 9;
    case GgufType::BF16:
      return 32;
    default:
      return 0;  // F32
  }
}

/// Says in the metadata that most weights are of this type.
inline void set_file_type(GgufType type, Changes& changes) {
  changes.metadata["general.file_type"] = file_type_of(type);
  changes.metadata["general.quantization_version"] = std::uint32_t{2};
}

}  // namespace lora::tools
