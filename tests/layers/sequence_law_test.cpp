// SPDX-License-Identifier: MIT
// Random sequences of calls on one layer, against a model of what must hold after each.
#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <random>
#include <string>

#include "lora/core/error.hpp"
#include "support/bits.hpp"
#include "support/layer_cases.hpp"
#include "support/layer_oracle.hpp"
#include "support/sanitized.hpp"

namespace lora::sequence_law_test {
namespace {

using namespace testing;

LORA_LAYER_LAWS(Sequences);

// What is known of a layer: its adapters by name in order, which are active and merged, and the modes.
struct Model {
  std::map<std::string, LoraConfig> configs;
  Names names, active, merged;
  bool enabled = true;
  bool training = true;
  bool mergeable = true;

  [[nodiscard]] static bool holds(const Names& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  }
  [[nodiscard]] bool dora(const std::string& name) const { return configs.at(name).use_dora; }
  [[nodiscard]] Names working() const { return enabled ? active : Names(); }

  // False: the call throws.
  bool merge(const Names& more) {
    Names all = merged;
    for (const std::string& name : more) {
      if (!holds(all, name)) all.push_back(name);
    }
    if (all.size() == merged.size()) return true;
    if (!enabled || !mergeable) return false;
    if (std::count_if(all.begin(), all.end(), [&](const auto& n) { return dora(n); }) > 1) return false;
    std::stable_partition(all.begin(), all.end(), [&](const auto& n) { return dora(n); });
    merged = all;
    return true;
  }
  void unmerge(const Names& gone) {
    std::erase_if(merged, [&](const auto& n) { return holds(gone, n); });
  }
  bool eval() {
    Names merging;
    for (const std::string& name : working()) {
      if (configs.at(name).merge_weights) merging.push_back(name);
    }
    if (!merging.empty() && mergeable && answers_merged(merging) && !merge(merging)) return false;
    training = false;
    return true;
  }
  // Evaluation merges no adapter with DoRA beside another one, and none beside an active one with DoRA that stays.
  [[nodiscard]] bool answers_merged(Names all) const {
    for (const std::string& name : merged) {
      if (!holds(all, name)) all.push_back(name);
    }
    for (const std::string& name : working()) {
      if (dora(name) && !holds(all, name)) return false;
    }
    return std::count_if(all.begin(), all.end(), [&](const auto& n) { return dora(n); }) < 2;
  }
  void train() {
    std::erase_if(merged, [&](const auto& n) { return configs.at(n).merge_weights; });
    training = true;
  }
  bool set_adapters(const Names& chosen) {
    for (const std::string& name : chosen) {
      if (!holds(names, name)) return false;
    }
    std::erase_if(merged, [&](const auto& n) { return !holds(chosen, n); });
    active = chosen;
    return true;
  }
  bool add(const std::string& name, const LoraConfig& config) {
    if (holds(names, name)) return false;
    if ((config.use_dora || takes_from_weight(config.init_lora_weights)) && !merged.empty()) return false;
    for (const std::string& other : names) {
      if (config.trains_bias() && configs.at(other).trains_bias()) return false;
    }
    configs[name] = config;
    names.push_back(name);
    if (names.size() == 1) active = {name};
    return true;
  }
  bool erase(const std::string& name) {
    if (!holds(names, name) || holds(merged, name)) return false;
    const bool was_active = holds(active, name);
    std::erase(names, name);
    std::erase(active, name);
    if (was_active && active.empty() && !names.empty()) active = {*std::min_element(names.begin(), names.end())};
    return true;
  }
  // Merged ones and working ones, those merged first; false where inference throws.
  bool answering(Names& all) const {
    all = merged;
    for (const std::string& name : working()) {
      if (holds(merged, name)) continue;
      if (dora(name) && !merged.empty()) return false;
      all.push_back(name);
    }
    return true;
  }
};

std::vector<NamedConfig> cast_of(const LayerCase& c) {
  auto all = company_with_dora(c);
  all[2].config.merge_weights = false;
  if (c.starts_from_weight) {
    all[1].config.init_lora_weights = InitLoraWeights::olora;
    all[1].config.use_qalora = false;
  }
  all[1].config.rank = c.rank;
  return all;
}

class Walk {
 public:
  Walk(const LayerCase& c, unsigned seed, bool starts_full)
      : case_(c), random_(seed), cast_(cast_of(c)), layer_(c.make({.rank = 0}, 1)), x_(c.inputs(3, 5)) {
    model_.mergeable = c.mergeable;
    pass_ = layer_->pass(x_);
    pass_->set_dy(c.output_gradient(3, 6));
    if (!starts_full) return;
    layer_ = layer_with(c, cast_);
    pass_ = layer_->pass(x_);
    pass_->set_dy(c.output_gradient(3, 6));
    for (const auto& [name, config] : cast_) model_.add(name, config);
    model_.active = names_of(cast_);
  }

  void run(int steps) {
    for (int i = 0; i < steps && !::testing::Test::HasFailure(); ++i) {
      step();
      check();
    }
  }
  [[nodiscard]] const std::string& story() const { return story_; }

