// SPDX-License-Identifier: MIT
#include "lora/layers/adapter_set.hpp"

#include <algorithm>
#include <gtest/gtest.h>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/allocation_count.hpp"
#include "support/message_of.hpp"

namespace lora::adapter_set_test {
namespace {

using testing::allocations_of;
using testing::message_of;
using Adapter = LoraAdapter<double>;

Adapter adapter(const std::string& name, Index bias, Index lora_bias) {
  Adapter made("AdapterSet", name, LoraConfig{.rank = 0}, 0, {});
  made.bias = RowVector<double>::Zero(bias);
  made.lora_bias = RowVector<double>::Zero(lora_bias);
  return made;
}

// What a set must say, by looking at every adapter.
Index found(const AdapterSet<double>& set, const std::string& name) {
  for (Index i = 0; i < set.size(); ++i) {
    if (set[i].name() == name) return i;
  }
  return -1;
}
std::vector<Index> with_bias(const AdapterSet<double>& set) {
  std::vector<Index> positions;
  for (Index i = 0; i < set.size(); ++i) {
    if (set[i].bias.size() > 0 || set[i].lora_bias.size() > 0) positions.push_back(i);
  }
  return positions;
}
Index successor(const AdapterSet<double>& set, Index gone) {
  if (set.active() != std::vector<Index>{gone}) return -1;
  Index first = -1;
  for (Index i = 0; i < set.size(); ++i) {
    if (i != gone && (first < 0 || set[i].name() < set[first].name())) first = i;
  }
  return first;
}
void expect_consistent(const AdapterSet<double>& set) {
  for (int i = 0; i < 12; ++i) {
    const std::string name = "a" + std::to_string(i);
    ASSERT_EQ(set.find(name), found(set, name));
  }
  ASSERT_EQ(set.with_bias(), with_bias(set));
  for (Index i = 0; i < set.size(); ++i) ASSERT_EQ(set.successor(i), successor(set, i));
}

TEST(AdapterSet, KnowsNamesAndBiasesThroughAnyChanges) {
  std::mt19937 random(7);
  const auto below = [&](auto n) { return static_cast<Index>(random() % static_cast<unsigned long>(n)); };
  AdapterSet<double> set;
  for (int step = 0; step < 3000; ++step) {
    const std::string name = "a" + std::to_string(below(12));
    const Index i = set.size() == 0 ? -1 : below(set.size());
    switch (below(6)) {
      case 0:
        if (i < 0) break;
        set.erase(i);
        break;
      case 1:
        if (i >= 0) {
          Adapter other = adapter("other", below(2), below(2));
          set.swap(i, other);
        }
        break;
      case 2:
        if (i >= 0) set.replace(i, adapter(set[i].name(), below(2), below(2)));
        break;
      case 3:
        if (i >= 0) set.set_active({i});
        break;
      case 4:
        set = AdapterSet<double>(set);
        break;
      default:
        if (set.find(name) < 0) set.add(adapter(name, below(2), below(2)));
    }
    expect_consistent(set);
    if (HasFatalFailure()) FAIL() << step;
  }
}

// Models adopt and remove adapters where nothing may throw any more.
TEST(AdapterSet, AllocatesOnlyWhereItReserves) {
  AdapterSet<double> set;
  for (int i = 0; i < 20; ++i) {
    auto made = std::make_unique<Adapter>(adapter("a" + std::to_string(i), 2, 2));
    set.reserve_one();
    EXPECT_EQ(allocations_of([&] { set.adopt(std::move(made)); }), 0);
  }
  AdapterSet<double> copy(set);
  Adapter plain = adapter("plain", 0, 0);
  EXPECT_EQ(allocations_of([&] {
              for (int turn = 0; turn < 2; ++turn) copy.swap(3, plain);
              copy.set_active({});
              while (copy.size() > 0) copy.erase(0);
            }),
            0);
}

// A server with thousands of adapters answers a wrong name with a short message.
TEST(AdapterSet, AMessageListsTwentyNames) {
  AdapterSet<double> set;
  for (int i = 0; i < 20; ++i) set.add(adapter("a" + std::to_string(i), 0, 0));
  const auto message = [&] {
    return message_of<ConfigError>([&] { static_cast<void>(set.index_of(Operation{"Layer", "call"}, "b")); });
  };
  EXPECT_NE(message().find("\"a18\" \"a19\", got \"b\""), std::string::npos) << message();
  set.add(adapter("a20", 0, 0));
  EXPECT_NE(message().find("\"a18\" \"a19\" ... (21), got \"b\""), std::string::npos) << message();
}

}  // namespace
}  // namespace lora::adapter_set_test
