// SPDX-License-Identifier: MIT
// A classification task as the encoder takes it: texts as token ids, in three parts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "sentence_encoder/fnv1a.hpp"
#include "sentence_encoder/labelled_texts.hpp"
#include "sentence_encoder/packed_texts.hpp"

namespace examples::sentence_encoder {

/// Texts of one part with their labels.
struct EncodedTexts {
  std::vector<TokenIds> texts;
  std::vector<std::uint8_t> labels;
  std::vector<Index> rows;  ///< of the table

  [[nodiscard]] Index count() const noexcept { return static_cast<Index>(labels.size()); }

  /// Tokens of these texts in a batch.
  [[nodiscard]] Index token_count(std::span<const Index> which) const {
    Index count = 0;
    for (const Index i : which) {
      count += std::min(static_cast<Index>(texts[static_cast<std::size_t>(i)].size()), longest_text);
    }
    return count;
  }

  /// `before`, continued over the tokens and the length of every text.
  [[nodiscard]] std::uint64_t token_hash(std::uint64_t before) const noexcept {
    for (const TokenIds& text : texts) {
      const std::size_t bytes = text.size() * sizeof(TokenIds::value_type);
      before = fnv1a({reinterpret_cast<const char*>(text.data()), bytes}, before);
      before = fnv1a({reinterpret_cast<const char*>(&bytes), sizeof bytes}, before);
    }
    return before;
  }

  /// Fills `batch` and `batch_labels` with these texts.
  void pack_rows(std::span<const Index> which, PackedTexts& batch, std::vector<std::uint8_t>& batch_labels) const {
    batch.clear();
    batch_labels.clear();
    for (const Index i : which) {
      batch.add(texts[static_cast<std::size_t>(i)]);
      batch_labels.push_back(labels[static_cast<std::size_t>(i)]);
    }
  }
};

struct Task {
  std::vector<std::string> classes;
  EncodedTexts train;
  EncodedTexts validation;
  EncodedTexts test;
  std::uint64_t table_hash = 0;

  [[nodiscard]] Index class_count() const noexcept { return static_cast<Index>(classes.size()); }

  /// FNV-1a, 64 bits, of the tokens of all texts: another vocabulary splits them in another way.
  [[nodiscard]] std::uint64_t token_hash() const noexcept {
    std::uint64_t hash = fnv1a("");
    for (const EncodedTexts* part : {&train, &validation, &test}) hash = part->token_hash(hash);
    return hash;
  }
};

/// Most rows of each part; 0 stands for all.
struct TaskSizes {
  Index train = 0;
  Index validation = 0;
  Index test = 0;
};

/// `tokenize(text)` gives a TokenIds. @throws lora::FormatError when a part has no rows
template <class Tokenize>
[[nodiscard]] Task make_task(const LabelledTexts& table, const TaskSizes& sizes, const Tokenize& tokenize) {
  const auto encoded = [&](const std::vector<Index>& rows) {
    EncodedTexts part;
    for (const Index row : rows) {
      const LabelledText& one = table.rows[static_cast<std::size_t>(row)];
      part.texts.push_back(tokenize(one.text));
      part.labels.push_back(one.label);
      part.rows.push_back(row);
    }
    return part;
  };
  const Split parts = split(table);
  return {table.classes, encoded(sample(table, parts.train, sizes.train)),
          encoded(sample(table, parts.validation, sizes.validation)), encoded(sample(table, parts.test, sizes.test)),
          table.hash};
}

}  // namespace examples::sentence_encoder