 private:
  Index below(Index n) { return static_cast<Index>(random_() % static_cast<unsigned>(n)); }
  const NamedConfig& any() { return cast_[static_cast<std::size_t>(below(static_cast<Index>(cast_.size())))]; }
  Names some() {
    Names all = model_.names;
    std::shuffle(all.begin(), all.end(), random_);
    all.resize(static_cast<std::size_t>(below(static_cast<Index>(all.size()) + 1)));
    return all;
  }

  // Does the same to the layer and to the model, and compares whether it was refused.
  template <class OnLayer, class OnModel>
  void both(const std::string& call, const OnLayer& on_layer, const OnModel& on_model) {
    story_ += call + "\n";
    Model changed = model_;
    const bool accepted = on_model(changed);
    if (accepted) {
      ASSERT_NO_THROW(on_layer()) << story_;
      model_ = changed;
    } else {
      ASSERT_THROW(on_layer(), Error) << story_;
    }
  }

  void step() {
    const auto text = [](const Names& names) { return ::testing::PrintToString(names); };
    switch (below(14)) {
      case 0:
        return both(
            "train", [&] { layer_->train(); }, [](Model& m) { return m.train(), true; });
      case 1:
        return both(
            "eval", [&] { layer_->eval(); }, [](Model& m) { return m.eval(); });
      case 2:
        return both(
            "merge", [&] { layer_->merge(); }, [](Model& m) { return m.merge(m.active); });
      case 3: {
        const Names names = some();
        return both(
            "merge " + text(names), [&] { layer_->merge(names); }, [&](Model& m) { return m.merge(names); });
      }
      case 4:
        return both(
            "unmerge", [&] { layer_->unmerge(); }, [](Model& m) { return m.merged.clear(), true; });
      case 5: {
        const Names names = some();
        return both(
            "unmerge " + text(names), [&] { layer_->unmerge(names); },
            [&](Model& m) { return m.unmerge(names), true; });
      }
      case 6:
      case 7: {
        Names names = some();
        if (below(6) == 0) names.push_back("nobody");
        return both(
            "set_adapters " + text(names), [&] { layer_->set_adapters(names); },
            [&](Model& m) { return m.set_adapters(names); });
      }
      case 8:
        return both(
            "disable", [&] { layer_->disable(); }, [](Model& m) { return m.enabled = false, m.merged.clear(), true; });
      case 9:
        return both(
            "enable", [&] { layer_->enable(); }, [](Model& m) { return m.enabled = true; });
      case 10:
      case 11: {
        const auto& adapter = any();
        return both(
            "add " + adapter.name,
            [&] {
              layer_->add(adapter.name, adapter.config, 3 + random_() % 5);
              disturb(case_, *layer_, adapter.name, random_() % 9);
            },
            [&](Model& m) { return m.add(adapter.name, adapter.config); });
      }
      case 12: {
        const std::string name = any().name;
        return both(
            "erase " + name, [&] { layer_->erase(name); }, [&](Model& m) { return m.erase(name); });
      }
      default:
        return both(
            "forward and backward",
            [&] {
              pass_->remembered_forward();
              if (model_.training) pass_->remembered_backward();
            },
            [](Model& m) {
              Names unused;
              return m.training ? m.merged.empty() : m.answering(unused);
            });
    }
  }

  void check() {
    ASSERT_EQ(layer_->names(), model_.names) << story_;
    ASSERT_EQ(layer_->active(), model_.active) << story_;
    ASSERT_EQ(layer_->merged_adapters(), model_.merged) << story_;
    ASSERT_EQ(layer_->training(), model_.training) << story_;
    ASSERT_EQ(layer_->enabled(), model_.enabled) << story_;
    ASSERT_TRUE(same_bits(layer_->base_weight(), case_.w0)) << story_;
    ASSERT_EQ(layer_->merge_bytes() == 0, model_.merged.empty()) << story_;
    if (model_.merged.empty()) {
      ASSERT_TRUE(same_bits(layer_->weight(), case_.w0)) << story_;
    }
    Names answering;
    if (!model_.answering(answering)) {
      ASSERT_THROW(static_cast<void>(layer_->infer(x_)), StateError) << story_;
      return;
    }
    auto formula = expected(case_, adapters_of(*layer_, answering), x_, Rows());
    if (!model_.merged.empty()) formula = formula.of_merged();
    ASSERT_TRUE(formula.near(layer_->infer(x_), formula.exact.y, formula.size.y, "y")) << story_;
  }

  const LayerCase& case_;
  std::mt19937 random_;
  std::vector<NamedConfig> cast_;
  std::unique_ptr<AnyLayer> layer_;
  Rows x_;
  std::unique_ptr<LayerPass> pass_;
  Model model_;
  std::string story_;
};

TEST_P(Sequences, OfCallsEndInTheStateThatTheyName) {
  constexpr unsigned walks = testing::sanitized ? 2 : 8;
  for (unsigned seed = 0; seed < walks; ++seed) {
    Walk walk(layer_case(), seed, /*starts_full=*/seed % 2 == 1);
    walk.run(80);
    ASSERT_FALSE(HasFailure()) << "seed " << seed << "\n" << walk.story();
  }
}

}  // namespace
}  // namespace lora::sequence_law_test
