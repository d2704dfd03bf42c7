// SPDX-License-Identifier: MIT
// A model's config.json: read as Python writes it, and changed without touching the rest of its text.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/json_text.hpp"
#include "lora/core/error.hpp"

namespace lora::tools {

namespace detail {

/// Calls body(position, character) for what is not within a string of a JSON text.
template <class Body>
void outside_strings(std::string_view json, const Body& body) {
  bool in_string = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (in_string && json[i] == '\\') {
      ++i;
    } else if (json[i] == '"') {
      in_string = !in_string;
    } else if (!in_string) {
      body(i, json[i]);
    }
  }
}

/// The text with null in place of NaN, Infinity and -Infinity, which Python's json writes and reads, and JSON has not.
[[nodiscard]] inline std::string without_python_literals(std::string_view text) {
  std::string json;
  std::size_t copied = 0;
  outside_strings(text, [&](std::size_t at, char) {
    if (at < copied) return;
    for (const std::string_view literal : {"NaN", "Infinity", "-Infinity"}) {
      if (!text.substr(at).starts_with(literal)) continue;
      json.append(text.substr(copied, at - copied)).append("null");
      copied = at + literal.size();
      return;
    }
  });
  return json.append(text.substr(copied));
}

/// The members of an object, `"key": value`, in their order.
[[nodiscard]] inline std::vector<std::string_view> members_of(std::string_view object) {
  constexpr std::string_view space = " \t\r\n";
  std::vector<std::string_view> members;
  std::size_t depth = 0;
  std::size_t begin = 0;
  const auto end_member = [&](std::size_t end) {
    const std::string_view part = object.substr(begin, end - begin);
    const std::size_t first = part.find_first_not_of(space);
    if (first != std::string_view::npos)
      members.push_back(part.substr(first, part.find_last_not_of(space) + 1 - first));
    begin = end + 1;
  };
  outside_strings(object, [&](std::size_t at, char c) {
    if ((c == '{' || c == '[') && ++depth == 1) begin = at + 1;
    if (c == ',' && depth == 1) end_member(at);
    if ((c == '}' || c == ']') && --depth == 0) end_member(at);
  });
  return members;
}

/// The key of a member, without escapes.
[[nodiscard]] inline std::string key_of(std::string_view member) {
  std::size_t end = 1;
  while (member[end] != '"') end += member[end] == '\\' ? 2 : 1;
  return nlohmann::json::parse(member.substr(0, end + 1)).get<std::string>();
}

/// The text with every line but the first two spaces further in.
[[nodiscard]] inline std::string indented(std::string_view text) {
  std::string result;
  for (const char c : text) {
    result += c;
    if (c == '\n') result += "  ";
  }
  return result;
}

}  // namespace detail

/// A configuration as it was read.
struct ConfigFile {
  std::string text;
  nlohmann::json values;  // in no order: that of the text costs the square of an object's members
};

/// The values of a configuration; NaN and the infinities of Python are null.
/// @throws FormatError for what is not an object, or nested more than 64 deep; `label` names the text
[[nodiscard]] inline nlohmann::json parse_config(std::string_view text, std::string_view label) {
  auto json = examples::parse_json(detail::without_python_literals(text));
  if (json.is_object()) return json;
  throw FormatError("read config", label, "an object in JSON, nested at most 64 deep", "another text");
}

/// The family of models that a configuration names; empty if it names none.
[[nodiscard]] inline std::string model_type_of(const nlohmann::json& config) {
  if (!config.is_object() || !config.contains("model_type") || !config["model_type"].is_string()) return {};
  return config["model_type"].get<std::string>();
}

/// The text of a configuration with another value of a member, which is added at the end if it is not there, or without
/// the member for no value. All others stay as they are written. Pre: parse_config takes the text.
[[nodiscard]] inline std::string with_member(std::string_view config, std::string_view key,
                                             std::optional<nlohmann::ordered_json> value) {
  std::string text;
  const auto add = [&](std::string_view member) { text.append(text.empty() ? "{\n  " : ",\n  ").append(member); };
  const auto add_value = [&] {
    if (value) add(nlohmann::json(std::string(key)).dump() + ": " + detail::indented(value->dump(2)));
    value.reset();
  };
  for (const std::string_view member : detail::members_of(config)) {
    detail::key_of(member) == key ? add_value() : add(member);
  }
  add_value();
  return text.empty() ? "{}\n" : text + "\n}\n";
}

}  // namespace lora::tools
