// SPDX-License-Identifier: MIT
// adapter_config.json as a flat document: the known keys with their values, and what else there is.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/json_stream.hpp"
#include "lora/io/text.hpp"

namespace lora::detail {

inline constexpr std::string_view peft_config_operation = "read adapter_config.json";

/// The value of one key. That of a list or object is empty, and `items` are the values directly in it, in the order of
/// the text; those that are lists or objects themselves are empty as well.
// NOLINTNEXTLINE(bugprone-exception-escape): the JSON library checks its invariants where it moves.
struct PeftJsonField {
  nlohmann::json value;
  std::vector<std::string> keys;  ///< of an object's items
  std::vector<nlohmann::json> items;
};

struct PeftJson {
  std::map<std::string, PeftJsonField, std::less<>> fields;
  std::vector<std::string> unknown;  ///< "<key> = <value>", the first of them in the order of the text
  std::size_t unknown_count = 0;
};

/// A key that comes twice counts as the last one, as in Python.
class PeftJsonHandler final : public JsonHandler {
 public:
  using IsKnown = bool (*)(std::string_view key);

  PeftJsonHandler(PeftJson& result, std::string_view label, IsKnown is_known)
      : result_(result), label_(label), is_known_(is_known) {}

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const override {
    throw FormatError(peft_config_operation, label_, expected, got);
  }

 private:
  // Enough for lists of all modules of the largest models. An item takes up to 25 times the memory of its text.
  static constexpr std::size_t most_items = std::size_t{1} << 18;
  static constexpr std::size_t most_unknown = 50;

  void on_key(std::string& key) override {
    if (depth() == 1) {
      field_ = nullptr;
      if (!is_known_(key)) {
        key_ = std::move(key);
        return;
      }
      field_ = &result_.fields[std::move(key)];
      *field_ = {};
    } else if (depth() == 2 && field_ != nullptr) {
      count_item();
      field_->keys.push_back(std::move(key));
    }
  }

  void on_scalar(Json value) override { put(std::move(value)); }
  void on_open(bool object) override { put(object ? Json::object() : Json::array()); }
  void on_close() override {}

  void put(Json value) {
    if (depth() == 0 && !value.is_object()) refuse("an object", "a JSON " + std::string(value.type_name()));
    if (depth() == 1 && field_ == nullptr) {
      add_unknown(value);
    } else if (depth() == 1) {
      field_->value = std::move(value);
    } else if (depth() == 2 && field_ != nullptr) {
      count_item();
      field_->items.push_back(std::move(value));
    }
  }

  void add_unknown(const Json& value) {
    if (++result_.unknown_count <= most_unknown) {
      result_.unknown.push_back(in_quotes(key_).append(" = ").append(json_text(value)));
    }
  }

  void count_item() {
    if (++items_ > most_items) refuse("at most " + std::to_string(most_items) + " names and values", "more");
  }

  PeftJson& result_;
  std::string_view label_;
  IsKnown is_known_;
  PeftJsonField* field_ = nullptr;  // null in a key that is not known
  std::string key_;                 // that key
  std::size_t items_ = 0;
};

/// Time and memory are linear in the text, with at most 2^18 items. @throws FormatError
[[nodiscard]] inline PeftJson parse_peft_json(std::string_view text, std::string_view label,
                                              PeftJsonHandler::IsKnown is_known) {
  constexpr std::size_t largest = std::size_t{1} << 24;
  if (text.starts_with("version https://git-lfs.")) {
    throw FormatError(peft_config_operation, label, "JSON",
                      "a Git LFS pointer; the file itself was not fetched (git lfs pull)");
  }
  if (text.size() > largest) {
    throw FormatError(peft_config_operation, label, "at most " + std::to_string(largest) + " bytes",
                      std::to_string(text.size()));
  }
  PeftJson result;
  PeftJsonHandler handler(result, label, is_known);
  read_json(text, handler);
  return result;
}

}  // namespace lora::detail
