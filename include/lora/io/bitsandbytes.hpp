// SPDX-License-Identifier: MIT
// The 4-bit tensors of bitsandbytes in safetensors files: NF4 and FP4, as QLoRA stores base models.
//
// A weight `w` (out_features x in_features) is stored as
//   w                                      U8 [out * in / 2, 1]: two codes a byte, the first weight in the high nibble
//   w.absmax                               F32, one scale a block; or U8, codes of scales
//   w.quant_map                            F32 [16], the value of each code
//   w.nested_absmax, w.nested_quant_map    F32, if scales are codes: scale = map[code] * nested_absmax[block] + offset
//   w.quant_state.bitsandbytes__nf4        JSON as U8 (or __fp4): type, block size, shape, dtype, and of nested scales
//                                          the block size and the offset
// Source: bitsandbytes, QuantState.as_dict(packed=True) and from_dict.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/little_endian.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"
#include "lora/format/fp4.hpp"
#include "lora/format/nf4.hpp"
#include "lora/format/number_format.hpp"
#include "lora/format/rounding.hpp"
#include "lora/io/nested_scales.hpp"
#include "lora/io/safetensors_error.hpp"
#include "lora/io/safetensors_reader.hpp"
#include "lora/io/safetensors_writer.hpp"
#include "lora/io/text.hpp"
#include "lora/weight/quantized.hpp"

namespace lora {

/// The two 4-bit types of bitsandbytes.
enum class BitsandbytesType : std::uint8_t { nf4, fp4 };

/// "nf4" or "fp4".
[[nodiscard]] constexpr std::string_view name_of(BitsandbytesType type) noexcept {
  return type == BitsandbytesType::nf4 ? "nf4" : "fp4";
}

/// The block sizes that bitsandbytes has.
inline constexpr std::array<Index, 8> bitsandbytes_block_sizes{32, 64, 128, 256, 512, 1024, 2048, 4096};

/// How one 4-bit weight is stored, from its quant_state.
struct BitsandbytesState {
  BitsandbytesType type = BitsandbytesType::nf4;  ///< of the codes
  Index block_size = 64;                          ///< weights that share a scale; one of bitsandbytes_block_sizes
  Index out_features = 0;                         ///< rows of the weight
  Index in_features = 0;                          ///< columns of the weight
  Dtype dtype = Dtype::F32;                       ///< of the weight before: F32, F16 or BF16
  Index nested_block_size = 0;                    ///< scales that share a scale of their own; 0 if scales are floats
  float nested_offset = 0;                        ///< added to every decoded scale, with nested scales
};

namespace detail {

/// Takes a format of bitsandbytes apart: NF4<64> is {nf4, 64}.
template <class Format>
struct BitsandbytesFormat {
  static constexpr bool known = false;
};
template <Index BlockSize>
struct BitsandbytesFormat<formats::NF4<BlockSize>> {
  static constexpr bool known = true;
  static constexpr BitsandbytesType type = BitsandbytesType::nf4;
  static constexpr const formats::detail::Codebook& book = formats::detail::nf4_codebook;
};
template <Index BlockSize>
struct BitsandbytesFormat<formats::FP4<BlockSize>> {
  static constexpr bool known = true;
  static constexpr BitsandbytesType type = BitsandbytesType::fp4;
  static constexpr const formats::detail::Codebook& book = formats::detail::fp4_codebook;
};

}  // namespace detail

/// formats::NF4<B> or formats::FP4<B>.
template <class Format>
concept FourBitFormat = detail::BitsandbytesFormat<Format>::known;

/// Returns body(Format{}) with NF4<block_size> or FP4<block_size>. All calls return one type.
/// @throws ConfigError for a block size that bitsandbytes does not have
template <class Body>
decltype(auto) visit_format(BitsandbytesType type, Index block_size, Body&& body) {
  const auto with = [&]<Index BlockSize>(std::integral_constant<Index, BlockSize>) -> decltype(auto) {
    if (type == BitsandbytesType::nf4) return body(formats::NF4<BlockSize>{});
    return body(formats::FP4<BlockSize>{});
  };
  switch (block_size) {
    case 32:
      return with(std::integral_constant<Index, 32>{});
    case 64:
      return with(std::integral_constant<Index, 64>{});
    case 128:
      return with(std::integral_constant<Index, 128>{});
    case 256:
      return with(std::integral_constant<Index, 256>{});
    case 512:
      return with(std::integral_constant<Index, 512>{});
    case 1024:
      return with(std::integral_constant<Index, 1024>{});
    case 2048:
      return with(std::integral_constant<Index, 2048>{});
    case 4096:
      return with(std::integral_constant<Index, 4096>{});
    default:
      throw ConfigError("visit_format", "block_size", "a power of two from 32 to 4096", std::to_string(block_size));
  }
}

namespace detail {

[[nodiscard]] inline std::string bitsandbytes_state_name(std::string_view weight, BitsandbytesType type) {
  return std::string(weight).append(".quant_state.bitsandbytes__").append(name_of(type));
}

[[nodiscard]] inline std::string with_suffix(std::string_view name, std::string_view suffix) {
  return std::string(name).append(".").append(suffix);
}

}  // namespace detail

/// The tensors of one 4-bit weight, checked, whose rows are read on demand. The const functions are reentrant.
class BitsandbytesTensor {
 public:
  /// The tensor of that name; nothing if there is none.
  using Find = std::function<std::optional<TensorView>(std::string_view)>;

