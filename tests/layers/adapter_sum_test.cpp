// The sum of several adapters against each of them by itself.
#include "lora/layers/adapter_sum.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "lora/weight/packed.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_matrix;
using testing::same_bits;

constexpr Index n = 9, d = 33, k = 21;

class AdapterSumOf : public ::testing::Test {
 protected:
  AdapterSumOf() {
    for (const auto& [name, rank, dropout] :
         {std::tuple<const char*, Index, double>{"a", 3, 0.0}, {"b", 5, 0.4}, {"c", 2, 0.0}, {"idle", 7, 0.0}}) {
      LoraConfig config;
      config.rank = rank;
      config.dropout = dropout;
      config.init_lora_weights = InitLoraWeights::random;
      slots.add("test", {"test", name, static_cast<std::uint64_t>(rank), k, d, config, 1});
    }
    slots[2].set_scale("test", -2);
  }

  [[nodiscard]] AdapterSum<double> sum() const { return {slots, chosen}; }

  AdapterSlots<double> slots;
  std::vector<Index> chosen = {2, 0, 1};
  Matrix<double> x = random_matrix<double>(n, k, 1);
  Matrix<double> dy = random_matrix<double>(n, d, 2);
  Workspace workspace;
};

TEST_F(AdapterSumOf, PutsTheTermsSideBySideInTheChosenOrder) {
  const auto term = sum().infer(view_of(std::as_const(x)), workspace);
  EXPECT_EQ(sum().count(), 3U);
  EXPECT_EQ(sum().rank(), 10);
  ASSERT_EQ(term.rank(), 10);
  Index first = 0;
  for (const Index c : chosen) {
    const auto& slot = slots[c];
    Workspace own;
    const std::vector<Index> alone = {c};
    const auto part = AdapterSum<double>(slots, alone).infer(view_of(std::as_const(x)), own);
    EXPECT_TRUE(same_bits(term.down.middle_cols(first, slot.rank()).map(), part.down.map()));
    EXPECT_TRUE(same_bits(term.up.middle_rows(first, slot.rank()).map(), part.up.map()));
    EXPECT_TRUE(part.up.map().isApprox(slot.scaling() * slot.adapter().B().transpose()));
    first += slot.rank();
  }
}

TEST_F(AdapterSumOf, LeavesOutWhatIsMerged) {
  slots[0].set_merged(true);
  EXPECT_EQ(sum().count(), 2U);
  EXPECT_EQ(sum().rank(), 7);
  slots[1].set_merged(true);
  slots[2].set_merged(true);
  EXPECT_EQ(sum().infer(view_of(std::as_const(x)), workspace).rank(), 0);
}

TEST_F(AdapterSumOf, TrainsEachAsIfItWereAlone) {
  MultiLoraRecord<double> record;
  record.position = {3, 5};
  record.prepare(chosen.size());
  const auto term = sum().forward(view_of(std::as_const(x)), record, workspace);
  EXPECT_EQ(term.down.cols, 10);
  std::vector<LoraGradients<double>> gradients;
  for (const Index c : chosen) gradients.push_back(slots[c].make_gradients(0));
  const auto gradients_of = [&](std::size_t i) -> LoraGradients<double>& { return gradients[i]; };
  const auto v = sum().backward(view_of(std::as_const(x)), record, view_of(std::as_const(dy)), gradients_of, workspace);
  ASSERT_EQ(v.cols, 10);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const std::vector<Index> one = {chosen[i]};
    const AdapterSum<double> alone(slots, one);
    MultiLoraRecord<double> own_record;
    own_record.position = {3, 5};
    own_record.prepare(1);
    Workspace own;
    (void)alone.forward(view_of(std::as_const(x)), own_record, own);
    EXPECT_TRUE(same_bits(record[i].down_projection().map(), own_record[0].down_projection().map()));
    LoraGradients<double> expected = slots[chosen[i]].make_gradients(0);
    const auto expected_of = [&](std::size_t) -> LoraGradients<double>& { return expected; };
    (void)alone.backward(view_of(std::as_const(x)), own_record, view_of(std::as_const(dy)), expected_of, own);
    EXPECT_TRUE(same_bits(gradients[i].A, expected.A)) << i;
    EXPECT_TRUE(same_bits(gradients[i].B, expected.B)) << i;
  }
}

TEST_F(AdapterSumOf, InputGradientGoesThroughEachMask) {
  const auto w = random_matrix<double>(d, k, 4);
  const PackedWeight<double> weight(view_of(w));
  for (const bool with_dropout : {true, false}) {
    if (!with_dropout) chosen = {2, 0};
    MultiLoraRecord<double> record;
    record.prepare(chosen.size());
    (void)sum().forward(view_of(std::as_const(x)), record, workspace);
    std::vector<LoraGradients<double>> gradients;
    for (const Index c : chosen) gradients.push_back(slots[c].make_gradients(0));
    const auto gradients_of = [&](std::size_t i) -> LoraGradients<double>& { return gradients[i]; };
    const auto v =
        sum().backward(view_of(std::as_const(x)), record, view_of(std::as_const(dy)), gradients_of, workspace);
    Matrix<double> dx(n, k);
    sum().input_gradient(weight, view_of(std::as_const(dy)), v, record, view_of(dx), workspace);
    Matrix<double> expected = dy * w;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto& slot = slots[chosen[i]];
      const Matrix<double> through = slot.scaling() * dy * slot.adapter().B() * slot.adapter().A();
      const auto mask = slot.adapter().mask(record[i]);
      for (Index r = 0; r < n; ++r)
        for (Index c = 0; c < k; ++c) expected(r, c) += mask.keeps(r, c) ? mask.scale * through(r, c) : 0;
    }
    EXPECT_LT((dx - expected).norm(), 2 * (d + 10) * 2.3e-16 * dy.norm() * (w.norm() + 40));
  }
}

// The sum of those without DoRA leaves one that has it out, and of_dora() is that one alone.
TEST_F(AdapterSumOf, SeparatesThoseWithDora) {
  LoraConfig config;
  config.rank = 6;
  config.use_dora = true;
  const auto w = random_matrix<double>(d, k, 4);
  slots.add("test", {"test", "dora", 9, k, d, config, 1});
  slots[4].start_magnitude(PackedWeight<double>(view_of(w)));
  chosen = {2, 4, 0};
  EXPECT_EQ(sum().count(), 2U);
  EXPECT_EQ(sum().rank(), 5);
  std::vector<std::size_t> seen;
  sum().for_each([&](const auto&, std::size_t i) { seen.push_back(i); });
  EXPECT_EQ(seen, (std::vector<std::size_t>{0, 2}));
  const auto alone = AdapterSum<double>::of_dora(slots, chosen, 1);
  EXPECT_EQ(alone.count(), 1U);
  EXPECT_EQ(alone.rank(), 6);
}

}  // namespace
}  // namespace lora
