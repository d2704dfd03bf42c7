// SPDX-License-Identifier: MIT
// The JSON of a safetensors header, read as a stream: what the format does not define is not stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/io/dtype.hpp"
#include "lora/io/json_stream.hpp"
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

struct SafetensorsJson {
  std::vector<SafetensorsEntry> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

/// Keeps what the format defines:
///   {"__metadata__": {string: string}, name: {"dtype": string, "shape": [unsigned], "data_offsets": [begin, end]}}
/// Unknown fields of a tensor are skipped, as the reference implementation does.
class SafetensorsJsonHandler final : public JsonHandler {
 public:
  SafetensorsJsonHandler(SafetensorsJson& result, std::string_view label) : result_(result), label_(label) {}

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const override {
    std::string argument(label_);
    if (!within_) {
      argument.append(": header");
    } else if (metadata_) {
      argument.append(": __metadata__");
    } else {
      argument.append(": tensor ").append(in_quotes(entry_.name));
    }
    throw SafetensorsError(SafetensorsErrorKind::invalid_header_deserialization, argument, expected, got);
  }

 private:
  enum class Field : std::uint8_t { dtype, shape, offsets, unknown };

  /// How deep a value is.
  enum Level : std::size_t { outside = 0, header = 1, item = 2, field = 3 };

  [[noreturn]] void refuse_value(std::string_view got) const {
    if (depth() == outside) refuse("a JSON object", got);
    if (metadata_) refuse(depth() == header ? "an object of strings" : "string values only", got);
    if (depth() == header) refuse("an object with dtype, shape and data_offsets", got);
    switch (field_) {
      case Field::dtype:
        refuse("dtype as a string", got);
      case Field::shape:
        refuse("shape as an array of unsigned 64-bit integers", got);
      default:
        refuse("data_offsets as an array of two unsigned 64-bit integers", got);
    }
  }

  [[nodiscard]] static std::string name_of_value(const Json& value) {
    if (value.is_null()) return "null";
    if (value.is_boolean()) return "a boolean";
    if (value.is_string()) return "a string";
    return value.is_number_integer() && !value.is_number_unsigned() ? "a negative number" : "a number";
  }

  [[nodiscard]] bool skipping() const noexcept { return within_ && !metadata_ && depth() >= item && is_unknown(); }
  [[nodiscard]] bool is_unknown() const noexcept { return field_ == Field::unknown; }

  void on_key(std::string& key) override {
    if (depth() == header) {
      start_item(key);
    } else if (metadata_) {
      key_ = std::move(key);
    } else if (depth() == item) {
      start_field(key);
    }
  }

  void start_item(std::string& key) {
    within_ = true;
    metadata_ = key == "__metadata__";
    if (metadata_) {
      if (std::exchange(has_metadata_, true)) refuse("one __metadata__", "two");
      return;
    }
    entry_ = SafetensorsEntry{};
    entry_.name = std::move(key);
    offset_count_ = 0;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    field_ = Field::dtype;
  }

  void start_field(const std::string& key) {
    const auto start = [&](bool& present, Field started) {
      if (std::exchange(present, true)) refuse("one " + key, "two");
      field_ = started;
    };
    if (key == "dtype") return start(has_dtype_, Field::dtype);
    if (key == "shape") return start(has_shape_, Field::shape);
    if (key == "data_offsets") return start(has_offsets_, Field::offsets);
    field_ = Field::unknown;
  }

  void on_scalar(Json value) override {
    if (skipping()) return;
    if (metadata_ && depth() == header && value.is_null()) return;  // the reference implementation: no metadata
    if (metadata_ && depth() == item && value.is_string()) return add_metadata(value);
    if (!metadata_ && depth() == item && field_ == Field::dtype && value.is_string()) return read_dtype(value);
    if (depth() != field || !value.is_number_unsigned()) refuse_value(name_of_value(value));
    const auto number = value.get<std::uint64_t>();
    if (field_ == Field::shape) return entry_.shape.push_back(number);
    if (offset_count_ == 2) refuse("two data_offsets", "more");
    (offset_count_++ == 0 ? entry_.begin : entry_.end) = number;
  }

  void add_metadata(Json& value) {
    const auto [place, inserted] = result_.metadata.try_emplace(key_, std::move(value.get_ref<std::string&>()));
    if (!inserted) refuse("distinct metadata keys", in_quotes(key_) + " twice");
  }

  void read_dtype(const Json& value) {
    const auto& text = value.get_ref<const std::string&>();
    const auto dtype = parse_dtype(text);
    if (!dtype) refuse("a dtype the format knows", in_quotes(text));
    entry_.dtype = *dtype;
  }

  void on_open(bool object) override {
    const bool is_list = depth() == item && !metadata_ && (field_ == Field::shape || field_ == Field::offsets);
    const bool fits = depth() <= header ? object : is_list && !object;
    if (!fits && !skipping()) refuse_value(object ? "an object" : "an array");
  }

  void on_close() override {
    if (depth() == item && field_ == Field::offsets && !metadata_ && offset_count_ != 2) {
      refuse("two data_offsets", std::to_string(offset_count_));
    }
    if (depth() == header && !metadata_) finish_tensor();
    if (depth() <= header) within_ = metadata_ = false;
  }

  void finish_tensor() {
    if (!has_dtype_ || !has_shape_ || !has_offsets_) {
      const char* const missing = !has_dtype_ ? "no dtype" : !has_shape_ ? "no shape" : "no data_offsets";
      refuse("dtype, shape and data_offsets", missing);
    }
    result_.tensors.push_back(std::move(entry_));
  }

  SafetensorsJson& result_;
  std::string_view label_;
  SafetensorsEntry entry_;
  std::string key_;
  Field field_ = Field::dtype;
  unsigned offset_count_ = 0;
  bool within_ = false;    // a tensor or the metadata
  bool metadata_ = false;  // the metadata
  bool has_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

/// Parses a header's text. Pre: `text` is UTF-8. @throws SafetensorsError invalid_header_deserialization.
[[nodiscard]] inline SafetensorsJson parse_safetensors_json(std::string_view text, std::string_view label) {
  SafetensorsJson result;
  SafetensorsJsonHandler handler(result, label);
  read_json(text, handler);
  return result;
}

}  // namespace detail

}  // namespace lora
