// SPDX-License-Identifier: MIT
// The 4-bit weights of bitsandbytes in a checkpoint: found, and made.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "lora/core/error.hpp"
#include "lora/io/bitsandbytes.hpp"
#include "lora/io/nested_scales.hpp"
#include "storage.hpp"

namespace lora::tools {

/// The weight whose quant_state a tensor is; nothing for other tensors.
[[nodiscard]] inline std::optional<std::string> weight_of_state(std::string_view tensor) {
  for (const auto type : {BitsandbytesType::nf4, BitsandbytesType::fp4}) {
    const std::string end = lora::detail::bitsandbytes_state_name("", type);
    if (tensor.size() > end.size() && tensor.ends_with(end)) {
      return std::string(tensor.substr(0, tensor.size() - end.size()));
    }
  }
  return std::nullopt;
}

/// A 4-bit weight of a checkpoint, and all tensors that it consists of.
struct FourBitWeight {
  std::string name;
  BitsandbytesTensor tensor;
  std::vector<std::string> companions;  ///< beside the one that has its name
  std::uintmax_t bytes = 0;

  /// "NF4 64", "FP4 128 nested": with the block size.
  [[nodiscard]] std::string type_name() const {
    const BitsandbytesState& state = tensor.state();
    const std::string type = state.type == BitsandbytesType::nf4 ? "NF4 " : "FP4 ";
    return type + std::to_string(state.block_size) + (state.nested_block_size > 0 ? " nested" : "");
  }
};

/// The names of the 4-bit weights of a checkpoint, with those of their quant_state.
[[nodiscard]] inline std::vector<std::pair<std::string, std::string>> four_bit_names(const Checkpoint& checkpoint) {
  std::vector<std::pair<std::string, std::string>> names;
  for (const auto& state : checkpoint.names()) {
    if (const auto weight = weight_of_state(state)) names.emplace_back(*weight, state);
  }
  return names;
}

/// The 4-bit weight of these names, whose tensors may stand in several shards. The checkpoint must outlive it.
/// @throws FormatError for one that is not complete or not right
[[nodiscard]] inline FourBitWeight four_bit_weight(const Checkpoint& checkpoint, const std::string& name,
                                                   const std::string& state) {
  const auto find = [&checkpoint](std::string_view wanted) {
    const auto found = checkpoint.find(wanted);
    return found ? std::optional<TensorView>(*found) : std::nullopt;
  };
  FourBitWeight weight{name, BitsandbytesTensor(find, "checkpoint", name), {}, checkpoint.find(name)->bytes.size()};
  for (const char* end : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    if (checkpoint.find(name + end)) weight.companions.push_back(name + end);
  }
  weight.companions.push_back(state);
  for (const auto& companion : weight.companions) weight.bytes += checkpoint.find(companion)->bytes.size();
  return weight;
}

/// Whether a checkpoint has this weight in 4 bits.
[[nodiscard]] inline bool has_quant_state(const Checkpoint& checkpoint, const std::string& name) {
  return checkpoint.find(lora::detail::bitsandbytes_state_name(name, BitsandbytesType::nf4)) ||
         checkpoint.find(lora::detail::bitsandbytes_state_name(name, BitsandbytesType::fp4));
}

/// Passes the values of a 4-bit weight, as `dtype` and transposed, to a sink. Holds all of them: the weights of a
/// Conv1D are small.
[[nodiscard]] inline Producer decoding_transposed(const FourBitWeight& weight, Dtype dtype) {
  return [name = weight.name, tensor = weight.tensor, dtype](const SafetensorsWriter::Sink& sink) {
    const BitsandbytesState& state = tensor.state();
    Matrix<float> values(state.out_features, state.in_features);
    tensor.read_rows(0, values.rows(), {values.data(), static_cast<std::size_t>(values.size())});
    std::vector<std::byte> bytes;
    static_cast<void>(encode_finite(name, dtype, Matrix<float>(values.transpose()), bytes));
    sink(bytes);
  };
}

/// Passes the values of a 4-bit weight, as `dtype`, to a sink.
[[nodiscard]] inline Producer decoding(const FourBitWeight& weight, Dtype dtype) {
  return [name = weight.name, tensor = weight.tensor, dtype](const SafetensorsWriter::Sink& sink) {
    const BitsandbytesState& state = tensor.state();
    const Index step = std::max<Index>(1, (Index{1} << 18) / state.in_features);
    std::vector<std::byte> bytes;
    Matrix<float> rows;
    for (Index first = 0; first < state.out_features; first += step) {
      rows.resize(std::min(step, state.out_features - first), state.in_features);
      tensor.read_rows(first, rows.rows(), {rows.data(), static_cast<std::size_t>(rows.size())});
      static_cast<void>(encode_finite(name, dtype, rows, bytes, first));
      sink(bytes);
    }
  };
}

/// How weights are stored in 4 bits.
struct FourBitOptions {
  BitsandbytesType type = BitsandbytesType::nf4;
  Index block_size = 64;
  BitsandbytesScales scales = BitsandbytesScales::floats;
};

/// A weight to be stored in 4 bits.
struct FourBitSource {
  StoredTensor tensor;
  bool transposed = false;  ///< stored (in, out); in 4 bits it is (out, in)

