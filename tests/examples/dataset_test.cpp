// SPDX-License-Identifier: MIT
// Images and labels belong together.
#include "common/dataset.hpp"

#include <gtest/gtest.h>
#include <string>

#include "examples/idx_bytes.hpp"
#include "examples/temporary_folder.hpp"

namespace dataset_test {
namespace {

using examples::read_fashion_mnist;
using examples::read_image_set;
using examples::testing::gzip;
using examples::testing::idx_bytes;
using examples::testing::TemporaryFolder;

class ImageSetFiles : public ::testing::Test {
 protected:
  examples::ImageSet read(const std::string& labels, std::uint32_t count) const {
    const auto images = folder_.write("images.gz", gzip(idx_bytes({2, 1, 3}, "abcdef")));
    return read_image_set(images, folder_.write("labels.gz", gzip(idx_bytes({count}, labels))), 10);
  }
  TemporaryFolder folder_;
};

TEST_F(ImageSetFiles, AreRead) {
  const auto set = read({'\x09', '\x00'}, 2);
  EXPECT_EQ(set.count(), 2);
  EXPECT_EQ(set.height, 1);
  EXPECT_EQ(set.width, 3);
  EXPECT_EQ(set.image(1)[0], 'd');
  EXPECT_EQ(set.labels[0], 9);
}

TEST_F(ImageSetFiles, MustHaveEqualCounts) { EXPECT_THROW(read("\x01\x02\x03", 3), lora::FormatError); }
TEST_F(ImageSetFiles, MustHaveLabelsBelowTheNumberOfClasses) { EXPECT_THROW(read("\x01\x0A", 2), lora::FormatError); }

TEST_F(ImageSetFiles, AreSliced) {
  const auto set = read("\x01\x02", 2).slice(1, 1);
  ASSERT_EQ(set.count(), 1);
  EXPECT_EQ(set.labels[0], 2);
  EXPECT_EQ(std::string(set.pixels.begin(), set.pixels.end()), "def");
}

TEST(FashionMnist, SaysWhatToInstallWhenItIsMissing) {
  const TemporaryFolder folder;
  try {
    static_cast<void>(read_fashion_mnist(folder.path()));
    FAIL() << "read from an empty folder";
  } catch (const lora::IoError& error) {
    EXPECT_NE(std::string(error.what()).find("apt-get install dataset-fashion-mnist"), std::string::npos);
  }
}

}  // namespace
}  // namespace dataset_test
