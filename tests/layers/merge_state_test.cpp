#include "lora/layers/merge_state.hpp"

#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

enum class Call { train, eval, train_false, merge, unmerge };
constexpr Call all_calls[] = {Call::train, Call::eval, Call::train_false, Call::merge, Call::unmerge};

// A layer whose weight is a number, which merging raises by one.
class CountingLayer : public lora::MergeState<CountingLayer> {
 public:
  explicit CountingLayer(bool merge_weights) : merge_weights_(merge_weights) {}

  bool merge_fails = false;
  int weight = 0;
  int merges = 0;

  CountingLayer& call(Call call) {
    switch (call) {
      case Call::train:
        return train();
      case Call::eval:
        return eval();
      case Call::train_false:
        return train(false);
      case Call::merge:
        return merge();
      case Call::unmerge:
        return unmerge();
    }
    throw std::logic_error("no such call");
  }

  [[nodiscard]] bool flag() const { return *merged_flag(); }

 private:
  friend class lora::MergeState<CountingLayer>;

  void apply_merge() {
    if (merge_fails) throw std::runtime_error("a non-finite update");
    EXPECT_EQ(weight, 0) << "merged twice";
    ++weight;
    ++merges;
  }
  void apply_unmerge() noexcept {
    EXPECT_EQ(weight, 1) << "unmerged twice";
    --weight;
  }
  [[nodiscard]] bool merges_weights() const { return merge_weights_; }

  bool merge_weights_;
};

struct State {
  bool training;
  bool merged;
  bool operator==(const State&) const = default;
};

State state_of(const CountingLayer& layer) { return {layer.training(), layer.merged()}; }

bool is_mode(Call call) { return call == Call::train || call == Call::eval || call == Call::train_false; }

// What the last call that names a mode, and the last that names a state of the weight, say.
State named_by(const std::vector<Call>& calls, bool merge_weights) {
  State state{true, false};
  for (const Call call : calls) {
    if (is_mode(call)) state.training = call == Call::train;
    if (!is_mode(call) || merge_weights) state.merged = call != Call::train && call != Call::unmerge;
  }
  return state;
}

std::string text_of(const std::vector<Call>& calls) {
  static const char* const names[] = {"train", "eval", "train(false)", "merge", "unmerge"};
  std::string text;
  for (const Call call : calls) text += std::string(names[static_cast<int>(call)]) + " ";
  return text;
}

// Calls body with every sequence of `length` calls.
template <class Body>
void for_each_sequence(std::size_t length, const Body& body, std::vector<Call> calls = {}) {
  if (calls.size() == length) return body(calls);
  for (const Call call : all_calls) {
    calls.push_back(call);
    for_each_sequence(length, body, calls);
    calls.pop_back();
  }
}

TEST(MergeState, StartsInTrainingUnmerged) {
  for (const bool merge_weights : {true, false}) {
    const CountingLayer layer(merge_weights);
    EXPECT_EQ(state_of(layer), (State{true, false}));
    EXPECT_EQ(layer.merges, 0);
  }
}

TEST(MergeState, AnySequenceOfUpToFiveCallsEndsInTheStateItsLastCallsName) {
  for (const bool merge_weights : {true, false}) {
    for (std::size_t length = 1; length <= 5; ++length) {
      for_each_sequence(length, [&](const std::vector<Call>& calls) {
        CountingLayer layer(merge_weights);
        for (const Call call : calls) layer.call(call);
        ASSERT_EQ(state_of(layer), named_by(calls, merge_weights)) << text_of(calls) << merge_weights;
        ASSERT_EQ(layer.weight, layer.merged() ? 1 : 0) << text_of(calls);
        ASSERT_EQ(layer.flag(), layer.merged());
      });
    }
  }
}

TEST(MergeState, EveryCallIsIdempotent) {
  for (const bool merge_weights : {true, false}) {
    for (std::size_t length = 0; length <= 3; ++length) {
      for_each_sequence(length, [&](const std::vector<Call>& calls) {
        for (const Call last : all_calls) {
          CountingLayer layer(merge_weights);
          for (const Call call : calls) layer.call(call);
          layer.call(last);
          const State once = state_of(layer);
          const int merges = layer.merges;
          layer.call(last);
          ASSERT_EQ(state_of(layer), once) << text_of(calls);
          ASSERT_EQ(layer.merges, merges) << text_of(calls);
        }
      });
    }
  }
}

TEST(MergeState, WithMergeWeightsEvalMergesAndTrainUnmerges) {
  CountingLayer layer(true);
  EXPECT_EQ(state_of(layer.eval()), (State{false, true}));
  EXPECT_EQ(state_of(layer.train()), (State{true, false}));
  EXPECT_EQ(state_of(layer.merge()), (State{true, true}));
  EXPECT_EQ(state_of(layer.eval()), (State{false, true}));
  EXPECT_EQ(state_of(layer.unmerge()), (State{false, false}));
}

TEST(MergeState, WithoutMergeWeightsModesLeaveTheWeightAlone) {
  CountingLayer layer(false);
  EXPECT_EQ(state_of(layer.eval()), (State{false, false}));
  EXPECT_EQ(state_of(layer.merge()), (State{false, true}));
  EXPECT_EQ(state_of(layer.train()), (State{true, true}));
  EXPECT_EQ(state_of(layer.unmerge()), (State{true, false}));
  EXPECT_EQ(layer.merges, 1);
}

TEST(MergeState, EveryCallReturnsTheLayer) {
  for (const Call call : all_calls) {
    CountingLayer layer(true);
    EXPECT_EQ(&layer.call(call), &layer);
  }
}

// From every reachable state, a call that would merge and cannot changes neither mode nor weight.
TEST(MergeState, AMergeThatThrowsChangesNothing) {
  for (const bool merge_weights : {true, false}) {
    for (std::size_t length = 0; length <= 3; ++length) {
      for_each_sequence(length, [&](const std::vector<Call>& calls) {
        for (const Call last : all_calls) {
          CountingLayer layer(merge_weights);
          for (const Call call : calls) layer.call(call);
          const State before = state_of(layer);
          const bool wants_merge = last == Call::merge || (merge_weights && is_mode(last) && last != Call::train);
          layer.merge_fails = true;
          if (wants_merge && !before.merged) {
            ASSERT_THROW(layer.call(last), std::runtime_error) << text_of(calls);
            ASSERT_EQ(state_of(layer), before) << text_of(calls);
          } else {
            ASSERT_NO_THROW(layer.call(last)) << text_of(calls);
          }
          layer.merge_fails = false;
          layer.call(last);
          auto all = calls;
          all.push_back(last);
          ASSERT_EQ(state_of(layer), named_by(all, merge_weights)) << text_of(all);
        }
      });
    }
  }
}

TEST(MergeState, UnmergeDoesNotThrow) {
  EXPECT_TRUE(noexcept(std::declval<CountingLayer&>().unmerge()));
  EXPECT_FALSE(noexcept(std::declval<CountingLayer&>().merge()));
}

TEST(MergeState, TheFlagFollowsTheLayer) {
  CountingLayer layer(true);
  layer.eval();
  CountingLayer copy = layer;
  copy.train();
  EXPECT_TRUE(layer.flag());
  EXPECT_FALSE(copy.flag());
}

}  // namespace
