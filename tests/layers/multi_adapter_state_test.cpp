// Which adapters are active, merged or gone: random sequences of calls against a model, and everything that is refused.
#include "lora/layers/multi_adapter_state.hpp"

#include <algorithm>
#include <cstdlib>
#include <gtest/gtest.h>
#include <limits>
#include <rapidcheck/gtest.h>
#include <string>
#include <vector>

#include "layers/multi_linear_kinds.hpp"
#include "lora/optim/adamw.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora {
namespace {

using testing::random_config;
using testing::random_matrix;
using testing::random_vector;
using testing::same_bits;
using Names = std::vector<std::string>;

constexpr Index d = 9, k = 17;

// rapidcheck would seed itself from the clock. RC_PARAMS in the environment still chooses another seed.
[[maybe_unused]] const int seeded = ::setenv("RC_PARAMS", "seed=20210617", 0);

// Denormal, signed zero and tiny elements, which updates swallow.
template <class Scalar>
Matrix<Scalar> delicate_weight() {
  using Limits = std::numeric_limits<Scalar>;
  auto w = random_matrix<Scalar>(d, k, 1);
  w(0, 0) = Limits::denorm_min();
  w(3, 4) = Scalar(-0.0);
  w(8, 16) = Limits::min() / 2;
  return w;
}

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// What the calls say about a layer, without the tricks.
template <class Scalar>
struct Model {
  Matrix<Scalar> w0;
  std::vector<std::pair<std::string, Matrix<Scalar>>> deltas;
  Names active, merged;
  bool enabled = true;
  bool training = true;

