// SPDX-License-Identifier: MIT
// Progress away from a terminal is a few plain lines.
#include "common/progress.hpp"

#include <cstdio>
#include <gtest/gtest.h>
#include <regex>
#include <string>

namespace progress_test {
namespace {

using examples::Progress;

/// What `body` makes a Progress print to a file.
template <class Body>
std::string printed(examples::Index total, const Body& body) {
  std::FILE* file = std::tmpfile();
  {
    Progress progress("Training", total, file);
    body(progress);
  }
  std::rewind(file);
  std::string text;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text.push_back(static_cast<char>(c));
  std::fclose(file);
  return std::regex_replace(text, std::regex("[0-9.:]+( s)?\n"), "TIME\n");
}

TEST(Progress, PrintsQuartersInLines) {
  EXPECT_EQ(printed(1000,
                    [](Progress& progress) {
                      for (int i = 0; i < 1000; ++i) progress.advance();
                    }),
            "Training TIME\nTraining: 25% after TIME\nTraining: 50% after TIME\nTraining: 75% after TIME\n"
            "Training: done after TIME\n");
}

TEST(Progress, SaysWhereItStopped) {
  EXPECT_EQ(printed(10, [](Progress& progress) { progress.advance(3); }),
            "Training TIME\nTraining: 25% after TIME\nTraining: stopped after TIME\n");
}

TEST(Progress, ANoteSaysWhatWasDoneLast) {
  EXPECT_EQ(printed(4, [](Progress& progress) { progress.advance(1, "loss 0.5"); }),
            "Training TIME\nTraining: 25%, loss 0.5 after TIME\nTraining: stopped after TIME\n");
}

TEST(Progress, StepsThatAreNotNeededCountNoMore) {
  EXPECT_EQ(printed(10,
                    [](Progress& progress) {
                      progress.advance(3);
                      progress.skip(7);
                    }),
            "Training TIME\nTraining: 25% after TIME\nTraining: done after TIME\n");
}

TEST(Progress, OfWhichNothingWasNeededIsDone) {
  EXPECT_EQ(printed(10, [](Progress& progress) { progress.skip(10); }), "Training TIME\nTraining: done after TIME\n");
}

TEST(DurationText, ShowsSecondsThenMinutes) {
  EXPECT_EQ(examples::duration_text(0.44), "0.4 s");
  EXPECT_EQ(examples::duration_text(65), "1:05");
}

}  // namespace
}  // namespace progress_test