  /// @throws like bitsandbytes_state
  BitsandbytesTensor(const SafetensorsFile& file, std::string_view name)
      : BitsandbytesTensor(
            [file](std::string_view wanted) {
              return file.contains(wanted) ? std::optional(file.tensor(wanted)) : std::nullopt;
            },
            file.label(), name) {}

  /// Of tensors that may stand in several files; `label` names them in errors. What `find` returns must stay valid.
  /// @throws like bitsandbytes_state
  BitsandbytesTensor(Find find, std::string label, std::string_view name)
      : find_(std::move(find)), label_(std::move(label)), name_(name) {
    const std::optional<BitsandbytesType> type = stored_type();
    if (!type) {
      throw SafetensorsError(SafetensorsErrorKind::tensor_not_found, label_,
                             "the state of a 4-bit weight, " +
                                 in_quotes(detail::bitsandbytes_state_name(name, BitsandbytesType::nf4)) + " or __fp4",
                             "neither");
    }
    state_.type = *type;
    read_state(tensor(detail::bitsandbytes_state_name(name, *type)));
    codes_ = tensor(name_);
    check_codes();
    absmax_ = companion("absmax", nested() ? Dtype::U8 : Dtype::F32, blocks());
    check_quant_map();
    if (nested()) read_nested();
  }

  /// How the weight is stored.
  [[nodiscard]] const BitsandbytesState& state() const noexcept { return state_; }
  /// Blocks of the whole weight, each with one scale.
  [[nodiscard]] Index blocks() const noexcept { return state_.out_features * state_.in_features / state_.block_size; }

  /// Writes rows [first, first + count) as blocks of absmax and codes. Pre: the rows are the weight's; `target` has
  /// their size. @throws FormatError for a scale that is not finite
  void copy_rows(Index first, Index count, std::uint8_t* target) const {
    const Index row_blocks = state_.in_features / state_.block_size;
    for (Index block = first * row_blocks; block < (first + count) * row_blocks; ++block) {
      copy_block(block, target);
      target += sizeof(float) + static_cast<std::size_t>(state_.block_size / 2);
    }
  }

