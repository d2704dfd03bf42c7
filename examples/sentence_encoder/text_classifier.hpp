// SPDX-License-Identifier: MIT
// A classifier made of files: the encoder's weights, and an adapter with its head as a PEFT directory.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/json_text.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/text.hpp"
#include "sentence_encoder/encoder_weights.hpp"
#include "sentence_encoder/packed_texts.hpp"
#include "sentence_encoder/weight_format.hpp"

namespace examples::sentence_encoder {

/// Answers texts. One thread at a time.
class TextClassifier {
 public:
  TextClassifier() = default;
  TextClassifier(const TextClassifier&) = delete;
  TextClassifier& operator=(const TextClassifier&) = delete;
  virtual ~TextClassifier() = default;

  /// Logits, texts x classes.
  [[nodiscard]] virtual lora::Matrix<float> logits(std::span<const TokenIds> texts) = 0;
  [[nodiscard]] virtual Index classes() const noexcept = 0;
  /// @throws lora::StateError over weights that cannot be merged into
  virtual void merge() = 0;
  virtual void unmerge() = 0;
};

using Adapter = lora::PeftAdapter<float>;

/// An encoder of these weights, with kernels in `format`, with the adapter and its head. @throws lora::ConfigError,
/// lora::ShapeError where they do not fit; lora::FormatError without a head
[[nodiscard]] std::unique_ptr<TextClassifier> make_text_classifier(const EncoderWeights<float>& weights,
                                                                   const Adapter& adapter,
                                                                   WeightFormat format = WeightFormat::scalar);

/// How far the logits of such a classifier, merged and unmerged, may lie apart over these texts; merge_tolerance.hpp
/// has the derivation.
[[nodiscard]] double merge_tolerance(const EncoderWeights<float>& weights, const Adapter& adapter,
                                     std::span<const TokenIds> texts);

template <class Layers>
[[nodiscard]] std::unique_ptr<TextClassifier> make_text_classifier_with(const EncoderWeights<float>& weights,
                                                                        const Adapter& adapter,
                                                                        const Layers& layers = {});

inline constexpr const char* labels_file = "labels.json";

/// Writes the classes' names beside an adapter, in the order of the head's rows. @throws lora::IoError
inline void write_labels(const std::filesystem::path& folder, const std::vector<std::string>& labels) {
  const std::string text = nlohmann::json(labels).dump(1) + "\n";
  lora::AtomicFile file(folder / labels_file);
  file.write(std::as_bytes(std::span(text)));
  file.commit();
}

/// @throws lora::IoError, lora::FormatError unless the file is a list of texts
[[nodiscard]] inline std::vector<std::string> read_labels(const std::filesystem::path& folder) {
  const auto path = folder / labels_file;
  const lora::MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const auto json = parse_json(text);
  std::vector<std::string> labels;
  for (const auto& label : json.is_array() ? json : nlohmann::json::array()) {
    if (label.is_string()) labels.push_back(label.get<std::string>());
  }
  if (labels.empty() || labels.size() != json.size()) {
    throw lora::FormatError("read_labels", lora::in_quotes(path.native()), "a JSON array of the labels' names",
                            lora::in_quotes(text, 60));
  }
  return labels;
}

}  // namespace examples::sentence_encoder