  [[nodiscard]] const Matrix<Scalar>& delta(const std::string& name) const {
    return std::find_if(deltas.begin(), deltas.end(), [&](const auto& entry) { return entry.first == name; })->second;
  }
  void merge(const Names& names) {
    for (const auto& name : names) {
      if (!contains(merged, name)) merged.push_back(name);
    }
  }
  template <class Leaves>
  void unmerge_if(const Leaves& leaves) {
    std::erase_if(merged, leaves);
  }
  /// (((W0 + delta) + delta) + ...) in the order of merging.
  [[nodiscard]] Matrix<Scalar> weight() const {
    Matrix<Scalar> w = w0;
    for (const auto& name : merged) w += delta(name);
    return w;
  }
};

// "heavy" dwarfs the weight, so that merging it keeps a copy; "explicit_only" is not for train() and eval().
template <class Layer>
void add_adapters(Layer& layer) {
  layer.add_adapter("light", random_config(2), 1);
  LoraConfig heavy = random_config(3);
  heavy.alpha = 1e5;
  layer.add_adapter("heavy", heavy, 2);
  LoraConfig explicit_only = random_config(1);
  explicit_only.merge_weights = false;
  layer.add_adapter("explicit_only", explicit_only, 3);
  layer.add_adapter("wide", random_config(7), 4);
}

Names a_choice_of(const Names& from) {
  Names chosen;
  for (const auto& name : from) {
    if (*rc::gen::inRange(0, 2) == 1) chosen.push_back(name);
  }
  const auto turn = *rc::gen::inRange<std::size_t>(0, chosen.size() + 1);
  std::rotate(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(turn), chosen.end());
  return chosen;
}

template <class Layer, class Scalar>
void one_call(Layer& layer, Model<Scalar>& model) {
  const Names all = layer.adapter_names();
  switch (*rc::gen::inRange(0, 9)) {
    case 0: {
      const Names names = a_choice_of(all);
      if (!model.enabled && !names.empty()) {
        RC_ASSERT_THROWS_AS(layer.merge(names), StateError);
      } else {
        layer.merge(names);
        model.merge(names);
      }
      break;
    }
    case 1: {
      const Names names = a_choice_of(all);
      layer.unmerge(names);
      model.unmerge_if([&](const auto& name) { return contains(names, name); });
      break;
    }
    case 2: {
      const Names names = a_choice_of(all);
      layer.set_adapters(names);
      model.unmerge_if([&](const auto& name) { return !contains(names, name); });
      model.active = names;
      break;
    }
    case 3:
      if (!model.enabled) break;
      layer.merge();
      model.merge(model.active);
      break;
    case 4:
      layer.unmerge();
      model.merged.clear();
      break;
    case 5:
      layer.train();
      model.unmerge_if([](const auto& name) { return name != "explicit_only"; });
      model.training = true;
      break;
    case 6: {
      layer.eval();
      Names merging = model.enabled ? model.active : Names{};
      std::erase(merging, "explicit_only");
      model.merge(merging);
      model.training = false;
      break;
    }
    case 7:
      layer.disable_adapters();
      model.merged.clear();
      model.enabled = false;
      break;
    default:
      layer.enable_adapters();
      model.enabled = true;
  }
}

template <class Kind>
class MultiLinearState : public ::testing::Test {};
TYPED_TEST_SUITE(MultiLinearState, testing::LayerKinds, testing::LayerKindNames);

TYPED_TEST(MultiLinearState, AnySequenceOfCallsLeavesExactlyWhatItNames) {
  using Scalar = typename TypeParam::Scalar;
  const auto x = random_matrix<Scalar>(3, k, 5);
  EXPECT_TRUE(rc::check([&] {
    const bool fan_in_fan_out = *rc::gen::arbitrary<bool>();
    testing::MultiLayerUnderTest<TypeParam> made(delicate_weight<Scalar>(), {}, fan_in_fan_out);
    auto& layer = made.layer();
    add_adapters(layer);
    Model<Scalar> model;
    model.w0 = layer.weight();
    for (const auto& name : layer.adapter_names()) model.deltas.emplace_back(name, layer.delta_weight(name));
    model.active = {"light"};
    const int calls = *rc::gen::inRange(1, 12);
    for (int call = 0; call < calls; ++call) {
      one_call(layer, model);
      RC_ASSERT(layer.merged_adapters() == model.merged);
      RC_ASSERT(layer.active_adapters() == model.active);
      RC_ASSERT(layer.adapters_enabled() == model.enabled);
      RC_ASSERT(layer.training() == model.training);
      RC_ASSERT(layer.merged() == !model.merged.empty());
      RC_ASSERT(static_cast<bool>(same_bits(layer.weight(), model.weight())));
      RC_ASSERT(static_cast<bool>(same_bits(layer.base_weight(), model.w0)));
      RC_ASSERT(model.merged.empty() == (layer.merge_bytes() == 0));
    }
    // The answer is that of a fresh layer whose weight is the merged one and that adds what is active and not merged.
    Matrix<Scalar> merged = layer.weight();
    if (fan_in_fan_out) merged.transposeInPlace();
    testing::MultiLayerUnderTest<TypeParam> fresh(merged, {}, fan_in_fan_out);
    add_adapters(fresh.layer());
    Names added = model.enabled ? model.active : Names{};
    std::erase_if(added, [&](const auto& name) { return contains(model.merged, name); });
    fresh.layer().set_adapters(added);
    RC_ASSERT(static_cast<bool>(same_bits(layer.infer(x), fresh.layer().infer(x))));
    layer.unmerge();
    RC_ASSERT(static_cast<bool>(same_bits(layer.weight(), model.w0)));
  }));
}

TYPED_TEST(MultiLinearState, ManyCyclesOfInnerUnmergingRestoreEveryBit) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(delicate_weight<Scalar>(), {});
  auto& layer = made.layer();
  add_adapters(layer);
  for (int cycle = 0; cycle < 500; ++cycle) {
    layer.merge({"light", "heavy", "wide"}).unmerge({"light"}).merge({"light"}).unmerge({"heavy"}).unmerge({"light"});
    layer.unmerge({"wide"});
  }
  EXPECT_FALSE(layer.merged());
  EXPECT_TRUE(same_bits(layer.weight(), delicate_weight<Scalar>()));
}

TYPED_TEST(MultiLinearState, MergingIsAtomicOverTheSubset) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(delicate_weight<Scalar>(), {});
  auto& layer = made.layer();
  add_adapters(layer);
  Matrix<Scalar> b = layer.adapter("wide").B();
  b(8, 1) = std::numeric_limits<Scalar>::quiet_NaN();
  layer.set_factors("wide", layer.adapter("wide").A(), b);
  layer.merge({"explicit_only"});
  const Matrix<Scalar> before = layer.weight();
  try {
    layer.merge({"light", "heavy", "wide"});
    ADD_FAILURE() << "merged a NaN";
  } catch (const StateError& error) {
    EXPECT_NE(std::string(error.what()).find("merge of \"wide\""), std::string::npos) << error.what();
  }
  EXPECT_EQ(layer.merged_adapters(), Names{"explicit_only"});
  EXPECT_TRUE(same_bits(layer.weight(), before));
  layer.set_adapters({"explicit_only", "wide"});
  EXPECT_THROW(layer.eval(), StateError);
  EXPECT_TRUE(layer.training());
  EXPECT_EQ(layer.merged_adapters(), Names{"explicit_only"});
  layer.set_factors("light", layer.adapter("light").A(), layer.adapter("light").B());
}

