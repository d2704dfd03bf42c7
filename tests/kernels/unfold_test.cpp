// Unfolding against its definition, and folding as its adjoint.
#include "lora/kernels/unfold.hpp"

#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::kernels {
namespace {

using lora::testing::random_matrix;
using lora::testing::same_bits;

constexpr Index samples = 3;
constexpr Index channels = 2;

const std::vector<ImageWalk> walks = {
    ImageWalk::pointwise(7),
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

struct Mask {
  explicit Mask(Index features) : bytes(static_cast<std::size_t>(samples * ((features + 7) / 8))) {
    std::uint32_t state = 1;
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>((state = state * 1664525U + 1013904223U) >> 24U);
    mask = {bytes.data(), (features + 7) / 8, 1.25};
  }
  std::vector<std::uint8_t> bytes;
  DropoutMask<double> mask;
};

// All lines at all positions by the definition.
Matrix<double> unfolded(const ImageWalk& walk, const Matrix<double>& images, const DropoutMask<double>& mask) {
  const Index size = walk.output_size();
  Matrix<double> result = Matrix<double>::Zero(channels * walk.taps(), samples * size);
  for (Index l = 0; l < result.rows(); ++l) {
    for (Index p = 0; p < result.cols(); ++p) {
      const Index feature = seen(walk, l, p % size);
      if (feature >= 0 && mask.keeps(p / size, feature)) result(l, p) = images(p / size, feature) * mask.scale;
    }
  }
  return result;
}

Matrix<double> images_of(const ImageWalk& walk) {
  return random_matrix<double>(samples, channels * walk.input_size(), 1);
}

TEST(Unfold, IsItsDefinitionForAnyBlockWithZerosBehindIt) {
  for (const auto& walk : walks) {
    const auto images = images_of(walk);
    const Mask drawn(images.cols());
    for (const auto& mask : {DropoutMask<double>{}, drawn.mask}) {
      const auto expected = unfolded(walk, images, mask);
      for (const auto& block : {UnfoldBlock{0, expected.rows(), 0, expected.cols()}, UnfoldBlock{1, 1, 1, 2},
                                UnfoldBlock{0, expected.rows(), walk.output_size() - 1, walk.output_size() + 1}}) {
        const Index columns = block.end - block.begin;
        const Index lines = std::min(block.lines, expected.rows() - block.first_line);
        Matrix<double> got = Matrix<double>::Constant(lines, columns + 3, 99.0);
        unfold<double>(walk, view_of(images), mask, {block.first_line, lines, block.begin, block.end}, got.data(),
                       columns + 3);
        Matrix<double> wanted = Matrix<double>::Zero(lines, columns + 3);
        wanted.leftCols(columns) = expected.block(block.first_line, block.begin, lines, columns);
        EXPECT_TRUE(same_bits(got, wanted));
      }
    }
  }
}

TEST(Unfold, ReadsImagesOfAnyStrides) {
  for (const auto& walk : walks) {
    const auto images = images_of(walk);
    const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic> by_columns = images;
    const auto expected = unfolded(walk, images, {});
    Matrix<double> got(expected.rows(), expected.cols());
    unfold<double>(walk, view_of(by_columns), {}, {0, got.rows(), 0, got.cols()}, got.data(), got.cols());
    EXPECT_TRUE(same_bits(got, expected));
  }
}

// <unfold(X), G> = <X, fold(G)>, with and without a mask.
TEST(Fold, IsTheAdjointOfUnfold) {
  for (const auto& walk : walks) {
    const auto images = images_of(walk);
    const Mask drawn(images.cols());
    for (const auto& mask : {DropoutMask<double>{}, drawn.mask}) {
      const auto lines = unfolded(walk, images, mask);
      const auto g = random_matrix<double>(lines.rows(), lines.cols(), 2);
      Matrix<double> folded = Matrix<double>::Zero(images.rows(), images.cols());
      add_folded<double>(walk, g.data(), g.cols(), {0, g.rows(), 0, g.cols()}, mask, view_of(folded));
      EXPECT_NEAR(lines.cwiseProduct(g).sum(), images.cwiseProduct(folded).sum(),
                  1e-13 * static_cast<double>(1 + lines.size()));
    }
  }
}

TEST(Fold, GivesTheSameBitsHoweverPositionsAreCut) {
  for (const auto& walk : walks) {
    const auto images = images_of(walk);
    const Index positions = samples * walk.output_size();
    const auto g = random_matrix<double>(channels * walk.taps(), positions, 2);
    Matrix<double> whole = Matrix<double>::Ones(images.rows(), images.cols());
    Matrix<double> pieces = whole;
    add_folded<double>(walk, g.data(), positions, {0, g.rows(), 0, positions}, {}, view_of(whole));
    for (Index p = 0; p < positions; p += 3) {
      const UnfoldBlock block{0, g.rows(), p, std::min(positions, p + 3)};
      add_folded<double>(walk, g.data() + p, positions, block, {}, view_of(pieces));
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
