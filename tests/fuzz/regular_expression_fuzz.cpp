// SPDX-License-Identifier: MIT
// Any pattern, up to the first line feed, ends in a ConfigError or in an expression that answers for any name, the rest
// of the input, within the promised number of steps.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "fuzz/fuzz_input.hpp"
#include "lora/model/name_pattern.hpp"

namespace lora::regular_expression_fuzz {
namespace {

using Expression = detail::RegularExpression<char>;

void require(bool promise) {
  if (!promise) std::abort();
}

void match_whole(const std::string& pattern, std::string_view name) {
  const Expression expression("fuzz", "pattern", pattern);
  require(expression.states() <= static_cast<std::size_t>(Expression::max_states));
  std::uint64_t steps = 0;
  (void)expression.matches(
      name, [](std::size_t place) { return place == 0; }, [&](std::size_t place) { return place == name.size(); },
      steps);
  require(steps <= (name.size() + 2) * 3 * (expression.states() + 1));
}

bool matches(const std::string& pattern, detail::PatternPlace place, std::string_view name) {
  const detail::MatchBudget budget;
  return detail::NamePattern("fuzz", "pattern", pattern, place, budget).matches(name, budget);
}

}  // namespace
}  // namespace lora::regular_expression_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lora::regular_expression_fuzz;
  using lora::detail::PatternPlace;
  lora::fuzzing::FuzzInput input(data, size);
  const std::string pattern = input.text_until('\n');
  const std::string name = input.rest();
  try {
    match_whole(pattern, name);
    // What matches the whole name matches its end, and what matches its end a part of it.
    const bool end = matches(pattern, PatternPlace::name_end, name);
    require(end || !matches(pattern, PatternPlace::whole_name, name));
    require(!end || matches(pattern, PatternPlace::name_part, name));
  } catch (const lora::ConfigError&) {
  }
  return 0;
}
