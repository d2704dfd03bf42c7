// SPDX-License-Identifier: MIT
// Numbers and tables as people read them.
#include "common/text_table.hpp"

#include <gtest/gtest.h>

namespace text_table_test {
namespace {

TEST(GroupedText, GroupsByThrees) {
  EXPECT_EQ(examples::grouped_text(0), "0");
  EXPECT_EQ(examples::grouped_text(999), "999");
  EXPECT_EQ(examples::grouped_text(1000), "1,000");
  EXPECT_EQ(examples::grouped_text(1234567), "1,234,567");
  EXPECT_EQ(examples::grouped_text(-123456), "-123,456");
}

TEST(PercentText, RoundsToHundredths) { EXPECT_EQ(examples::percent_text(0.86314), "86.31 %"); }

TEST(PlainText, AlignsColumns) {
  EXPECT_EQ(examples::plain_text({{"name", "n"}, {{"a", "1,000"}, {"long name", "2"}}}),
            "name           n\n"
            "---------  -----\n"
            "a          1,000\n"
            "long name      2\n");
}

}  // namespace
}  // namespace text_table_test
