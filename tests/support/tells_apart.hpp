// SPDX-License-Identifier: MIT
// A predicate over names, given by examples.
#pragma once

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace lora::testing {

/// Expects `matches` to hold for every name of the first list and for none of the second.
template <class Matches>
void tells_apart(const Matches& matches, const std::vector<std::string>& matching,
                 const std::vector<std::string>& others) {
  for (const std::string& name : matching) EXPECT_TRUE(matches(name)) << name;
  for (const std::string& name : others) EXPECT_FALSE(matches(name)) << name;
}

}  // namespace lora::testing
