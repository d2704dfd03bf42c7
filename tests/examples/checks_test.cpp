// SPDX-License-Identifier: MIT
// The checks of the main job pass where they should and catch what they are there for.
#include "fashion_mnist/checks.hpp"

#include <gtest/gtest.h>
#include <limits>

#include "common/checkpoint.hpp"
#include "examples/temporary_folder.hpp"

namespace checks_test {
namespace {

using namespace examples;  // NOLINT: the program under test
using examples::testing::TemporaryFolder;

DenseNetwork base_network() { return random_mlp<float>({12, 9, 7, 4}, 21); }

LoraNetwork adapted_network() {
  return with_adapters(base_network(), {.rank = 3, .alpha = 6, .init_lora_weights = lora::InitLoraWeights::random}, 8);
}

ImageSet noise(Index count) {
  ImageSet set{3, 4, {}, {}};
  for (Index i = 0; i < count * 12; ++i) set.pixels.push_back(static_cast<std::uint8_t>(i * i * 7 % 251));
  set.labels.assign(static_cast<std::size_t>(count), 1);
  return set;
}

TEST(SameBits, TellsZerosApart) {
  lora::Matrix<float> a = lora::Matrix<float>::Zero(2, 2);
  lora::Matrix<float> b = a;
  EXPECT_TRUE(same_bits(a, b));
  b(1, 1) = -0.0F;
  EXPECT_FALSE(same_bits(a, b));
  a(1, 1) = b(1, 1) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(same_bits(a, b));
  EXPECT_FALSE(same_bits(a, lora::Matrix<float>::Zero(4, 1)));
}

TEST(CheckMerging, PassesOnAnAdaptedNetwork) {
  auto network = adapted_network();
  for (const auto& check : check_merging(network, base_network(), noise(700))) {
    EXPECT_TRUE(check.passed) << check.claim << ": " << check.evidence;
  }
  EXPECT_FALSE(network.layers()[0].merged());
}

TEST(CheckMerging, CatchesAWeightThatIsNotTheBases) {
  auto network = adapted_network();
  const auto other = random_mlp<float>({12, 9, 7, 4}, 22);
  const auto checks = check_merging(network, other, noise(20));
  EXPECT_FALSE(checks.at(2).passed);
}

TEST(CompareMerged, CatchesALogitOutsideItsTolerance) {
  const auto network = adapted_network();
  const ImageSet set = noise(20);
  const auto logits = logits_of(network, set);
  const auto bound = merge_tolerance(network, set);
  auto wrong = logits;
  wrong(3, 2) += 2 * bound(3, 2);
  EXPECT_TRUE(detail::compare_merged(logits, logits, bound).at(0).passed);
  EXPECT_FALSE(detail::compare_merged(logits, wrong, bound).at(0).passed);
  wrong(3, 2) = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(detail::compare_merged(logits, wrong, bound).at(0).passed);
}

TEST(CompareMerged, CatchesAnotherPrediction) {
  lora::Matrix<float> a(1, 2);
  a << 1, 2;
  const lora::Matrix<float> b = a.rowwise().reverse();
  EXPECT_FALSE(detail::compare_merged(a, b, lora::Matrix<float>::Constant(1, 2, 10)).at(1).passed);
}

TEST(MergeTolerance, IsFarBelowTheLogitsAndAboveZero) {
  const auto network = adapted_network();
  const ImageSet set = noise(50);
  const auto bound = merge_tolerance(network, set);
  EXPECT_GT(bound.minCoeff(), 0.0F);
  EXPECT_LT(bound.maxCoeff(), 1e-3F * logits_of(network, set).cwiseAbs().maxCoeff());
}

TEST(CheckReloading, PassesAndWritesTheNamesThatAreUsual) {
  const TemporaryFolder folder;
  save_network(base_network(), folder / "base.safetensors");
  const auto check =
      check_reloading(adapted_network(), noise(30), folder / "base.safetensors", folder / "adapter.safetensors");
  EXPECT_TRUE(check.passed) << check.evidence;
  const auto file = lora::SafetensorsFile::open(folder / "adapter.safetensors");
  EXPECT_EQ(file.size(), 6U);
  EXPECT_EQ(file.tensor("fc1.lora_A.weight").shape, (std::vector<Index>{3, 12}));
  EXPECT_EQ(file.metadata().find("rank")->second, "3");
}

TEST(CheckReloading, CatchesAnotherBase) {
  const TemporaryFolder folder;
  save_network(random_mlp<float>({12, 9, 7, 4}, 22), folder / "base.safetensors");
  EXPECT_FALSE(
      check_reloading(adapted_network(), noise(30), folder / "base.safetensors", folder / "adapter.safetensors")
          .passed);
}

TEST(LoadAdapter, RefusesAFileWithoutItsMetadata) {
  const TemporaryFolder folder;
  lora::SafetensorsWriter writer;
  writer.add_metadata("rank", "3x");
  writer.write(folder / "adapter.safetensors");
  EXPECT_THROW(static_cast<void>(load_adapter(base_network(), folder / "adapter.safetensors")), lora::FormatError);
}

TEST(Checkpoint, RestoresEveryBit) {
  const TemporaryFolder folder;
  const auto network = base_network();
  save_network(network, folder / "base.safetensors");
  const auto loaded = load_network(folder / "base.safetensors");
  ASSERT_EQ(loaded.layers().size(), network.layers().size());
  for (std::size_t l = 0; l < loaded.layers().size(); ++l) {
    EXPECT_TRUE(same_bits(loaded.layers()[l].weight(), network.layers()[l].weight()));
    EXPECT_EQ(loaded.layers()[l].bias(), network.layers()[l].bias());
  }
}

}  // namespace
}  // namespace checks_test