  /// Decodes rows [first, first + count) to count * in_features floats.
  /// @throws ShapeError when the rows are not the weight's, or `values` has another size; FormatError for a scale that
  /// is not finite
  void read_rows(Index first, Index count, std::span<float> values) const {
    if (first < 0 || count < 0 || first > state_.out_features || count > state_.out_features - first ||
        values.size() != static_cast<std::size_t>(count * state_.in_features)) {
      throw ShapeError("read bitsandbytes weight", argument(name_),
                       "rows of its " + std::to_string(state_.out_features) + " and elements for them",
                       std::to_string(count) + " from row " + std::to_string(first) + " on, and " +
                           std::to_string(values.size()) + " elements");
    }
    visit_format(state_.type, state_.block_size, [&]<class Format>(Format) {
      std::array<std::uint8_t, static_cast<std::size_t>(Format::block_bytes)> block{};
      const Index row_blocks = state_.in_features / Format::block_size;
      float* target = values.data();
      for (Index i = first * row_blocks; i < (first + count) * row_blocks; ++i) {
        copy_block(i, block.data());
        Format::decode(block.data(), target);
        target += Format::block_size;
      }
    });
  }

 private:
  // Long enough for every state that bitsandbytes writes, and short enough that no nesting in it can do harm.
  static constexpr std::size_t most_state_bytes = 4096;

  [[noreturn]] static void refuse(const std::string& argument, std::string_view expected, std::string_view got) {
    throw FormatError("read bitsandbytes weight", argument, expected, got);
  }
  [[nodiscard]] std::string argument(std::string_view name) const { return detail::tensor_argument(label_, name); }
  [[nodiscard]] std::string argument(std::string_view name, std::string_view key) const {
    return argument(name) + ", " + in_quotes(key);
  }
  [[nodiscard]] bool nested() const noexcept { return state_.nested_block_size > 0; }

  [[nodiscard]] TensorView tensor(const std::string& name) const {
    auto found = find_(name);
    if (found) return *std::move(found);
    throw SafetensorsError(SafetensorsErrorKind::tensor_not_found, label_, "a tensor " + in_quotes(name), "none");
  }

  [[nodiscard]] std::optional<BitsandbytesType> stored_type() const {
    std::optional<BitsandbytesType> found;
    for (const auto type : {BitsandbytesType::nf4, BitsandbytesType::fp4}) {
      if (!find_(detail::bitsandbytes_state_name(name_, type))) continue;
      if (found) refuse(argument(name_), "one quant_state", "that of nf4 and that of fp4");
      found = type;
    }
    return found;
  }

  void read_state(const TensorView& tensor) {
    if (tensor.dtype != Dtype::U8) refuse(argument(tensor.name), "JSON as U8", name_of(tensor.dtype));
    if (tensor.bytes.size() > most_state_bytes) {
      refuse(argument(tensor.name), "at most " + std::to_string(most_state_bytes) + " bytes",
             std::to_string(tensor.bytes.size()));
    }
    const auto* const text = reinterpret_cast<const char*>(tensor.bytes.data());
    const auto json = nlohmann::json::parse(text, text + tensor.bytes.size(), nullptr, false);
    if (!json.is_object()) refuse(argument(tensor.name), "an object in JSON", "other text");
    const auto type = text_of(json, tensor.name, "quant_type");
    if (type != name_of(state_.type)) {
      refuse(argument(tensor.name, "quant_type"), in_quotes(name_of(state_.type)), in_quotes(type));
    }
    state_.block_size = block_size_of(json, tensor.name, "blocksize");
    state_.dtype = dtype_of_state(text_of(json, tensor.name, "dtype"), tensor.name);
    read_shape(json, tensor.name);
    if (!json.contains("nested_blocksize")) return;
    state_.nested_block_size = block_size_of(json, tensor.name, "nested_blocksize");
    const auto offset = json.find("nested_offset");
    const double value = offset != json.end() && offset->is_number() ? offset->get<double>() : std::nan("");
    state_.nested_offset = static_cast<float>(value);
    if (!is_finite(state_.nested_offset)) refuse(argument(tensor.name, "nested_offset"), "a number", "none");
  }

  [[nodiscard]] std::string text_of(const nlohmann::json& json, std::string_view tensor, const char* key) const {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) refuse(argument(tensor, key), "a text", "none");
    return found->get<std::string>();
  }

  [[nodiscard]] Index block_size_of(const nlohmann::json& json, std::string_view tensor, const char* key) const {
    const auto found = json.find(key);
    const bool number = found != json.end() && found->is_number_unsigned();
    const auto size = number ? found->get<std::uint64_t>() : 0;
    for (const Index known : bitsandbytes_block_sizes) {
      if (static_cast<std::uint64_t>(known) == size) return known;
    }
    refuse(argument(tensor, key), "a power of two from 32 to 4096", number ? std::to_string(size) : "no such number");
  }