// W0 + delta + back is finite where W0 + back is not: the one way in which merging the rest again can fail but for want
// of memory.
TYPED_TEST(MultiLinearState, WhenTheRestCannotBeMergedAgainTheLayerSaysWhatIsLeft) {
  using Scalar = typename TypeParam::Scalar;
  const Scalar large = std::numeric_limits<Scalar>::max() / 4 * 3;
  const Matrix<Scalar> w = Matrix<Scalar>::Constant(2, 3, large);
  testing::MultiLayerUnderTest<TypeParam> made(w, {});
  auto& layer = made.layer();
  const auto add_constant = [&](const char* name, Scalar value) {
    LoraConfig config = random_config(1);
    config.alpha = 1;
    layer.add_adapter(name, config, 1);
    layer.set_factors(name, Matrix<Scalar>::Ones(1, 3), Matrix<Scalar>::Constant(2, 1, value));
  };
  add_constant("small", 1);
  add_constant("down", -large);
  add_constant("up", large);
  add_constant("above", 1);
  layer.merge({"small", "down", "up", "above"});
  EXPECT_THROW(layer.unmerge({"down"}), StateError);
  EXPECT_EQ(layer.merged_adapters(), Names{"small"});
  EXPECT_TRUE(same_bits(layer.weight(), w));  // 1 is far below the last place
  layer.set_factors("up", layer.adapter("up").A(), layer.adapter("up").B());
  EXPECT_THROW(layer.set_factors("small", layer.adapter("small").A(), layer.adapter("small").B()), StateError);
  EXPECT_TRUE(same_bits(layer.unmerge().weight(), w));
}

TYPED_TEST(MultiLinearState, WhileMergedNothingItWasMergedFromChanges) {
  using Scalar = typename TypeParam::Scalar;
  testing::MultiLayerUnderTest<TypeParam> made(delicate_weight<Scalar>(), random_vector<Scalar>(d, 2));
  auto& layer = made.layer();
  LoraConfig config = random_config(2);
  config.lora_bias = true;
  layer.add_adapter("merged", config, 1);
  layer.add_adapter("free", config, 2);
  const auto x = random_matrix<Scalar>(3, k, 3);
  const Matrix<Scalar> dy = layer.forward(x);
  auto handles = layer.parameters();
  AdamW<Scalar> optimizer;
  MultiLoraRecord<Scalar> record;
  Workspace workspace;
  Matrix<Scalar> y(3, d);
  auto gradients = layer.make_gradients();
  layer.forward(x, record, y, workspace);
  LoraAdapter<Scalar> other("test", k, d, config, 9);
  const Matrix<Scalar> other_a = other.A();
  layer.merge({"merged"});
  const auto& adapter = layer.adapter("merged");
  EXPECT_THROW(layer.set_factors("merged", adapter.A(), adapter.B()), StateError);
  EXPECT_THROW(layer.set_lora_bias("merged", adapter.lora_bias()), StateError);
  EXPECT_THROW(layer.set_scale("merged", 2), StateError);
  EXPECT_THROW(layer.scale_layer(2), StateError);
  EXPECT_THROW(layer.unscale_layer(), StateError);
  EXPECT_THROW(layer.swap_adapter("merged", other), StateError);
  EXPECT_TRUE(same_bits(other.A(), other_a));
  EXPECT_THROW(layer.delete_adapter("merged"), StateError);
  EXPECT_THROW((void)layer.forward(x), StateError);
  EXPECT_THROW(layer.forward(x, record, y, workspace), StateError);
  EXPECT_THROW((void)layer.backward(dy), StateError);
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), StateError);
  EXPECT_THROW(layer.accumulate_gradients(dy), StateError);
  EXPECT_THROW(optimizer.step(handles), StateError);
  EXPECT_THROW((void)layer.infer(x, Names(3, "free")), StateError);
  EXPECT_EQ(layer.scale("merged"), 1);
  layer.set_scale("free", 2);
  layer.swap_adapter("free", other);
  layer.delete_adapter("free");
  try {
    layer.set_scale("merged", 2);
  } catch (const StateError& error) {
    EXPECT_STREQ(error.what(),
                 "MultiLoraLinear::set_scale: adapter \"merged\": expected an unmerged adapter (call unmerge() first), "
                 "got a merged one");
  }
  EXPECT_TRUE(same_bits(layer.unmerge().weight(), delicate_weight<Scalar>()));
  optimizer.step(handles);
}

