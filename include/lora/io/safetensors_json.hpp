// The JSON of a safetensors header, read as a stream: what the format does not define is not stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/io/dtype.hpp"
#include "lora/io/safetensors_error.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// A header's description of one tensor. Offsets count bytes from the end of the header.
struct SafetensorsEntry {
  std::string name;
  Dtype dtype = Dtype::U8;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

namespace detail {

inline constexpr std::string_view metadata_key = "__metadata__";

struct SafetensorsJson {
  std::vector<SafetensorsEntry> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

/// Receives the parser's events and keeps what the format defines:
///   {"__metadata__": {string: string}, name: {"dtype": string, "shape": [unsigned], "data_offsets": [begin, end]}}
/// Unknown fields of a tensor are skipped, as the reference implementation does.
/// Every event either fits the current place or throws; returning false is never needed.
class SafetensorsJsonHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafetensorsJsonHandler(SafetensorsJson& result, std::string_view label) : result_(result), label_(label) {}

  bool null() override {
    // The reference implementation reads a null here as no metadata.
    if (place_ == Place::metadata_value) {
      place_ = Place::header;
      return true;
    }
    return scalar("null");
  }
  bool boolean(bool /*value*/) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t /*value*/) override { return scalar("a negative number"); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return scalar("the number " + text.substr(0, 32));
  }
  bool binary(binary_t& /*value*/) override { return scalar("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::shape) {
      entry_.shape.push_back(value);
    } else if (place_ == Place::offsets) {
      if (offset_count_ == 2) refuse("two data_offsets", "more");
      (offset_count_++ == 0 ? entry_.begin : entry_.end) = value;
    } else {
      return scalar("a number");
    }
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      if (!result_.metadata.emplace(key_, std::move(value)).second) {
        refuse("distinct metadata keys", in_quotes(key_) + " twice");
      }
    } else if (place_ == Place::dtype) {
      const auto dtype = parse_dtype(value);
      if (!dtype) refuse("a dtype the format knows", in_quotes(value));
      entry_.dtype = *dtype;
      place_ = Place::tensor;
    } else {
      return scalar("a string");
    }
    return true;
  }

  bool start_object(std::size_t /*size*/) override {
    enter();
    switch (place_) {
      case Place::outside:
        place_ = Place::header;
        break;
      case Place::metadata_value:
        place_ = Place::metadata;
        break;
      case Place::tensor_value:
        place_ = Place::tensor;
        break;
      default:
        skip_or_refuse("an object");
    }
    return true;
  }

  bool key(string_t& value) override {
    if (place_ == Place::header) {
      header_key(value);
    } else if (place_ == Place::metadata) {
      key_ = std::move(value);
    } else if (place_ == Place::tensor) {
      tensor_key(value);
    }
    return true;
  }

