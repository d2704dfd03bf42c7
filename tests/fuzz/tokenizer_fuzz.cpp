// SPDX-License-Identifier: MIT
// Any vocabulary ends in one of the library's errors, or in a tokenizer that gives ids of its own for any text. The
// first byte says whether the vocabulary is the input's own text, up to a byte 0, or made of its choices.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "fuzz/fuzz_input.hpp"
#include "sentence_encoder/tokenizer.hpp"

namespace examples::sentence_encoder::tokenizer_fuzz {
namespace {

using lora::fuzzing::FuzzInput;

constexpr std::array<std::string_view, 8> letters{"a", "b", "\u2581", "\u00e9", "\u0301", "\U0001f600", "\ufb01", " "};
constexpr std::array<std::string_view, 8> scores{"-1", "-2.5", "0", "null", "-1e308", "3", "1e-320", "1.5e308"};

std::string made_vocabulary(FuzzInput& input) {
  std::string json = "[";
  const std::size_t pieces = input.below(32);
  for (std::size_t i = 0; i < pieces; ++i) {
    json.append(i > 0 ? ",[\"" : "[\"");
    for (std::size_t left = 1 + input.below(5); left > 0; --left) json.append(input.one_of(letters));
    json.append("\",").append(input.one_of(scores)).append("]");
  }
  return json + "]";
}

void check(const Tokenizer& tokenizer, const TokenIds& ids) {
  std::int32_t before = -1;
  for (const std::int32_t id : ids) {
    const bool piece = id >= static_cast<std::int32_t>(Tokenizer::reserved) && id < tokenizer.vocabulary_size();
    if (!piece && (id != 0 || before == 0)) std::abort();
    before = id;
  }
}

}  // namespace
}  // namespace examples::sentence_encoder::tokenizer_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace examples::sentence_encoder;
  static const lora::fuzzing::FuzzFolder folder;
  lora::fuzzing::FuzzInput input(data, size);
  try {
    const std::string vocabulary = input.flag() ? tokenizer_fuzz::made_vocabulary(input) : input.text_until(0);
    const Tokenizer tokenizer(read_vocabulary(folder.write("vocab.json", vocabulary)));
    const std::string text = input.rest();
    tokenizer_fuzz::check(tokenizer, tokenizer.encode(text));
  } catch (const lora::Error&) {
  }
  return 0;
}