using Layer = MultiLoraLinear<double>;

Layer layer_of(const Names& names) {
  Layer layer(random_matrix<double>(d, k, 1));
  for (const auto& name : names) layer.add_adapter(name, random_config(2), 1);
  return layer;
}

TEST(MultiLinearAdapters, TheFirstBecomesActiveAndLaterOnesDoNot) {
  Layer layer = layer_of({"b", "a"});
  EXPECT_EQ(layer.adapter_names(), (Names{"b", "a"}));
  EXPECT_EQ(layer.active_adapters(), Names{"b"});
  EXPECT_TRUE(layer.has_adapter("a"));
  EXPECT_FALSE(layer.has_adapter("c"));
  EXPECT_EQ(layer.adapter_index("a"), 1);
  layer.set_adapters({});
  layer.add_adapter("c", random_config(2), 1);
  EXPECT_EQ(layer.active_adapters(), Names{});
}

TEST(MultiLinearAdapters, DeletingTheLastActiveOneActivatesTheFirstInTheAlphabet) {
  Layer layer = layer_of({"c", "b", "a"});
  layer.set_adapters({"a", "c"});
  layer.delete_adapter("c");
  EXPECT_EQ(layer.active_adapters(), Names{"a"});
  layer.add_adapter("Z", random_config(2), 1);
  layer.delete_adapter("a");
  EXPECT_EQ(layer.active_adapters(), Names{"Z"});
  layer.delete_adapter("b");
  EXPECT_EQ(layer.active_adapters(), Names{"Z"});
  layer.delete_adapter("Z");
  EXPECT_EQ(layer.active_adapters(), Names{});
  EXPECT_EQ(layer.adapter_names(), Names{});
  layer.add_adapter("again", random_config(2), 1);
  EXPECT_EQ(layer.active_adapters(), Names{"again"});
}

TEST(MultiLinearAdapters, DeletingTakesNothingFromTheOthers) {
  Layer layer = layer_of({"a", "b", "c"});
  layer.set_adapters({"c", "b"});
  auto handles = layer.parameters();
  const Matrix<double> expected = layer.infer(random_matrix<double>(2, k, 3));
  layer.merge({"c"});
  layer.delete_adapter("a");
  EXPECT_EQ(layer.merged_adapters(), Names{"c"});
  layer.unmerge();
  EXPECT_TRUE(same_bits(layer.infer(random_matrix<double>(2, k, 3)), expected));
  for (auto& handle : handles) EXPECT_EQ(handle.value().size(), handle.size());
}

TEST(MultiLinearAdapters, ScalesMultiplyTheAdaptersOwnScaling) {
  Layer layer = layer_of({"a", "b"});
  LoraConfig stabilised = random_config(4);
  stabilised.use_rslora = true;
  layer.add_adapter("s", stabilised, 1);
  EXPECT_EQ(layer.scaling("a"), 1.0);
  layer.set_scale("a", 0.25);
  layer.set_scale("s", 3);
  EXPECT_EQ(layer.scaling("a"), 0.25);
  EXPECT_EQ(layer.scaling("s"), 3.0);  // 3 * 2 / sqrt(4)
  layer.set_adapters({"a", "s"});
  layer.scale_layer(2);
  EXPECT_EQ(layer.scaling("a"), 0.5);
  EXPECT_EQ(layer.scaling("s"), 6.0);
  EXPECT_EQ(layer.scaling("b"), 1.0);
  layer.unscale_layer(4);
  EXPECT_EQ(layer.scale("a"), 0.125);
  layer.unscale_layer();
  EXPECT_EQ(layer.scaling("a"), 1.0);
  EXPECT_EQ(layer.scaling("s"), 1.0);
  EXPECT_EQ(layer.adapter("a").config().alpha, 2.0);
  layer.set_scale("a", -2);
  EXPECT_TRUE(layer.delta_weight("a").isApprox(-2 * (layer.adapter("a").B() * layer.adapter("a").A())));
}