  [[nodiscard]] Index outputs() const { return tensor.shape[transposed ? 1 : 0]; }
  [[nodiscard]] Index inputs() const { return tensor.shape[transposed ? 0 : 1]; }

  /// Calls body(first output, values) with the weights of some outputs, one a row. Holds all of a transposed weight.
  template <class Body>
  void for_each_block(const Body& body) const {
    if (!transposed) return for_each_row_block<float>(tensor, body);
    const Matrix<float> values = values_of<float>(tensor);
    const Index step = std::max<Index>(1, (Index{1} << 18) / inputs());
    for (Index first = 0; first < outputs(); first += step) {
      body(first, Matrix<float>(values.middleCols(first, std::min(step, outputs() - first)).transpose()));
    }
  }
};

/// Encodes a weight in blocks of NF4 or FP4, output by output.
class FourBitEncoder {
 public:
  FourBitEncoder(FourBitSource source, const FourBitOptions& options)
      : source_(std::move(source)), block_bytes_(4 + static_cast<std::size_t>(options.block_size) / 2) {
    visit_format(options.type, options.block_size, [this]<class Format>(Format) {
      encode_ = &formats::encode_row<Format>;
      decode_ = &formats::decode_row<Format>;
    });
  }

  /// @throws StateError naming the row, or column of a transposed weight, for values that are not finite
  void codes(const SafetensorsWriter::Sink& sink, RoundingError& error) const {
    error = {};
    source_.for_each_block([&](Index first, const Matrix<float>& rows) {
      const auto blocks = encoded(first, rows, &error);
      std::vector<std::byte> codes;
      for (std::size_t at = 0; at < blocks.size(); at += block_bytes_) {
        const auto part = std::as_bytes(std::span(blocks).subspan(at + sizeof(float), block_bytes_ - sizeof(float)));
        codes.insert(codes.end(), part.begin(), part.end());
      }
      sink(codes);
    });
  }
  void absmax(const SafetensorsWriter::Sink& sink) const {
    source_.for_each_block([&](Index first, const Matrix<float>& rows) {
      const auto blocks = encoded(first, rows, nullptr);
      std::vector<std::byte> scales;
      for (std::size_t at = 0; at < blocks.size(); at += block_bytes_) {
        const auto part = std::as_bytes(std::span(blocks).subspan(at, sizeof(float)));
        scales.insert(scales.end(), part.begin(), part.end());
      }
      sink(scales);
    });
  }
  /// All scales, in 8 bits.
  [[nodiscard]] lora::detail::NestedScales nested_absmax() const {
    std::vector<float> scales;
    absmax([&](std::span<const std::byte> part) {
      const std::size_t size = scales.size();
      scales.resize(size + part.size() / sizeof(float));
      std::memcpy(scales.data() + size, part.data(), part.size());
    });
    return lora::detail::nest_scales(scales);
  }

