#include "lora/layers/adapter_slot.hpp"

#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <vector>

#include "support/bits.hpp"

namespace lora {
namespace {

using testing::same_bits;
using Slot = AdapterSlot<float>;

LoraConfig config_of(Index rank) {
  LoraConfig config;
  config.rank = rank;
  config.alpha = 3;
  config.init_lora_weights = InitLoraWeights::random;
  return config;
}

Slot slot_of(const char* name, Index rank = 2, std::uint64_t id = 1) {
  return {"test", name, id, 5, 4, config_of(rank), 1};
}

TEST(AdapterSlot, ScalesItsUpdateAndLeavesTheAdapterAlone) {
  Slot slot = slot_of("a");
  EXPECT_EQ(slot.scaling(), 1.5F);
  EXPECT_EQ(slot.update().scale, 1.5F);
  slot.set_scale("test", 4);
  EXPECT_EQ(slot.scaling(), 6);
  EXPECT_EQ(slot.update().scale, 6);
  EXPECT_EQ(slot.adapter().scaling(), 1.5F);
  EXPECT_EQ(slot.adapter().config().alpha, 3);
  EXPECT_THROW(slot.set_scale("test", 1e300), ConfigError);  // not finite in float
  EXPECT_EQ(slot.scale(), 4);
}

// PEFT's set_scale computes (scale * alpha) / rank in double.
TEST(AdapterSlot, RoundsTheScalingAsPeftDoes) {
  Slot slot = slot_of("a", 7);
  slot.set_scale("test", 0.1);
  EXPECT_EQ(slot.scaling(), static_cast<float>(0.1 * 3 / 7));
  LoraConfig config = config_of(7);
  config.use_rslora = true;
  Slot stabilised("test", "b", 2, 5, 4, config, 1);
  stabilised.set_scale("test", 0.1);
  EXPECT_EQ(stabilised.scaling(), static_cast<float>(0.1 * 3 / std::sqrt(7.0)));
}

TEST(AdapterSlot, LocksItsParametersWhileMerged) {
  Slot slot = slot_of("a");
  RowVector<float> bias;
  std::vector<Parameter<float>> list;
  slot.append_parameters(list, bias);
  ASSERT_EQ(list.size(), 2U);
  EXPECT_EQ(list[0].name(), "lora_A.a.weight");
  EXPECT_EQ(list[1].name(), "lora_B.a.weight");
  slot.set_merged(true);
  EXPECT_THROW((void)list[0].value(), StateError);
  EXPECT_THROW(slot.require_unmerged("test"), StateError);
  slot.set_merged(false);
  slot.require_unmerged("test");
  EXPECT_EQ(list[0].value()(1, 2), slot.adapter().A()(1, 2));
}

TEST(AdapterSlot, GradientsFollowTheConfiguration) {
  LoraConfig config = config_of(2);
  config.lora_bias = true;
  config.bias = BiasMode::lora_only;
  Slot slot("test", "a", 1, 5, 4, config, 1);
  const auto zero = slot.make_gradients(4);
  EXPECT_EQ(zero.A.rows(), 2);
  EXPECT_EQ(zero.B.rows(), 4);
  EXPECT_EQ(zero.lora_bias.size(), 4);
  EXPECT_EQ(zero.bias.size(), 4);
  EXPECT_EQ(slot.make_gradients(0).bias.size(), 0);
  slot.gradients(4).A(0, 0) = 1;
  EXPECT_EQ(slot.gradients(4).A(0, 0), 1);
  slot.zero_grad();
  EXPECT_EQ(slot.gradients(4).A(0, 0), 0);
  EXPECT_EQ(slot.parameter_count(), 2 * 5 + 4 * 2 + 4);
}

TEST(AdapterSlot, SwappingStartsAnew) {
  Slot slot = slot_of("a");
  slot.set_scale("test", 2);
  slot.gradients(0).A(0, 0) = 1;
  LoraAdapter<float> other("test", 5, 4, config_of(3), 9);
  const Matrix<float> a = other.A();
  slot.swap_adapter(other, 8);
  EXPECT_EQ(slot.id(), 8U);
  EXPECT_EQ(slot.scale(), 1);
  EXPECT_EQ(slot.scaling(), 1);
  EXPECT_TRUE(same_bits(slot.adapter().A(), a));
  EXPECT_EQ(slot.gradients(0).A.rows(), 3);
  EXPECT_TRUE(slot.gradients(0).A.isZero(0));
}

TEST(AdapterSlot, RefusesNamesThatFilesCannotHold) {
  for (const char* name : {"", ".", "a.b", "__base__"}) EXPECT_THROW(slot_of(name), ConfigError) << name;
  EXPECT_THROW(slot_of("a", 0), ConfigError);
  try {
    slot_of("a.b");
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "test: name: expected a name without dots other than \"\" and \"__base__\", got \"a.b\"");
  }
}

TEST(AdapterSlots, KeepTheirPlaceWhileOthersComeAndGo) {
  AdapterSlots<float> slots;
  for (const char* name : {"a", "b", "c"}) slots.add("test", slot_of(name));
  const Slot* b = &slots[1];
  for (int i = 0; i < 20; ++i) slots.add("test", slot_of(("n" + std::to_string(i)).c_str()));
  slots.erase(0);
  EXPECT_EQ(&slots[0], b);
  EXPECT_EQ(slots.find("a"), -1);
  EXPECT_EQ(slots.find("c"), 1);
  EXPECT_EQ(slots.size(), 22);
}

TEST(AdapterSlots, CopiesAreDeep) {
  AdapterSlots<float> slots;
  slots.add("test", slot_of("a"));
  AdapterSlots<float> copy = slots;
  copy[0].set_scale("test", 2);
  EXPECT_EQ(slots[0].scale(), 1);
  slots = copy;
  EXPECT_EQ(slots[0].scale(), 2);
  EXPECT_NE(&slots[0], &copy[0]);
}

TEST(AdapterSlots, NamesAreUniqueAndKnown) {
  AdapterSlots<float> slots;
  EXPECT_THROW((void)slots.index_of("test", "a"), ConfigError);
  slots.add("test", slot_of("a"));
  EXPECT_THROW(slots.add("test", slot_of("a")), ConfigError);
  EXPECT_EQ(slots.size(), 1);
  EXPECT_EQ(slots.index_of("test", "a"), 0);
  EXPECT_THROW((void)slots.index_of("test", "b"), ConfigError);
}

}  // namespace
}  // namespace lora