  [[nodiscard]] Dtype dtype_of_state(const std::string& name, std::string_view tensor) const {
    if (name == "float32") return Dtype::F32;
    if (name == "float16") return Dtype::F16;
    if (name == "bfloat16") return Dtype::BF16;
    refuse(argument(tensor, "dtype"), "\"float32\", \"float16\" or \"bfloat16\"", in_quotes(name));
  }

  void read_shape(const nlohmann::json& json, std::string_view tensor) {
    const auto found = json.find("shape");
    if (found == json.end() || !found->is_array() || found->size() != 2) {
      refuse(argument(tensor, "shape"), "a list of two extents", "another value");
    }
    std::array<Index, 2> extents{};
    for (std::size_t i = 0; i < 2; ++i) {
      const auto& extent = (*found)[i];
      constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
      // Without elements, the number of rows would not be bounded by the file.
      const std::uint64_t size = extent.is_number_unsigned() ? extent.get<std::uint64_t>() : 0;
      if (size == 0 || size > most) refuse(argument(tensor, "shape"), "extents from 1 to 2^63 - 1", "another value");
      extents[i] = static_cast<Index>(size);
    }
    state_.out_features = extents[0];
    state_.in_features = extents[1];
    Index elements = 0;
    if (__builtin_mul_overflow(extents[0], extents[1], &elements)) {
      refuse(argument(tensor, "shape"), "fewer than 2^63 elements", "more");
    }
    if (state_.in_features % state_.block_size != 0) {
      refuse(argument(name_), "rows of a multiple of " + std::to_string(state_.block_size) + " columns, the block size",
             std::to_string(state_.in_features) + " columns: its blocks do not end where rows do");
    }
  }

  void check_codes() const {
    if (codes_.dtype != Dtype::U8) refuse(argument(name_), "codes as U8", name_of(codes_.dtype));
    const auto bytes = static_cast<std::size_t>(state_.out_features * state_.in_features / 2);
    if (codes_.bytes.size() != bytes) {
      refuse(argument(name_),
             std::to_string(bytes) + " bytes for a shape of " +
                 shape_text(std::array{state_.out_features, state_.in_features}),
             std::to_string(codes_.bytes.size()));
    }
  }

  [[nodiscard]] TensorView companion(std::string_view suffix, Dtype dtype, Index size) const {
    TensorView tensor = this->tensor(detail::with_suffix(name_, suffix));
    if (tensor.dtype != dtype) refuse(argument(tensor.name), name_of(dtype), name_of(tensor.dtype));
    if (tensor.size() == size) return tensor;
    refuse(argument(tensor.name), std::to_string(size) + " elements", std::to_string(tensor.size()));
  }

  [[nodiscard]] static float float_at(const TensorView& tensor, Index position) noexcept {
    return load_little_endian<float>(tensor.bytes.data() + static_cast<std::size_t>(position) * sizeof(float));
  }

  void check_quant_map() const {
    const TensorView map = companion("quant_map", Dtype::F32, 16);
    const auto& book =
        state_.type == BitsandbytesType::nf4 ? formats::detail::nf4_codebook : formats::detail::fp4_codebook;
    for (Index code = 0; code < 16; ++code) {
      const float value = float_at(map, code);
      if (value == book.values[static_cast<std::size_t>(code)]) continue;
      refuse(argument(map.name) + ", code " + std::to_string(code),
             detail::number_text(book.values[static_cast<std::size_t>(code)]) + ", as in the table of " +
                 std::string(name_of(state_.type)),
             detail::number_text(value));
    }
  }

  void read_nested() {
    constexpr Index codes = 256;
    const Index scales = (blocks() + state_.nested_block_size - 1) / state_.nested_block_size;
    nested_absmax_ = companion("nested_absmax", Dtype::F32, scales);
    nested_map_ = companion("nested_quant_map", Dtype::F32, codes);
  }