 private:
  [[nodiscard]] std::vector<std::uint8_t> encoded(Index first, const Matrix<float>& rows, RoundingError* error) const {
    if (rows.size() == 0) return {};
    const Index block_size = static_cast<Index>(2 * (block_bytes_ - sizeof(float)));
    std::vector<std::uint8_t> blocks(static_cast<std::size_t>(rows.size() / block_size) * block_bytes_);
    encode_(rows.data(), rows.size(), blocks.data());
    Matrix<float> back(rows.rows(), rows.cols());
    decode_(blocks.data(), back.size(), back.data());
    for (Index row = 0; row < back.rows(); ++row) {
      if (back.row(row).allFinite()) continue;
      throw StateError(
          "write tensor",
          in_quotes(source_.tensor.name) + (source_.transposed ? ", column " : ", row ") + std::to_string(first + row),
          "values that are finite in 4 bits", "an infinity or NaN");
    }
    if (error != nullptr) {
      const Matrix<double> difference = (back - rows).cast<double>();
      *error += {difference.cwiseAbs().maxCoeff(), difference.squaredNorm(), rows.cast<double>().squaredNorm(), 0};
    }
    return blocks;
  }

  FourBitSource source_;
  std::size_t block_bytes_;
  void (*encode_)(const float*, Index, std::uint8_t*) noexcept = nullptr;
  void (*decode_)(const std::uint8_t*, Index, float*) noexcept = nullptr;
};

/// Replaces a weight by the tensors of one of 4 bits. `error` is that of the codes, and known when they are written.
/// Nested scales are computed at once, for the state tells their mean.
/// Pre: two dimensions of 1 or more, the inputs a multiple of the block size, values that are real numbers.
inline void make_four_bit(const FourBitSource& source, const FourBitOptions& options,
                          const std::shared_ptr<RoundingError>& error, Changes& changes) {
  const StoredTensor& tensor = source.tensor;
  const std::string name(tensor.name);
  const bool half = tensor.dtype == Dtype::F16 || tensor.dtype == Dtype::BF16;
  BitsandbytesState state{options.type, options.block_size, source.outputs(), source.inputs(),
                          half ? tensor.dtype : Dtype::F32};
  const auto encoder = std::make_shared<const FourBitEncoder>(source, options);
  const auto add = [&](const std::string& companion, Dtype dtype, Index size, Producer produce) {
    changes.tensors[companion] = {dtype, {size}, std::move(produce), std::nullopt, name};
  };
  const auto add_values = [&](const std::string& companion, Dtype dtype, const auto& values) {
    const auto part = std::as_bytes(std::span(values));
    add(companion, dtype, static_cast<Index>(std::size(values)),
        [bytes = std::vector<std::byte>(part.begin(), part.end())](const SafetensorsWriter::Sink& sink) {
          sink(bytes);
        });
  };
  const auto& book =
      options.type == BitsandbytesType::nf4 ? formats::detail::nf4_codebook : formats::detail::fp4_codebook;
  changes.tensors[name] = {Dtype::U8,
                           {tensor.elements() / 2, 1},
                           [encoder, error](const SafetensorsWriter::Sink& sink) { encoder->codes(sink, *error); }};
  add_values(name + ".quant_map", Dtype::F32, book.values);
  if (options.scales == BitsandbytesScales::nested) {
    const lora::detail::NestedScales nested = encoder->nested_absmax();
    state.nested_block_size = lora::detail::nested_block_size;
    state.nested_offset = nested.offset;
    add_values(name + ".absmax", Dtype::U8, nested.codes);
    add_values(name + ".nested_absmax", Dtype::F32, nested.absmax);
    add_values(name + ".nested_quant_map", Dtype::F32, lora::detail::nested_quant_map());
  } else {
    add(name + ".absmax", Dtype::F32, tensor.elements() / options.block_size,
        [encoder](const SafetensorsWriter::Sink& sink) { encoder->absmax(sink); });
  }
  add_values(lora::detail::bitsandbytes_state_name(name, options.type), Dtype::U8, bitsandbytes_state_text(state));
}

}  // namespace lora::tools
