// SPDX-License-Identifier: MIT
// Changes of the world keep labels, and repeated often enough change nothing.
#include "common/transform.hpp"

#include <gtest/gtest.h>
#include <string>

namespace transform_test {
namespace {

using examples::ImageSet;
using examples::invert;
using examples::rotate_quarter_turn;

/// Two images of 2 x 3, all pixels different.
ImageSet two_images() {
  ImageSet set{2, 3, {}, {7, 1}};
  for (std::uint8_t p = 0; p < 12; ++p) set.pixels.push_back(static_cast<std::uint8_t>(p * 20));
  return set;
}

TEST(RotateQuarterTurn, TurnsClockwise) {
  const ImageSet turned = rotate_quarter_turn({2, 3, {'a', 'b', 'c', 'd', 'e', 'f'}, {4}});
  EXPECT_EQ(turned.height, 3);
  EXPECT_EQ(turned.width, 2);
  EXPECT_EQ(std::string(turned.pixels.begin(), turned.pixels.end()), "daebfc");
}

TEST(RotateQuarterTurn, FourTimesIsTheIdentityAndTwiceIsNot) {
  const ImageSet set = two_images();
  const ImageSet half = rotate_quarter_turn(rotate_quarter_turn(set));
  EXPECT_NE(half.pixels, set.pixels);
  const ImageSet whole = rotate_quarter_turn(rotate_quarter_turn(half));
  EXPECT_EQ(whole.pixels, set.pixels);
  EXPECT_EQ(whole.height, set.height);
  EXPECT_EQ(whole.width, set.width);
}

TEST(RotateQuarterTurn, KeepsLabels) { EXPECT_EQ(rotate_quarter_turn(two_images()).labels, two_images().labels); }

TEST(Invert, MapsBlackToWhite) {
  const ImageSet inverted = invert({1, 3, {0, 100, 255}, {3}});
  EXPECT_EQ(inverted.pixels, (std::vector<std::uint8_t>{255, 155, 0}));
  EXPECT_EQ(inverted.labels, (std::vector<std::uint8_t>{3}));
}

TEST(Invert, TwiceIsTheIdentityAndOnceIsNot) {
  const ImageSet set = two_images();
  EXPECT_NE(invert(set).pixels, set.pixels);
  EXPECT_EQ(invert(invert(set)).pixels, set.pixels);
}

}  // namespace
}  // namespace transform_test