TEST(MultiLinearAdapters, ARefusedScaleChangesNoAdapter) {
  Layer layer = layer_of({"a", "b"});
  layer.set_adapters({"a", "b"});
  layer.set_scale("b", 0);
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  constexpr double infinity = std::numeric_limits<double>::infinity();
  EXPECT_THROW(layer.set_scale("a", nan), ConfigError);
  EXPECT_THROW(layer.set_scale("a", infinity), ConfigError);
  EXPECT_THROW(layer.scale_layer(nan), ConfigError);
  EXPECT_THROW(layer.unscale_layer(0), ConfigError);
  layer.set_scale("b", 1e300);
  EXPECT_THROW(layer.scale_layer(1e10), ConfigError);
  EXPECT_EQ(layer.scale("a"), 1);
  EXPECT_EQ(layer.scale("b"), 1e300);
}

TEST(MultiLinearAdapters, SwappingExchangesTheAdapterAndStartsAnew) {
  Layer layer = layer_of({"a", "b"});
  const auto x = random_matrix<double>(3, k, 3);
  LoraAdapter<double> fresh("test", k, d, random_config(5), 77);
  const Matrix<double> fresh_a = fresh.A();
  const Matrix<double> old_a = layer.adapter("a").A();
  layer.set_scale("a", 3);
  MultiLoraRecord<double> record;
  Workspace workspace;
  Matrix<double> y(3, d);
  layer.forward(x, record, y, workspace);
  layer.swap_adapter("a", fresh);
  EXPECT_TRUE(same_bits(layer.adapter("a").A(), fresh_a));
  EXPECT_TRUE(same_bits(fresh.A(), old_a));
  EXPECT_EQ(layer.scale("a"), 1);
  EXPECT_EQ(layer.scaling("a"), 2.0 / 5);
  EXPECT_EQ(layer.parameters()[0].rows(), 5);
  auto gradients = layer.make_gradients();
  EXPECT_THROW(layer.backward(x, record, y, gradients, workspace), StateError);
  layer.swap_adapter("a", fresh);
  EXPECT_TRUE(same_bits(layer.adapter("a").A(), old_a));
}

// Of the same shape, so that nothing but its identity tells that the pass was another adapter's.
TEST(MultiLinearAdapters, ARecordIsNotThatOfAnAdapterSwappedInLater) {
  Layer layer = layer_of({"a"});
  const auto x = random_matrix<double>(3, k, 3);
  MultiLoraRecord<double> record;
  Workspace workspace;
  Matrix<double> y(3, d);
  auto gradients = layer.make_gradients();
  layer.forward(x, record, y, workspace);
  LoraAdapter<double> twin("test", k, d, random_config(2), 77);
  layer.swap_adapter("a", twin);
  EXPECT_THROW(layer.backward(x, record, y, gradients, workspace), StateError);
  layer.forward(x, record, y, workspace);
  layer.backward(x, record, y, gradients, workspace);
}

TEST(MultiLinearAdapters, CopiesAreIndependentAlsoWhileMerged) {
  Layer layer = layer_of({"a", "b", "c"});
  const Matrix<double> w = layer.weight();
  layer.merge({"a", "b"});
  Layer copy = layer;
  const Matrix<double> merged = layer.weight();
  layer.unmerge();
  layer.set_scale("b", 2);
  layer.delete_adapter("a");
  EXPECT_TRUE(same_bits(copy.weight(), merged));
  copy.unmerge({"a"}).unmerge();
  EXPECT_TRUE(same_bits(copy.weight(), w));
  EXPECT_EQ(copy.scale("b"), 1);
  Layer moved = std::move(copy);
  EXPECT_EQ(moved.adapter_names(), (Names{"a", "b", "c"}));
}

TEST(MultiLinearAdapters, NamesAndConfigurationsThatCannotBeAreRefused) {
  Layer layer = layer_of({"a"});
  const auto refused = [&](const char* name, const LoraConfig& config) {
    EXPECT_THROW(layer.add_adapter(name, config, 1), ConfigError);
    EXPECT_EQ(layer.adapter_names(), Names{"a"});
    EXPECT_EQ(layer.active_adapters(), Names{"a"});
  };
  for (const char* name : {"", "a.b", "__base__", "a"}) refused(name, random_config(2));
  refused("b", random_config(0));
  refused("b", random_config(-1));
  refused("b", random_config(2, 1.0));
  LoraConfig config = random_config(2);
  config.init_lora_weights = InitLoraWeights::pissa;
  refused("b", config);
  LoraAdapter<double> adapter("test", k, d, random_config(0), 1);
  EXPECT_THROW(layer.swap_adapter("a", adapter), ConfigError);
  LoraAdapter<double> wide("test", k + 1, d, random_config(2), 1);
  EXPECT_THROW(layer.swap_adapter("a", wide), ShapeError);
  LoraAdapter<double> tall("test", k, d + 1, random_config(2), 1);
  EXPECT_THROW(layer.swap_adapter("a", tall), ShapeError);
}

