// SPDX-License-Identifier: MIT
// The command "embed": one text a line in, one JSON array of numbers a line out.
#pragma once

#include <array>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <istream>
#include <ostream>
#include <string>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/executor.hpp"
#include "sentence_encoder/encoder.hpp"
#include "sentence_encoder/encoder_reader.hpp"
#include "sentence_encoder/tokenizer.hpp"

namespace examples::sentence_encoder {

/// Appends `count` numbers as a JSON array and a line's end, each as short as reads back to the same float.
inline void append_json_array(const float* values, Index count, std::string& text) {
  std::array<char, 32> digits{};
  for (Index i = 0; i < count; ++i) {
    text += i == 0 ? '[' : ',';
    const auto written = std::to_chars(digits.data(), digits.data() + digits.size(), values[i]);
    text.append(digits.data(), written.ptr);
  }
  text += count == 0 ? "[]\n" : "]\n";
}

/// Answers every line of `in`, up to its '\n', with the embedding of its text. Lines that are there already are taken
/// together; each answer is flushed before more input is waited for, so that a program at the other end of two pipes
/// gets it. Returns the number of lines. @throws lora::IoError when `out` takes no more
template <class Layers>
Index embed_lines(std::istream& in, std::ostream& out, const Tokenizer& tokenizer,
                  const SentenceEncoder<Layers>& encoder, lora::Executor& executor) {
  constexpr std::size_t most_lines = 256;
  EncoderPass<Layers> pass(executor);
  std::vector<TokenIds> texts;
  std::string line;
  std::string answer;
  Index lines = 0;
  for (bool more = true; more;) {
    more = static_cast<bool>(std::getline(in, line));
    if (more) texts.push_back(tokenizer.encode(line));
    if (more && texts.size() < most_lines && in.rdbuf()->in_avail() > 0) continue;
    const lora::Matrix<float> embeddings = encoder.embed(texts, pass);
    answer.clear();
    for (Index i = 0; i < embeddings.rows(); ++i) append_json_array(&embeddings(i, 0), embeddings.cols(), answer);
    if (!(out << answer << std::flush)) throw lora::IoError("embed", "output", "room for an answer", "a failed write");
    lines += embeddings.rows();
    texts.clear();
  }
  return lines;
}

/// The same with the model in `folder`. @throws lora::IoError, lora::FormatError
inline Index run_embed_command(const std::filesystem::path& folder, std::istream& in, std::ostream& out,
                               lora::Executor& executor) {
  const Tokenizer tokenizer(read_vocabulary(folder / "vocab.json"));
  const SentenceEncoder<AdaptedLayers<float>> encoder(read_encoder_weights(folder));
  return embed_lines(in, out, tokenizer, encoder, executor);
}

}  // namespace examples::sentence_encoder
