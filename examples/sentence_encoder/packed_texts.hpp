// SPDX-License-Identifier: MIT
// The tokens of several texts one after the other, so that no padding is computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lora/core/types.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// The ids of one text's pieces.
using TokenIds = std::vector<std::int32_t>;

/// Tokens that the model reads of one text; what follows is not seen.
inline constexpr Index longest_text = 128;

/// A batch of texts: the tokens of text i are rows [starts[i], starts[i + 1]) of every matrix of tokens. A text may
/// have no tokens.
struct PackedTexts {
  std::vector<std::int32_t> ids;
  std::vector<Index> starts{0};

  [[nodiscard]] Index texts() const noexcept { return static_cast<Index>(starts.size()) - 1; }
  [[nodiscard]] Index tokens() const noexcept { return static_cast<Index>(ids.size()); }
  [[nodiscard]] Index start(Index text) const noexcept { return starts[static_cast<std::size_t>(text)]; }
  [[nodiscard]] Index length(Index text) const noexcept { return start(text + 1) - start(text); }

  /// Keeps its memory.
  void clear() noexcept {
    ids.clear();
    starts.resize(1);
  }
  /// Appends one text, cut to longest_text tokens.
  void add(std::span<const std::int32_t> text) {
    const auto kept = std::min(text.size(), static_cast<std::size_t>(longest_text));
    ids.insert(ids.end(), text.begin(), text.begin() + static_cast<std::ptrdiff_t>(kept));
    starts.push_back(tokens());
  }
};

/// Where a batch stands in the dropout sequence. The parts of one step's batch share `step` and differ in what came
/// before them; together they draw the masks of the whole.
struct BatchPosition {
  std::uint64_t step = 0;
  Index first_token = 0;
  Index first_text = 0;
};

/// All of `texts` as one batch.
[[nodiscard]] inline PackedTexts pack(std::span<const TokenIds> texts) {
  PackedTexts packed;
  for (const TokenIds& text : texts) packed.add(text);
  return packed;
}

}  // namespace examples::sentence_encoder