TEST(MultiLinearAdapters, AReadOnlyWeightIsReadAndNeverMerged) {
  const auto w = random_matrix<double>(d, k, 1);
  MultiLoraLinear<double, DenseWeight<double>> layer(DenseWeight<double>(view_of(w)));
  layer.add_adapter("a", random_config(2), 1);
  EXPECT_EQ(layer.infer(random_matrix<double>(3, k, 3)).rows(), 3);
  EXPECT_THROW(layer.merge(), StateError);
  EXPECT_FALSE(layer.merged());
  EXPECT_FALSE(layer.unmerge().merged());
}

TEST(MultiLinearAdapters, OnlyOneAdapterTrainsTheBias) {
  Layer layer(random_matrix<double>(d, k, 1), random_vector<double>(d, 2));
  LoraConfig config = random_config(2);
  config.bias = BiasMode::all;
  layer.add_adapter("a", config, 1);
  EXPECT_THROW(layer.add_adapter("b", config, 1), ConfigError);
  layer.add_adapter("b", random_config(2), 1);
  LoraAdapter<double> other("test", k, d, config, 1);
  EXPECT_THROW(layer.swap_adapter("b", other), ConfigError);
  layer.swap_adapter("a", other);
}

TEST(MultiLinearAdapters, TheOrientationIsTheLayers) {
  Layer layer(random_matrix<double>(k, d, 1), true);
  layer.add_adapter("a", random_config(2), 1);
  EXPECT_TRUE(layer.adapter("a").config().fan_in_fan_out);
  EXPECT_EQ(layer.delta_weight("a").rows(), k);
  EXPECT_EQ(layer.in_features(), k);
}

TEST(MultiLinearAdapters, UnknownNamesAreRefusedEverywhere) {
  Layer layer = layer_of({"a", "b"});
  LoraAdapter<double> other("test", k, d, random_config(2), 1);
  EXPECT_THROW(layer.delete_adapter("x"), ConfigError);
  EXPECT_THROW(layer.set_adapter("x"), ConfigError);
  EXPECT_THROW(layer.set_adapters({"a", "x"}), ConfigError);
  EXPECT_THROW(layer.set_adapters({"a", "a"}), ConfigError);
  EXPECT_THROW(layer.merge({"a", "x"}), ConfigError);
  EXPECT_THROW(layer.unmerge({"x"}), ConfigError);
  EXPECT_THROW((void)layer.adapter_index("x"), ConfigError);
  EXPECT_THROW((void)layer.adapter("x"), ConfigError);
  EXPECT_THROW((void)layer.scaling("x"), ConfigError);
  EXPECT_THROW((void)layer.scale("x"), ConfigError);
  EXPECT_THROW((void)layer.delta_weight("x"), ConfigError);
  EXPECT_THROW((void)layer.gradients("x"), ConfigError);
  EXPECT_THROW(layer.set_scale("x", 1), ConfigError);
  EXPECT_THROW(layer.set_lora_bias("x", RowVector<double>(0)), ConfigError);
  EXPECT_THROW(layer.set_factors("x", other.A(), other.B()), ConfigError);
  EXPECT_THROW(layer.swap_adapter("x", other), ConfigError);
  EXPECT_EQ(layer.active_adapters(), Names{"a"});
  EXPECT_FALSE(layer.merged());
  try {
    layer.set_adapter("x");
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "MultiLoraLinear::set_adapters: adapter: expected one of \"a\" \"b\", got \"x\"");
  }
}

