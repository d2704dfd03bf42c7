// SPDX-License-Identifier: MIT
// One case of reference vectors: a safetensors file and the description in its metadata, read strictly.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/types.hpp"
#include "lora/io/safetensors.hpp"

namespace lora::conformance {

/// A case that cannot be judged: its kind, an option or a tensor is unknown here.
class UnknownCase : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The members of a JSON object. Every member must be read, or finish() refuses the case.
class Options {
 public:
  Options(std::string where, nlohmann::json object) : where_(std::move(where)), object_(std::move(object)) {}

  template <class T>
  [[nodiscard]] T get(const std::string& key) {
    used_.insert(key);
    if (!object_.contains(key)) throw UnknownCase(where_ + " has no " + key);
    return object_.at(key).get<T>();
  }
  template <class T>
  [[nodiscard]] T get(const std::string& key, T fallback) {
    return contains(key) ? get<T>(key) : fallback;
  }
  [[nodiscard]] const nlohmann::json& at(const std::string& key) {
    used_.insert(key);
    if (!object_.contains(key)) throw UnknownCase(where_ + " has no " + key);
    return object_.at(key);
  }
  [[nodiscard]] bool contains(const std::string& key) const { return object_.contains(key); }
  /// Skips a member that does not affect the results.
  void ignore(const std::string& key) { used_.insert(key); }

  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      if (!used_.contains(key)) throw UnknownCase(where_ + ": unknown option " + key + " = " + value.dump());
    }
  }

 private:
  std::string where_;
  nlohmann::json object_;
  std::set<std::string> used_;
};

/// A file of reference vectors. Every tensor must be read, or finish() refuses the case.
class GoldenCase {
 public:
  explicit GoldenCase(const std::filesystem::path& path)
      : file_(SafetensorsFile::open(path)), options_("the description", description(file_)) {}

  [[nodiscard]] Options& options() noexcept { return options_; }
  /// The object `key` of the description; empty if there is none.
  [[nodiscard]] Options nested(const std::string& key) {
    return {key, options_.contains(key) ? options_.at(key) : nlohmann::json::object()};
  }

  [[nodiscard]] bool contains(const std::string& name) const { return file_.contains(name); }
  [[nodiscard]] std::vector<Index> shape(const std::string& name) const { return file_.tensor(name).shape; }

  /// A tensor (n_0, n_1, ...) as n_0 rows; a tensor with fewer than two dimensions is one row.
  template <class Scalar>
  [[nodiscard]] Matrix<Scalar> matrix(const std::string& name) {
    used_.insert(name);
    const auto tensor = file_.tensor(name);
    const Index rows = tensor.shape.size() < 2 ? 1 : tensor.shape.front();
    Matrix<Scalar> result(rows, rows == 0 ? 0 : tensor.size() / rows);
    tensor.copy_to(std::span<Scalar>(result.data(), static_cast<std::size_t>(result.size())));
    return result;
  }
  template <class T>
  [[nodiscard]] std::vector<T> vector(const std::string& name) {
    used_.insert(name);
    const auto tensor = file_.tensor(name);
    std::vector<T> result(static_cast<std::size_t>(tensor.size()));
    tensor.copy_to(std::span<T>(result));
    return result;
  }

  void finish() const {
    options_.finish();
    for (const auto name : file_.names()) {
      if (!used_.contains(std::string(name))) throw UnknownCase("unknown tensor " + std::string(name));
    }
  }

 private:
  /// Files of number formats describe themselves in the metadata directly.
  static nlohmann::json description(const SafetensorsFile& file) {
    const auto found = file.metadata().find("case");
    if (found == file.metadata().end()) {
      if (!file.metadata().contains("format")) throw UnknownCase("no description under __metadata__.case");
      nlohmann::json object(file.metadata());
      object["kind"] = "number_format";
      return object;
    }
    return nlohmann::json::parse(found->second);
  }

  SafetensorsFile file_;
  Options options_;
  std::set<std::string> used_;
};

}  // namespace lora::conformance
