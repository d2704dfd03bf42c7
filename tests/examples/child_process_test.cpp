// SPDX-License-Identifier: MIT
// Filters of any appetite: nothing blocks, and nothing stays behind.
#include "common/child_process.hpp"

#include <gtest/gtest.h>
#include <string>

#include "examples/temporary_folder.hpp"

namespace child_process_test {
namespace {

using examples::run_filter;
using examples::testing::TemporaryFolder;

/// A shell script to run as a filter.
class Scripts : public ::testing::Test {
 protected:
  void SetUp() override { examples::handle_signals(); }

  std::string script(const std::string& commands) const {
    const auto path = folder_.write("filter", "#!/bin/sh\n" + commands + "\n");
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    return path.string();
  }
  TemporaryFolder folder_;
};

TEST_F(Scripts, EchoMoreThanAPipeHolds) {
  std::string input;
  for (int i = 0; i < 200'000; ++i) input.append(std::to_string(i)).push_back('\n');
  const auto result = run_filter("cat", input);
  EXPECT_TRUE(result.started);
  EXPECT_TRUE(result.succeeded);
  EXPECT_EQ(result.output, input);
  EXPECT_EQ(result.error, "");
}

TEST_F(Scripts, TakeEmptyInput) { EXPECT_EQ(run_filter("cat", "").output, ""); }

TEST_F(Scripts, MayNotExist) {
  const auto result = run_filter("/nonexistent/program", "input");
  EXPECT_FALSE(result.started);
  EXPECT_FALSE(result.succeeded);
}

TEST_F(Scripts, MayFailAndSayWhy) {
  const auto result = run_filter(script("echo half; echo reason >&2; exit 3"), "input");
  EXPECT_TRUE(result.started);
  EXPECT_FALSE(result.succeeded);
  EXPECT_EQ(result.output, "half\n");
  EXPECT_EQ(result.error, "reason\n");
}

TEST_F(Scripts, MayLeaveTheirInputUnread) {
  const auto result = run_filter(script("exec 0<&-; echo done"), std::string(1'000'000, 'x'));
  EXPECT_TRUE(result.succeeded);
  EXPECT_EQ(result.output, "done\n");
}

TEST_F(Scripts, DoNotOutliveAnInterruption) {
  const std::string filter = script("echo $$ > " + (folder_ / "id").string() + "; kill -INT $PPID; exec sleep 1000");
  EXPECT_THROW(static_cast<void>(run_filter(filter, "input")), examples::Interrupted);
  examples::detail::received_signal = 0;
  std::ifstream file(folder_ / "id");
  pid_t id = 0;
  file >> id;
  ASSERT_GT(id, 0);
  EXPECT_EQ(::kill(id, 0), -1) << "the child still runs";
}

}  // namespace
}  // namespace child_process_test
