// SPDX-License-Identifier: MIT
// A report shows text as text and needs nothing outside itself.
#include "common/report.hpp"

#include <filesystem>
#include <gtest/gtest.h>
#include <iterator>
#include <regex>
#include <string>
#include <sys/resource.h>

#include "common/interrupt.hpp"
#include "examples/temporary_folder.hpp"

namespace report_test {
namespace {

using examples::Report;
using examples::testing::TemporaryFolder;

constexpr const char* hostile = "<script>alert(\"1\")</script>";

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Report report_of(const std::string& text) {
  Report report(text, text);
  report.heading(text).paragraph(text).note(text).tiles({{text, text}}).table({{text}, {{text}}, {0}});
  report.figure({"<svg></svg>", {}}, text).figure({{}, text}, text);
  const std::vector<std::uint8_t> pixels(4, 9);
  report.pictures({pixels}, 2, {text}, text);
  return report;
}

TEST(Report, EscapesTextEverywhere) {
  const std::string html = report_of(hostile).html();
  EXPECT_FALSE(contains(html, "<script"));
  // Title and heading, subtitle, h2, p, note, tile twice, table twice, figure's alt and caption, missing figure twice,
  // picture's row, alt and caption.
  const std::regex escaped("&lt;script&gt;alert\\(&quot;1&quot;\\)&lt;/script&gt;");
  EXPECT_EQ(std::distance(std::sregex_iterator(html.begin(), html.end(), escaped), std::sregex_iterator()), 17);
}

TEST(Report, RefersToNothingOutsideItself) {
  const std::string html = report_of("text").html();
  const std::regex reference("(src|href)=\"(?!data:)|url\\(|@import|https?:");
  EXPECT_FALSE(std::regex_search(html, reference));
}

TEST(Report, SaysWhyAFigureIsMissing) {
  const std::string html = Report("t", "s").figure({{}, "no gnuplot here"}, "Accuracy").html();
  EXPECT_TRUE(contains(html, "no gnuplot here"));
  EXPECT_FALSE(contains(html, "<img"));
}

TEST(Report, IsWrittenWholly) {
  const TemporaryFolder folder;
  const Report report = report_of("text");
  report.write(folder / "report.html");
  EXPECT_EQ(std::filesystem::file_size(folder / "report.html"), report.html().size());
}

/// While it lives, no file of this process grows beyond `bytes`.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &kept_);
    const rlimit limit{bytes, kept_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &kept_); }

 private:
  rlimit kept_{};
};

TEST(Report, ThatDoesNotFitTheDiskLeavesTheOldOneAndNothingElse) {
  examples::handle_signals();
  const TemporaryFolder folder;
  const auto path = folder.write("report.html", "the old one");
  {
    const FileSizeLimit limit(1000);
    EXPECT_THROW(report_of("text").write(path), lora::IoError);
  }
  EXPECT_EQ(std::filesystem::file_size(path), std::string("the old one").size());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator()),
            1);
}

}  // namespace
}  // namespace report_test
