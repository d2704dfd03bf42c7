// SPDX-License-Identifier: MIT
// Unfolding against its definition, and folding as its adjoint.
#include "lora/kernels/unfold.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/kernel_oracle.hpp"
#include "support/random_matrix.hpp"

namespace lora::kernels {
namespace {

using lora::testing::random_matrix;
using lora::testing::same_bits;
using lora::testing::supported_isas;

constexpr Index samples = 3;
constexpr Index channels = 2;

const std::vector<ImageWalk> walks = {
    ImageWalk::pointwise(7),
    ImageWalk::pointwise(77),
    {.input = {1, 3, 41}, .output = {1, 3, 41}, .kernel = {1, 3, 3}, .padding = {0, 1, 1}},
    {.input = {1, 1, 5}, .output = {1, 1, 3}, .kernel = {1, 1, 3}},
    {.input = {1, 4, 5}, .output = {1, 4, 5}, .kernel = {1, 3, 3}, .padding = {0, 1, 1}},
    {.input = {1, 7, 6}, .output = {1, 3, 4}, .kernel = {1, 3, 2}, .stride = {1, 3, 2}, .padding = {0, 1, 1}},
    {.input = {1, 1, 9}, .output = {1, 1, 13}, .kernel = {1, 1, 3}, .padding = {0, 0, 5}, .dilation = {1, 1, 3}},
    {.input = {1, 1, 2}, .output = {1, 1, 4}, .kernel = {1, 1, 1}, .stride = {1, 1, 3}, .padding = {0, 0, 4}},
    {.input = {3, 4, 5},
     .output = {2, 2, 4},
     .kernel = {2, 2, 3},
     .stride = {2, 2, 1},
     .padding = {1, 0, 2},
     .dilation = {2, 1, 2}},
    {.input = {1, 0, 3}, .output = {1, 1, 2}, .kernel = {1, 2, 2}, .padding = {0, 1, 0}},
};

// The feature that line `line` sees at output position `q` of its sample, or -1.
Index seen(const ImageWalk& walk, Index line, Index q) {
  Index tap = line % walk.taps();
  Index element = 0;
  Index scale = 1;
  for (std::size_t d = 3; d-- > 0;) {
    const Index at = q % walk.output[d] * walk.stride[d] + tap % walk.kernel[d] * walk.dilation[d] - walk.padding[d];
    if (at < 0 || at >= walk.input[d]) return -1;
    element += at * scale;
    scale *= walk.input[d];
    q /= walk.output[d];
    tap /= walk.kernel[d];
  }
  return line / walk.taps() * walk.input_size() + element;
}

template <class Scalar>
struct Mask {
  explicit Mask(Index features) : bytes(static_cast<std::size_t>(samples * ((features + 7) / 8))) {
    std::uint32_t state = 1;
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>((state = state * 1664525U + 1013904223U) >> 24U);
    mask = {bytes.data(), (features + 7) / 8, Scalar(1.25)};
  }
  std::vector<std::uint8_t> bytes;
  DropoutMask<Scalar> mask;
};

// All lines at all positions by the definition.
template <class Scalar>
Matrix<Scalar> unfolded(const ImageWalk& walk, const Matrix<Scalar>& images, const DropoutMask<Scalar>& mask) {
  const Index size = walk.output_size();
  Matrix<Scalar> result = Matrix<Scalar>::Zero(channels * walk.taps(), samples * size);
  for (Index l = 0; l < result.rows(); ++l) {
    for (Index p = 0; p < result.cols(); ++p) {
      const Index feature = seen(walk, l, p % size);
      if (feature >= 0 && mask.keeps(p / size, feature)) result(l, p) = images(p / size, feature) * mask.scale;
    }
  }
  return result;
}

template <class Scalar>
Matrix<Scalar> images_of(const ImageWalk& walk) {
  return random_matrix<Scalar>(samples, channels * walk.input_size(), 1);
}

template <class Scalar>
class Unfold : public ::testing::Test {};
template <class Scalar>
class Fold : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Unfold, Scalars);
TYPED_TEST_SUITE(Fold, Scalars);

TYPED_TEST(Unfold, IsItsDefinitionForAnyBlockWithZerosBehindIt) {
  using Scalar = TypeParam;
  for (const auto& walk : walks) {
    const auto images = images_of<Scalar>(walk);
    const Mask<Scalar> drawn(images.cols());
    for (const auto& mask : {DropoutMask<Scalar>{}, drawn.mask}) {
      const auto expected = unfolded(walk, images, mask);
      for (const auto& block : {UnfoldBlock{0, expected.rows(), 0, expected.cols()}, UnfoldBlock{1, 1, 1, 2},
                                UnfoldBlock{0, expected.rows(), walk.output_size() - 1, walk.output_size() + 1}}) {
        const Index columns = block.end - block.begin;
        const Index lines = std::min(block.lines, expected.rows() - block.first_line);
        Matrix<Scalar> wanted = Matrix<Scalar>::Zero(lines, columns + 3);
        wanted.leftCols(columns) = expected.block(block.first_line, block.begin, lines, columns);
        for (const Isa isa : supported_isas()) {
          Matrix<Scalar> got = Matrix<Scalar>::Constant(lines, columns + 3, Scalar(99));
          unfold<Scalar>(walk, view_of(images), mask, {block.first_line, lines, block.begin, block.end}, got.data(),
                         columns + 3, isa);
          EXPECT_TRUE(same_bits(got, wanted)) << isa_name(isa);
        }
      }
    }
  }
}

TYPED_TEST(Unfold, ReadsImagesOfAnyStrides) {
  using Scalar = TypeParam;
  for (const auto& walk : walks) {
    const auto images = images_of<Scalar>(walk);
    const Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> by_columns = images;
    const auto expected = unfolded<Scalar>(walk, images, {});
    Matrix<Scalar> got(expected.rows(), expected.cols());
    unfold<Scalar>(walk, view_of(by_columns), {}, {0, got.rows(), 0, got.cols()}, got.data(), got.cols());
    EXPECT_TRUE(same_bits(got, expected));
  }
}

// <unfold(X), G> = <X, fold(G)>, with and without a mask.
TYPED_TEST(Fold, IsTheAdjointOfUnfold) {
  using Scalar = TypeParam;
  for (const auto& walk : walks) {
    const auto images = images_of<Scalar>(walk);
    const Mask<Scalar> drawn(images.cols());
    for (const auto& mask : {DropoutMask<Scalar>{}, drawn.mask}) {
      const auto lines = unfolded(walk, images, mask);
      const auto g = random_matrix<Scalar>(lines.rows(), lines.cols(), 2);
      for (const Isa isa : supported_isas()) {
        Matrix<Scalar> folded = Matrix<Scalar>::Zero(images.rows(), images.cols());
        add_folded<Scalar>(walk, g.data(), g.cols(), {0, g.rows(), 0, g.cols()}, mask, view_of(folded), isa);
        const auto inner = [](const Matrix<Scalar>& a, const Matrix<Scalar>& b) {
          return a.template cast<double>().cwiseProduct(b.template cast<double>()).sum();
        };
        // Elements sum at most 12 taps, of numbers below 1.25.
        EXPECT_NEAR(inner(lines, g), inner(images, folded),
                    12 * 1.25 * std::numeric_limits<Scalar>::epsilon() * static_cast<double>(1 + lines.size()));
      }
    }
  }
}

TYPED_TEST(Fold, GivesTheSameBitsHoweverPositionsAreCut) {
  using Scalar = TypeParam;
  for (const auto& walk : walks) {
    const auto images = images_of<Scalar>(walk);
    const Index positions = samples * walk.output_size();
    const auto g = random_matrix<Scalar>(channels * walk.taps(), positions, 2);
    Matrix<Scalar> whole = Matrix<Scalar>::Ones(images.rows(), images.cols());
    Matrix<Scalar> pieces = whole;
    add_folded<Scalar>(walk, g.data(), positions, {0, g.rows(), 0, positions}, {}, view_of(whole));
    for (Index p = 0; p < positions; p += 3) {
      const UnfoldBlock block{0, g.rows(), p, std::min(positions, p + 3)};
      add_folded<Scalar>(walk, g.data() + p, positions, block, {}, view_of(pieces));
    }
    EXPECT_TRUE(same_bits(pieces, whole));
  }
}

TEST(ImageWalk, OneTapOnEveryElementSimplifiesToOneRun) {
  const ImageWalk own{.input = {2, 3, 4}, .output = {2, 3, 4}};
  EXPECT_EQ(own.simplified().input, (ImageWalk::Extents{1, 1, 24}));
  EXPECT_EQ(own.simplified().output, (ImageWalk::Extents{1, 1, 24}));
  const ImageWalk strided{.input = {1, 1, 4}, .output = {1, 1, 2}, .stride = {1, 1, 2}};
  EXPECT_EQ(strided.simplified().input, strided.input);
  const ImageWalk padded{.input = {1, 1, 4}, .output = {1, 1, 6}, .padding = {0, 0, 1}};
  EXPECT_EQ(padded.simplified().output, padded.output);
}

}  // namespace
}  // namespace lora::kernels