  bool end_object() override {
    --depth_;
    if (place_ == Place::tensor) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_) {
        refuse("dtype, shape and data_offsets", std::string("no ") + (!has_dtype_   ? "dtype"
                                                                      : !has_shape_ ? "shape"
                                                                                    : "data_offsets"));
      }
      result_.tensors.push_back(std::move(entry_));
      place_ = Place::header;
    } else if (place_ == Place::metadata) {
      place_ = Place::header;
    } else {
      leave();
    }
    return true;
  }

  bool start_array(std::size_t /*size*/) override {
    enter();
    if (place_ == Place::shape_value) {
      place_ = Place::shape;
    } else if (place_ == Place::offsets_value) {
      place_ = Place::offsets;
    } else {
      skip_or_refuse("an array");
    }
    return true;
  }

  bool end_array() override {
    --depth_;
    if (place_ == Place::offsets && offset_count_ != 2) {
      refuse("two data_offsets", std::to_string(offset_count_));
    }
    if (place_ == Place::shape || place_ == Place::offsets) {
      place_ = Place::tensor;
    } else {
      leave();
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*last_token*/,
                   const nlohmann::json::exception& /*error*/) override {
    refuse("valid JSON", "an error at byte " + std::to_string(position) + " of the header");
  }

 private:
  /// Where the next event belongs; `*_value` expects the value of the key just read.
  enum class Place : std::uint8_t {
    outside,
    header,
    metadata_value,
    metadata,
    tensor_value,
    tensor,
    dtype,
    shape_value,
    shape,
    offsets_value,
    offsets,
    skipped
  };

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const {
    std::string argument(label_);
    if (place_ == Place::metadata_value || place_ == Place::metadata) {
      argument.append(": ").append(metadata_key);
    } else if (place_ != Place::outside && place_ != Place::header) {
      argument.append(": tensor ").append(in_quotes(entry_.name));
    } else {
      argument.append(": header");
    }
    throw SafetensorsError(SafetensorsErrorKind::invalid_header_deserialization, argument, expected, got);
  }

  [[nodiscard]] std::string_view expected_here() const noexcept {
    switch (place_) {
      case Place::outside:
        return "a JSON object";
      case Place::metadata_value:
        return "an object of strings";
      case Place::metadata:
        return "string values only";
      case Place::tensor_value:
        return "an object with dtype, shape and data_offsets";
      case Place::dtype:
        return "dtype as a string";
      case Place::shape_value:
      case Place::shape:
        return "shape as an array of unsigned 64-bit integers";
      case Place::offsets_value:
      case Place::offsets:
        return "data_offsets as an array of two unsigned 64-bit integers";
      default:
        return "a header of the format";
    }
  }

  /// A value that is allowed only in an unknown field.
  bool scalar(std::string_view got) {
    if (place_ != Place::skipped) refuse(expected_here(), got);
    if (depth_ == skipped_from_) place_ = Place::tensor;
    return true;
  }

  void skip_or_refuse(std::string_view got) const {
    if (place_ != Place::skipped) refuse(expected_here(), got);
  }

  /// Called at the end of a skipped object or array, or of the header itself.
  void leave() {
    if (place_ == Place::skipped && depth_ == skipped_from_) place_ = Place::tensor;
    if (place_ == Place::header && depth_ == 0) place_ = Place::outside;
  }

  // The reference implementation's parser stops at this depth too, and hostile nesting must not cost memory.
  void enter() {
    constexpr std::size_t deepest = 127;
    if (++depth_ > deepest) refuse("at most 127 levels of nesting", "more");
  }

  void header_key(string_t& value) {
    if (value == metadata_key) {
      place_ = Place::metadata_value;
      if (std::exchange(has_metadata_, true)) refuse("one __metadata__", "two");
      return;
    }
    entry_ = SafetensorsEntry{};
    entry_.name = std::move(value);
    offset_count_ = 0;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    place_ = Place::tensor_value;
  }

  void tensor_key(const string_t& value) {
    if (value == "dtype") {
      tensor_field(has_dtype_, Place::dtype, value);
    } else if (value == "shape") {
      tensor_field(has_shape_, Place::shape_value, value);
    } else if (value == "data_offsets") {
      tensor_field(has_offsets_, Place::offsets_value, value);
    } else {
      skipped_from_ = depth_;
      place_ = Place::skipped;
    }
  }

  void tensor_field(bool& present, Place place, const string_t& name) {
    if (std::exchange(present, true)) refuse("one " + name, "two");
    place_ = place;
  }

  SafetensorsJson& result_;
  std::string_view label_;
  Place place_ = Place::outside;
  std::size_t depth_ = 0;
  std::size_t skipped_from_ = 0;
  SafetensorsEntry entry_;
  std::string key_;
  unsigned offset_count_ = 0;
  bool has_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

/// Parses a header's text. Pre: `text` is UTF-8. @throws SafetensorsError invalid_header_deserialization.
[[nodiscard]] inline SafetensorsJson parse_safetensors_json(std::string_view text, std::string_view label) {
  // The JSON library would treat a byte order mark as white space and a NUL byte as the end of the text.
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  const std::size_t nul = text.find('\0');
  if (text.starts_with(byte_order_mark) || nul != std::string_view::npos) {
    throw SafetensorsError(
        SafetensorsErrorKind::invalid_header_deserialization, std::string(label) + ": header", "valid JSON",
        nul == std::string_view::npos ? std::string("a byte order mark") : "a NUL byte at byte " + std::to_string(nul));
  }
  SafetensorsJson result;
  SafetensorsJsonHandler handler(result, label);
  nlohmann::json::sax_parse(text.begin(), text.end(), &handler);
  return result;
}

}  // namespace detail

}  // namespace lora
