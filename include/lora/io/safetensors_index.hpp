// SPDX-License-Identifier: MIT
// model.safetensors.index.json: which files beside it hold a checkpoint's tensors.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/json_stream.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// The file beside the index that holds each tensor, by the tensor's name.
using SafetensorsWeightMap = std::map<std::string, std::string, std::less<>>;

namespace detail {

/// Collects the files that are named under "weight_map", and the map itself if there is one to fill.
class SafetensorsIndexHandler final : public JsonHandler {
 public:
  explicit SafetensorsIndexHandler(std::string_view label, SafetensorsWeightMap* weight_map = nullptr)
      : label_(label), weight_map_(weight_map) {}

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const override {
    throw FormatError("read safetensors index", label_, expected, got);
  }

  [[nodiscard]] std::vector<std::string> files() && {
    if (!has_map_) refuse("an object with weight_map", "none");
    if (files_.empty()) refuse("one tensor or more in weight_map", "none");
    return {files_.begin(), files_.end()};
  }

 private:
  // More shards than any checkpoint has; every one of them would be opened.
  static constexpr std::size_t most_files = 65536;

  void on_key(std::string& key) override {
    if (depth() == 1) in_map_ = key == "weight_map";
    if (depth() == 1 && in_map_ && std::exchange(has_map_, true)) refuse("one weight_map", "two");
    if (depth() == 2 && in_map_ && weight_map_ != nullptr) tensor_ = std::move(key);
  }
  void on_scalar(Json value) override { check(value); }
  void on_open(bool object) override { check(object ? Json::object() : Json::array()); }
  void on_close() override {}

  void check(const Json& value) {
    if (depth() == 0 && !value.is_object()) refuse("an object with weight_map", json_text(value));
    if (depth() == 1 && in_map_ && !value.is_object()) refuse("weight_map as an object", json_text(value));
    if (depth() != 2 || !in_map_) return;
    if (!value.is_string()) refuse("the name of a file beside the index", json_text(value));
    const auto& name = value.get_ref<const std::string&>();
    const bool is_file = !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
                         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
    if (!is_file) refuse("the name of a file beside the index", in_quotes(name));
    files_.insert(name);
    if (files_.size() > most_files) refuse("at most " + std::to_string(most_files) + " files", "more");
    if (weight_map_ != nullptr) weight_map_->insert_or_assign(std::move(tensor_), name);
  }

  std::string_view label_;
  SafetensorsWeightMap* weight_map_;
  std::string tensor_;  // the last key of weight_map
  std::set<std::string, std::less<>> files_;
  bool in_map_ = false;
  bool has_map_ = false;
};

}  // namespace detail

/// The names of the files that an index distributes a checkpoint's tensors over, each once, ascending. `label` names
/// the text in errors. Time is linear in the text; memory is that of the names.
/// @throws FormatError for text that is not JSON or nests more than 127 levels, for an index without tensors, and for
/// what cannot be a file in the index's folder; std::bad_alloc
/// Source: huggingface/transformers, `WEIGHTS_INDEX_NAME`.
[[nodiscard]] inline std::vector<std::string> parse_safetensors_index(std::string_view text, std::string_view label) {
  detail::SafetensorsIndexHandler handler(label);
  detail::read_json(text, handler);
  return std::move(handler).files();
}

/// Which of these files holds which tensor; the last one for a name that is given twice, as in Python. Errors and time
/// are those of parse_safetensors_index; memory is that of all names, of tensors too, and some hundred bytes for each.
/// Whether a file holds the tensor, only the file tells.
[[nodiscard]] inline SafetensorsWeightMap parse_safetensors_weight_map(std::string_view text, std::string_view label) {
  SafetensorsWeightMap weight_map;
  detail::SafetensorsIndexHandler handler(label, &weight_map);
  detail::read_json(text, handler);
  static_cast<void>(std::move(handler).files());
  return weight_map;
}

/// The names of the files of an index, as parse_safetensors_index gives them. @throws IoError also for what is not a
/// regular file
[[nodiscard]] inline std::vector<std::string> read_safetensors_index(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_safetensors_index(file.text(), path_text(path));
}

}  // namespace lora