TEST(MultiLinearAdapters, ShapesAreChecked) {
  EXPECT_THROW(Layer(Matrix<double>(0, 3)), ShapeError);
  EXPECT_THROW(Layer(random_matrix<double>(d, k, 1), random_vector<double>(d + 1, 2)), ShapeError);
  Layer layer = layer_of({"a"});
  const Matrix<double> a = layer.adapter("a").A();
  EXPECT_THROW(layer.set_factors("a", random_matrix<double>(3, k, 1), random_matrix<double>(d, 3, 1)), ShapeError);
  EXPECT_THROW(layer.set_factors("a", random_matrix<double>(2, k, 1), random_matrix<double>(d + 1, 2, 1)), ShapeError);
  EXPECT_TRUE(same_bits(layer.adapter("a").A(), a));
  EXPECT_THROW(layer.set_lora_bias("a", random_vector<double>(d, 1)), ShapeError);
  EXPECT_THROW((void)layer.infer(random_matrix<double>(2, k + 1, 1)), ShapeError);
  EXPECT_THROW((void)layer.forward(random_matrix<double>(2, k + 1, 1)), ShapeError);
  Workspace workspace;
  Matrix<double> y(3, d);
  EXPECT_THROW(layer.infer(random_matrix<double>(2, k, 1), y, workspace), ShapeError);
  Matrix<double> both(2, k + d);
  EXPECT_THROW(layer.infer(both.leftCols(k), both.rightCols(d), workspace), ShapeError);
}

TEST(MultiLinearAdapters, BackwardChecksEverythingBeforeItAdds) {
  Layer layer = layer_of({"a", "b"});
  layer.set_adapters({"a", "b"});
  const auto x = random_matrix<double>(3, k, 3);
  const auto dy = random_matrix<double>(3, d, 4);
  MultiLoraRecord<double> record;
  Workspace workspace;
  Matrix<double> y(3, d);
  auto gradients = layer.make_gradients();
  EXPECT_THROW((void)layer.backward(dy), StateError);
  EXPECT_THROW(layer.accumulate_gradients(dy), StateError);
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), StateError);
  layer.forward(x, record, y, workspace);
  EXPECT_THROW(layer.backward(random_matrix<double>(2, k, 1), record, dy, gradients, workspace), ShapeError);
  EXPECT_THROW(layer.backward(x, record, random_matrix<double>(3, d + 1, 1), gradients, workspace), ShapeError);
  Matrix<double> dx(3, k + 1);
  EXPECT_THROW(layer.backward(x, record, dy, gradients, dx, workspace), ShapeError);
  Matrix<double> both(3, d + k);
  EXPECT_THROW(layer.backward(x, record, both.leftCols(d), gradients, both.rightCols(k), workspace), ShapeError);
  auto one = gradients;
  one.adapters.pop_back();
  EXPECT_THROW(layer.backward(x, record, dy, one, workspace), ShapeError);
  auto wrong = gradients;
  wrong.adapters[1].B.resize(d, 3);
  EXPECT_THROW(layer.backward(x, record, dy, wrong, workspace), ShapeError);
  for (const auto& g : gradients.adapters) EXPECT_TRUE(g.A.isZero(0) && g.B.isZero(0));
  EXPECT_TRUE(wrong.adapters[0].A.isZero(0));
  layer.set_adapters({"b", "a"});
  EXPECT_THROW(layer.backward(x, record, dy, gradients, workspace), StateError);
  layer.set_adapters({"a"});
  EXPECT_THROW(layer.backward(x, record, dy, one, workspace), StateError);
  layer.disable_adapters();
  MultiLoraGradients<double> none;
  EXPECT_THROW(layer.backward(x, record, dy, none, workspace), StateError);
}

TEST(MultiLinearAdapters, DropoutAdvancesAndReplaysForAllAdaptersTogether) {
  Layer layer(random_matrix<double>(d, k, 1));
  layer.add_adapter("a", random_config(2, 0.5), 1);
  layer.add_adapter("b", random_config(2, 0.5), 2);
  layer.set_adapters({"a", "b"});
  const auto x = random_matrix<double>(3, k, 3);
  const Matrix<double> first = layer.forward(x);
  const Matrix<double> second = layer.forward(x);
  EXPECT_FALSE(same_bits(first, second));
  EXPECT_EQ(layer.dropout_step(), 2U);
  layer.set_dropout_step(0);
  EXPECT_TRUE(same_bits(layer.forward(x), first));
  layer.set_adapters({"a", "b"}).unmerge();
  layer.train(false);
  EXPECT_FALSE(layer.training());
  EXPECT_EQ(layer.merged_adapters(), (Names{"a", "b"}));
  EXPECT_TRUE(same_bits(layer.forward(x), layer.infer(x)));
  EXPECT_EQ(layer.dropout_step(), 1U);
}

}  // namespace
}  // namespace lora