  /// Writes the scale and the codes of a block.
  void copy_block(Index block, std::uint8_t* target) const {
    const float scale = scale_of(block);
    const auto code_bytes = static_cast<std::size_t>(state_.block_size / 2);
    store_little_endian(scale, target);
    std::memcpy(target + sizeof(scale), codes_.bytes.data() + static_cast<std::size_t>(block) * code_bytes, code_bytes);
  }

  [[nodiscard]] float scale_of(Index block) const {
    const float scale = nested() ? nested_scale_of(block) : float_at(absmax_, block);
    if (!is_finite(scale)) {
      refuse(argument(absmax_.name) + ", block " + std::to_string(block), "a finite scale", "another");
    }
    return scale;
  }

  [[nodiscard]] float nested_scale_of(Index block) const {
    const auto code = static_cast<Index>(absmax_.bytes[static_cast<std::size_t>(block)]);
    // bitsandbytes rounds the product before it adds.
    const float scale = formats::detail::product(float_at(nested_map_, code),
                                                 float_at(nested_absmax_, block / state_.nested_block_size));
    return formats::detail::sum(scale, state_.nested_offset);
  }

  Find find_;
  std::string label_;
  std::string name_;
  BitsandbytesState state_;
  TensorView codes_;
  TensorView absmax_;
  TensorView nested_absmax_;
  TensorView nested_map_;
};

/// Whether `name` is a 4-bit weight of bitsandbytes: it has a quant_state.
[[nodiscard]] inline bool is_bitsandbytes_weight(const SafetensorsFile& file, std::string_view name) {
  return file.contains(detail::bitsandbytes_state_name(name, BitsandbytesType::nf4)) ||
         file.contains(detail::bitsandbytes_state_name(name, BitsandbytesType::fp4));
}

/// How a 4-bit weight is stored; all its tensors are checked, except that scales are finite.
/// @throws SafetensorsError tensor_not_found for one that is missing; FormatError naming the tensor and what is wrong:
/// a state that is not the JSON of bitsandbytes, another type or block size, a row that is no multiple of it, a shape
/// or dtype that does not fit, a quant_map that is not the format's table
[[nodiscard]] inline BitsandbytesState bitsandbytes_state(const SafetensorsFile& file, std::string_view name) {
  return BitsandbytesTensor(file, name).state();
}

/// A 4-bit weight. Nested scales are decoded, so that a block has its scale as a float; blocks are laid out for the
/// kernels. Choose `Format` by visit_format of the state's type and block size. Holds the blocks twice while it reads.
/// @throws like bitsandbytes_state; FormatError when the file has another type or block size than `Format`, or a scale
/// is not finite; std::bad_alloc
template <FourBitFormat Format>
[[nodiscard]] QuantizedWeight<Format> bitsandbytes_weight(const SafetensorsFile& file, std::string_view name) {
  const BitsandbytesTensor reader(file, name);
  const BitsandbytesState& state = reader.state();
  if (state.type != detail::BitsandbytesFormat<Format>::type || state.block_size != Format::block_size) {
    throw FormatError("bitsandbytes_weight", detail::tensor_argument(file.label(), name),
                      std::string(Format::name) + " in blocks of " + std::to_string(Format::block_size),
                      std::string(name_of(state.type)) + " in blocks of " + std::to_string(state.block_size));
  }
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(reader.blocks() * Format::block_bytes));
  reader.copy_rows(0, state.out_features, blocks.data());
  return QuantizedWeight<Format>::from_blocks(blocks, state.out_features, state.in_features);
}

