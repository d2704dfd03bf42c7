// SPDX-License-Identifier: MIT
// From text to the ids of its pieces: the most likely split by a unigram vocabulary.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/json_text.hpp"
#include "lora/core/error.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"
#include "sentence_encoder/normalization.hpp"
#include "sentence_encoder/packed_texts.hpp"

namespace examples::sentence_encoder {

/// A piece of text that has an id, and the logarithm of its probability.
struct Piece {
  std::u32string text;
  double score = 0.0;
};

/// The pieces of a vocab.json, [["text", score], ...], by id. A score that is null counts as 0, as JavaScript adds it.
/// @throws lora::IoError, lora::FormatError
[[nodiscard]] inline std::vector<Piece> read_vocabulary(const std::filesystem::path& path) {
  const lora::MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const auto fail = [&](std::string_view expected, std::string_view got) {
    throw lora::FormatError("read_vocabulary", lora::in_quotes(path.native()), expected, got);
  };
  const auto json = parse_json(text);
  if (!json.is_array()) {
    fail("a JSON array of [text, score]", json.is_discarded() ? "no JSON of up to 64 levels" : json.type_name());
  }
  std::vector<Piece> pieces;
  for (const auto& entry : json) {
    const bool is_pair = entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                         !entry[0].get_ref<const std::string&>().empty() &&
                         (entry[1].is_number() || entry[1].is_null());
    if (!is_pair) fail("[text, score] in entry " + std::to_string(pieces.size()), lora::in_quotes(entry.dump()));
    pieces.push_back(
        {code_points(entry[0].get_ref<const std::string&>()), entry[1].is_null() ? 0.0 : entry[1].get<double>()});
  }
  return pieces;
}

/// Splits normalised text into the pieces of a vocabulary with the greatest sum of scores (Viterbi), as SentencePiece's
/// unigram model does; Kudo, arXiv 1804.10959. What encode() answers is what the npm package @energetic-ai/embeddings
/// does, whose search differs from the textbook's in this:
/// - Where no piece starts, one code point is the unknown piece (id 0), at no cost: score 0, though all others are
///   negative.
/// - A position that no piece ends at counts as reached with score 0, and one code point back is the unknown piece.
/// - A best score of 0 counts as none: any candidate replaces it, even a worse one. Of equal scores the shorter piece
///   wins.
/// - The first `reserved` pieces do not take part; of equal texts the last one counts.
/// Runs of unknown pieces are one.
class Tokenizer {
 public:
  static constexpr std::size_t reserved = 6;

  explicit Tokenizer(std::vector<Piece> pieces) {
    for (std::size_t id = 0; id < pieces.size(); ++id) {
      lengths_.push_back(utf16_length(pieces[id].text));
      if (id >= reserved) insert(pieces[id], static_cast<std::int32_t>(id));
    }
  }

  /// Number of ids.
  [[nodiscard]] Index vocabulary_size() const noexcept { return static_cast<Index>(lengths_.size()); }

  /// The ids for a text in UTF-8; none for an empty one. Reentrant.
  [[nodiscard]] TokenIds encode(std::string_view text) const {
    const std::u32string symbols = prepared(text);
    std::vector<double> best(symbols.size() + 1, 0.0);
    TokenIds last(symbols.size() + 1, unknown);
    for (std::size_t start = 0; start < symbols.size(); ++start) {
      const auto offer = [&](std::size_t end, double score, std::int32_t id) {
        const double sum = score + best[start];
        if (best[end] != 0.0 && sum < best[end]) return;
        best[end] = sum;
        last[end] = id;
      };
      if (!offer_pieces(symbols, start, offer)) offer(start + 1, 0.0, unknown);
    }
    return trace_back(last);
  }

 private:
  static constexpr std::int32_t unknown = 0;
  static constexpr char32_t separator = U'\u2581';  // stands for a space

  struct Node {
    std::int32_t id = -1;  // of the piece that ends here
    double score = 0.0;
  };

  // Lengths as JavaScript counts them, in UTF-16.
  static std::size_t utf16_length(std::u32string_view text) {
    return text.size() + static_cast<std::size_t>(
                             std::count_if(text.begin(), text.end(), [](char32_t point) { return point > 0xFFFF; }));
  }

  static std::u32string prepared(std::string_view text) {
    std::u32string symbols = nfkc(text);
    if (symbols.empty()) return symbols;
    std::replace(symbols.begin(), symbols.end(), U' ', separator);
    symbols.insert(symbols.begin(), separator);
    return symbols;
  }

  static std::uint64_t edge(std::size_t node, char32_t symbol) noexcept {
    return (static_cast<std::uint64_t>(node) << 32U) | static_cast<std::uint64_t>(symbol);
  }

  void insert(const Piece& piece, std::int32_t id) {
    std::size_t node = 0;
    for (const char32_t symbol : piece.text) {
      const auto [child, is_new] = children_.try_emplace(edge(node, symbol), nodes_.size());
      if (is_new) nodes_.emplace_back();
      node = child->second;
    }
    nodes_[node] = {id, piece.score};
  }

  // Whether any piece starts at `start`.
  template <class Offer>
  bool offer_pieces(const std::u32string& symbols, std::size_t start, const Offer& offer) const {
    bool found = false;
    std::size_t node = 0;
    for (std::size_t i = start; i < symbols.size(); ++i) {
      const auto child = children_.find(edge(node, symbols[i]));
      if (child == children_.end()) break;
      node = child->second;
      if (nodes_[node].id < 0) continue;
      offer(i + 1, nodes_[node].score, nodes_[node].id);
      found = true;
    }
    return found;
  }

  [[nodiscard]] TokenIds trace_back(const TokenIds& last) const {
    TokenIds ids;
    for (std::size_t end = last.size() - 1; end > 0;) {
      const std::int32_t id = last[end];
      if (ids.empty() || id != unknown || ids.back() != unknown) ids.push_back(id);
      end -= std::min(end, id == unknown ? std::size_t{1} : lengths_[static_cast<std::size_t>(id)]);
    }
    std::reverse(ids.begin(), ids.end());
    return ids;
  }

  std::vector<std::size_t> lengths_;
  std::vector<Node> nodes_{1};
  std::unordered_map<std::uint64_t, std::size_t> children_;  // a trie: from node and symbol to node
};

}  // namespace examples::sentence_encoder
