// SPDX-License-Identifier: MIT
// The extents that follow from a geometry, and the geometries that are refused.
#include "lora/layers/conv_geometry.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "support/message_of.hpp"

namespace lora::conv_geometry_test {
namespace {

using testing::message_of;

// Counts the positions whose first tap is not before the padding and whose last tap is not behind it.
Index counted(Index input, Index kernel, Index stride, Index padding, Index dilation) {
  Index count = 0;
  for (Index at = -padding; at + dilation * (kernel - 1) < input + padding; at += stride) ++count;
  return count;
}

TEST(ConvGeometry, OutputExtentsCountThePositionsOfTheKernel) {
  for (Index input = 0; input < 9; ++input) {
    for (Index kernel = 1; kernel < 4; ++kernel) {
      for (Index stride = 1; stride < 4; ++stride) {
        for (Index padding = 0; padding < 4; ++padding) {
          for (Index dilation = 1; dilation < 4; ++dilation) {
            const ConvGeometry<1> g{
                .kernel = {kernel}, .stride = {stride}, .padding = {padding}, .dilation = {dilation}};
            const Index expected = counted(input, kernel, stride, padding, dilation);
            if (expected > 0) {
              EXPECT_EQ(output_extents("test", g, {input})[0], expected);
            } else {
              EXPECT_THROW(static_cast<void>(output_extents("test", g, {input})), ShapeError);
            }
          }
        }
      }
    }
  }
}

TEST(ConvGeometry, FanInIsTheChannelsOfAGroupTimesTheTaps) {
  const ConvGeometry<3> g{.in_channels = 6, .out_channels = 4, .kernel = {2, 3, 5}, .groups = 2};
  EXPECT_EQ(g.fan_in(), 3 * 30);
  EXPECT_EQ(g.taps(), 30);
  EXPECT_EQ(g.group_outputs(), 2);
  const ConvGeometry<2> plain{.in_channels = 3, .out_channels = 4};
  EXPECT_EQ(plain.fan_in(), 3);
  EXPECT_EQ(plain.stride, (ImageExtents<2>{1, 1}));
}

TEST(ConvGeometry, AKernelThatReachesTooFarNamesBothSizes) {
  const ConvGeometry<2> g{.kernel = {3, 5}, .padding = {0, 1}, .dilation = {2, 1}};
  EXPECT_EQ(message_of<ShapeError>([&] {
              static_cast<void>(output_extents("op", g, {4, 3}));
            }),
            "op: extents: expected at least 5 x 5, which the kernel spans, got 4 x 3, padded to 4 x 5");
  EXPECT_THROW(static_cast<void>(output_extents("op", g, {-1, 9})), ShapeError);
  EXPECT_THROW(static_cast<void>(output_extents("op", g, {std::numeric_limits<Index>::max(), 9})), ShapeError);
}

TEST(ConvGeometry, RefusesNumbersOutOfRangeAndGroupsThatDoNotDivide) {
  const auto refused = [](const ConvGeometry<2>& g) {
    return message_of<ConfigError>([&] { check_geometry("op", g); });
  };
  EXPECT_EQ(refused({.stride = {1, 0}}), "op: stride: expected 1 to 2^31 - 1, got 0");
  EXPECT_EQ(refused({.kernel = {0, 1}}), "op: kernel: expected 1 to 2^31 - 1, got 0");
  EXPECT_EQ(refused({.dilation = {-1, 1}}), "op: dilation: expected 1 to 2^31 - 1, got -1");
  EXPECT_EQ(refused({.padding = {0, -1}}), "op: padding: expected 0 to 2^31 - 1, got -1");
  EXPECT_EQ(refused({.in_channels = 0}), "op: in_channels: expected 1 to 2^31 - 1, got 0");
  if (sizeof(Index) > 4) {
    EXPECT_EQ(refused({.out_channels = static_cast<Index>(std::int64_t{1} << 40)}),
              "op: out_channels: expected 1 to 2^31 - 1, got 1099511627776");
  }
  EXPECT_EQ(refused({.groups = 0}), "op: groups: expected 1 to 2^31 - 1, got 0");
  EXPECT_EQ(refused({.in_channels = 5, .out_channels = 6, .groups = 3}),
            "op: in_channels: expected a multiple of 3 groups, got 5");
  EXPECT_EQ(refused({.in_channels = 6, .out_channels = 5, .groups = 3}),
            "op: out_channels: expected a multiple of 3 groups, got 5");
  EXPECT_NO_THROW(check_geometry("op", ConvGeometry<2>{}));
}

TEST(ConvGeometry, ProductsDoNotOverflow) {
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_EQ(detail::saturated_product<2>(most, {most, 2}), most);
  EXPECT_EQ(detail::saturated_product<2>(most, {most, 0}), 0);
  EXPECT_EQ(detail::saturated_product<2>(3, {4, 5}), 60);
}

TEST(ConvGeometry, ItsWalkStandsAtTheEndOfThreeDimensions) {
  const ConvGeometry<1> g{.kernel = {3}, .stride = {2}, .padding = {1}, .dilation = {2}};
  const auto walk = image_walk(g, {9}, output_extents("test", g, {9}));
  EXPECT_EQ(walk.input, (kernels::ImageWalk::Extents{1, 1, 9}));
  EXPECT_EQ(walk.output, (kernels::ImageWalk::Extents{1, 1, 4}));
  EXPECT_EQ(walk.kernel, (kernels::ImageWalk::Extents{1, 1, 3}));
  EXPECT_EQ(walk.stride, (kernels::ImageWalk::Extents{1, 1, 2}));
  EXPECT_EQ(walk.padding, (kernels::ImageWalk::Extents{0, 0, 1}));
  EXPECT_EQ(walk.dilation, (kernels::ImageWalk::Extents{1, 1, 2}));
  const auto pointwise = image_walk(ConvGeometry<2>{}, {4, 6}, {4, 6});
  EXPECT_EQ(pointwise.output, (kernels::ImageWalk::Extents{1, 1, 24}));
}

}  // namespace
}  // namespace lora::conv_geometry_test
