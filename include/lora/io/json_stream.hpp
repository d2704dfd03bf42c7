// SPDX-License-Identifier: MIT
// JSON read as a stream: depth is bounded, time linear, and only what a reader keeps takes memory.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "lora/io/text.hpp"

namespace lora::detail {

/// What a message calls a value that does not fit.
[[nodiscard]] inline std::string json_text(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  return value.is_string() ? in_quotes(value.get_ref<const std::string&>()) : value.dump();
}

/// Receives a document's values in the order of the text. Every event is taken or throws.
class JsonHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;

  // Python's json stops at about a thousand levels, the reference implementation of safetensors at 127.
  static constexpr std::size_t deepest = 127;

  bool null() final { return take(nullptr); }
  bool boolean(bool value) final { return take(value); }
  bool number_integer(number_integer_t value) final { return take(value); }
  bool number_unsigned(number_unsigned_t value) final { return take(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) final { return take(value); }
  bool string(string_t& value) final { return take(std::move(value)); }
  bool binary(binary_t& /*value*/) final { return true; }  // JSON has none
  bool key(string_t& value) final {
    on_key(value);
    return true;
  }
  bool start_object(std::size_t /*size*/) final { return open(true); }
  bool start_array(std::size_t /*size*/) final { return open(false); }
  bool end_object() final { return close(); }
  bool end_array() final { return close(); }
  bool parse_error(std::size_t position, const std::string& /*last_token*/,
                   const nlohmann::json::exception& /*error*/) final {
    refuse("JSON", "an error at byte " + std::to_string(position));
    return false;
  }

  /// Throws the reader's error at the current place.
  [[noreturn]] virtual void refuse(std::string_view expected, std::string_view got) const = 0;

 protected:
  /// The number of lists and objects around the current place.
  [[nodiscard]] std::size_t depth() const noexcept { return depth_; }

 private:
  virtual void on_scalar(Json value) = 0;
  /// May take the key's text.
  virtual void on_key(std::string& key) = 0;
  /// The first value within is at depth() of one more than the value itself.
  virtual void on_open(bool object) = 0;
  /// After the last value within, with depth() as before the value.
  virtual void on_close() = 0;

  template <class Value>
  bool take(Value&& value) {
    on_scalar(Json(std::forward<Value>(value)));
    return true;
  }
  bool open(bool object) {
    if (depth_ == deepest) refuse("at most 127 levels of nesting", "more");
    on_open(object);
    ++depth_;
    return true;
  }
  bool close() {
    --depth_;
    on_close();
    return true;
  }

  std::size_t depth_ = 0;
};

/// Sends a whole text to a handler. Time is linear in the text; memory is that of its longest string and of the
/// handler.
inline void read_json(std::string_view text, JsonHandler& handler) {
  // The JSON library treats a byte order mark as white space, and a NUL byte as the end of the text.
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  if (text.starts_with(byte_order_mark)) handler.refuse("JSON", "a byte order mark");
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    handler.refuse("JSON", "a NUL byte at byte " + std::to_string(nul));
  }
  nlohmann::json::sax_parse(text.begin(), text.end(), &handler);
}

}  // namespace lora::detail
