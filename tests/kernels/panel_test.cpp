#include "lora/kernels/panel.hpp"

#include <gtest/gtest.h>
#include <vector>

#include "support/kernel_oracle.hpp"

namespace lora {
namespace {

using kernels::even_block;
using kernels::PanelLayout;
using testing::ExactArray;
using testing::Storage;

TEST(EvenBlock, CutsIntoAsFewPartsAsTheLimitAllows) {
  for (Index total = 0; total <= 100; ++total) {
    for (const Index limit : {1, 7, 32, 100}) {
      const Index block = even_block(total, limit);
      ASSERT_GE(block, 1);
      ASSERT_LE(block, limit);
      ASSERT_EQ(kernels::ceil_div(total, block), kernels::ceil_div(total, limit)) << total << " by " << limit;
    }
  }
}

template <class Scalar>
class PanelTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PanelTest, Scalars);

TYPED_TEST(PanelTest, PanelsFollowOneAnotherAndHoldEveryOutput) {
  for (const Index outputs : {0, 1, 16, 47, 48, 49, 100, 1000}) {
    const PanelLayout<TypeParam> layout{outputs, 7};
    Index end = 0;
    Index held = 0;
    for (Index b = 0; b < layout.panels(); ++b) {
      EXPECT_EQ(layout.offset(b), end);
      EXPECT_EQ(layout.first_output(b), held);
      EXPECT_GE(layout.width(b), layout.columns(b));
      EXPECT_LT(layout.width(b), layout.columns(b) + kernels::width_unit<TypeParam>);
      EXPECT_EQ(layout.width(b) % kernels::width_unit<TypeParam>, 0);
      end += layout.width(b) * layout.inputs;
      held += layout.columns(b);
    }
    EXPECT_EQ(layout.size(), end);
    EXPECT_EQ(held, outputs);
  }
}

TYPED_TEST(PanelTest, PackedElementsStandWhereTheLayoutSays) {
  const ExactArray<TypeParam> weight(101, 9, Storage::row_major, 1);
  const PanelLayout<TypeParam> layout{101, 9};
  for (const Isa isa : testing::supported_isas()) {
    for (Index b = 0; b < layout.panels(); ++b) {
      std::vector<TypeParam> panel(static_cast<std::size_t>(layout.width(b) * layout.inputs));
      kernels::pack_panel(isa, weight.input(), b, panel.data());
      for (Index q = 0; q < layout.inputs; ++q) {
        for (Index j = 0; j < layout.width(b); ++j) {
          const TypeParam expected = j < layout.columns(b) ? weight.input()(layout.first_output(b) + j, q) : 0;
          ASSERT_EQ(panel[static_cast<std::size_t>(q * layout.width(b) + j)], expected) << isa_name(isa);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lora