/// The JSON of a state, as bitsandbytes writes it.
[[nodiscard]] inline std::string bitsandbytes_state_text(const BitsandbytesState& state) {
  const std::string_view dtype = state.dtype == Dtype::F16    ? "float16"
                                 : state.dtype == Dtype::BF16 ? "bfloat16"
                                                              : "float32";
  std::string text = "{\"quant_type\": \"";
  text.append(name_of(state.type)).append("\", \"blocksize\": ").append(std::to_string(state.block_size));
  text.append(", \"dtype\": \"").append(dtype).append("\", \"shape\": [").append(std::to_string(state.out_features));
  text.append(", ").append(std::to_string(state.in_features)).append("]");
  if (state.nested_block_size > 0) {
    text.append(", \"nested_blocksize\": ").append(std::to_string(state.nested_block_size));
    text.append(", \"nested_dtype\": \"float32\", \"nested_offset\": ");
    text.append(nlohmann::json(static_cast<double>(state.nested_offset)).dump());
  }
  return text.append("}");
}

/// How a file has the scales of a 4-bit weight: as floats, or as codes of 8 bits (bitsandbytes' double quantisation,
/// nested_scales.hpp), which are rounded.
enum class BitsandbytesScales : std::uint8_t { floats, nested };

/// Adds copies of the tensors of a 4-bit weight. `dtype` (F32, F16 or BF16) is the one that bitsandbytes decodes to.
/// Nested scales take 3 bytes less a block; reading them back gives a weight with other scales. Each differs by at most
/// 0.0071 of the largest distance from the mean among the 256 scales around it, and a rounding.
/// @throws ConfigError for another dtype; SafetensorsError like SafetensorsWriter::add; std::bad_alloc. The writer may
/// have some of the tensors then.
template <FourBitFormat Format>
void add_bitsandbytes_weight(SafetensorsWriter& writer, const std::string& name, const QuantizedWeight<Format>& weight,
                             Dtype dtype = Dtype::F32, BitsandbytesScales scales = BitsandbytesScales::floats) {
  if (dtype != Dtype::F32 && dtype != Dtype::F16 && dtype != Dtype::BF16) {
    throw ConfigError("add_bitsandbytes_weight", "dtype", "F32, F16 or BF16", name_of(dtype));
  }
  using Traits = detail::BitsandbytesFormat<Format>;
  BitsandbytesState state{Traits::type, Format::block_size, weight.out_features(), weight.in_features(), dtype};
  const auto rows = static_cast<std::size_t>(weight.out_features());
  const auto row_bytes = static_cast<std::size_t>(formats::row_bytes<Format>(weight.in_features()));
  std::vector<std::uint8_t> blocks(rows * row_bytes);
  weight.write_blocks(blocks);
  constexpr auto block_bytes = static_cast<std::size_t>(Format::block_bytes);
  constexpr std::size_t code_bytes = block_bytes - sizeof(float);
  const std::size_t count = blocks.size() / block_bytes;
  std::vector<float> absmax(count);
  std::vector<std::uint8_t> codes(count * code_bytes);
  for (std::size_t block = 0; block < count; ++block) {
    absmax[block] = load_little_endian<float>(blocks.data() + block * block_bytes);
    std::memcpy(codes.data() + block * code_bytes, blocks.data() + block * block_bytes + sizeof(float), code_bytes);
  }
  const auto add = [&](std::string_view suffix, std::span<const float> values) {
    writer.add(detail::with_suffix(name, suffix),
               Eigen::Map<const RowVector<float>>(values.data(), static_cast<Index>(values.size())));
  };
  writer.add(name, Dtype::U8, {static_cast<Index>(codes.size()), 1}, std::as_bytes(std::span(codes)));
  add("quant_map", Traits::book.values);
  if (scales == BitsandbytesScales::floats) {
    add("absmax", absmax);
  } else {
    const detail::NestedScales nested = detail::nest_scales(absmax);
    state.nested_block_size = detail::nested_block_size;
    state.nested_offset = nested.offset;
    writer.add(detail::with_suffix(name, "absmax"), Dtype::U8, {static_cast<Index>(nested.codes.size())},
               std::as_bytes(std::span(nested.codes)));
    add("nested_absmax", nested.absmax);
    add("nested_quant_map", detail::nested_quant_map());
  }
  const std::string text = bitsandbytes_state_text(state);
  writer.add(detail::bitsandbytes_state_name(name, state.type), Dtype::U8, {static_cast<Index>(text.size())},
             std::as_bytes(std::span(text)));
}

}  // namespace lora
