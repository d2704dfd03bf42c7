// SPDX-License-Identifier: MIT
// Random sequences of everything a model can be asked for, against a map of names to factors and dense formulas.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "lora/model/lora_model.hpp"
#include "support/bits.hpp"
#include "support/model_network.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::lora_model_sequences_test {
namespace {

using Names = std::vector<std::string>;

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const std::vector<LoraModelConfig> configs = {
    {.lora = {.rank = 2, .alpha = 3}, .target_modules = {"embed", "qkv", "out", "gate"}},
    {.lora = {.rank = 2, .alpha = 3, .use_dora = true}, .target_modules = {"embed", "out"}},
    {.lora = {.rank = 3, .alpha = 2, .lora_bias = true, .bias = BiasMode::lora_only}, .target_modules = {"qkv", "out"}},
    {.lora = {.rank = 2, .alpha = 3, .init_lora_weights = InitLoraWeights::pissa}, .target_modules = {"out", "gate"}},
    {.lora = {.rank = 1, .alpha = 2, .merge_weights = false, .bias = BiasMode::all},
     .target_modules = {"gate"},
     .modules_to_save = {"head"}},
    {.lora = {.rank = 1, .alpha = 2, .use_dora = true}, .target_modules = {"qkv", "out"}, .modules_to_save = {"head"}},
};

// What a layer holds of an adapter.
struct Own {
  Matrix<double> A, B, start;  // start: the dense B0 A0
  RowVector<double> lora_bias, magnitude, bias;
  LoraConfig config;
  double scale = 1;

  [[nodiscard]] double scaling() const { return scale * config.scaling(); }
};

struct Layer {
  Matrix<double> w;  // out x in
  RowVector<double> bias;
  std::map<std::string, Own> adapters;
  Names merged;
  bool training = true;
};

struct Adapter {
  LoraModelConfig config;
  std::map<std::string, Matrix<double>> values;  // of what it trains whole
};

// Output rows that the rows of B are for.
std::vector<Index> outputs_of(const std::string& layer, Index outputs) {
  if (layer == "block.qkv") return {0, 1, 4, 5};
  std::vector<Index> all;
  for (Index j = 0; j < outputs; ++j) all.push_back(j);
  return all;
}

Matrix<double> product_of(const std::string& name, const Layer& layer, const Own& own) {
  Matrix<double> product = Matrix<double>::Zero(layer.w.rows(), layer.w.cols());
  const auto rows = outputs_of(name, layer.w.rows());
  const Index rank = own.B.cols();
  for (Index j = 0; j < own.B.rows(); ++j) {
    const Index first = name == "block.qkv" ? j / 2 * rank : 0;  // of A's rows that belong to the projection
    product.row(rows[static_cast<std::size_t>(j)]) = own.B.row(j) * own.A.middleRows(first, rank);
  }
  return product;
}

// What the adapter adds to W0.
Matrix<double> change_of(const std::string& name, const Layer& layer, const Own& own) {
  Matrix<double> product = product_of(name, layer, own);
  if (own.start.size() > 0) product -= own.start;
  Matrix<double> sum = layer.w + own.scaling() * product;
  if (own.config.use_dora) {
    const auto rows = outputs_of(name, layer.w.rows());
    for (Index j = 0; j < own.magnitude.size(); ++j) {
      auto row = sum.row(rows[static_cast<std::size_t>(j)]);
      row *= own.magnitude[j] / row.norm();
    }
  }
  return sum - layer.w;
}

class Sequence {
 public:
  explicit Sequence(std::uint64_t seed) : random_(seed) {
    add_all(model_, network_);
    network_.each_layer([&](const std::string& name, auto& layer, const auto& /*x*/) {
      layers_[name] = {base_weight(name, layer), layer.base_bias(), {}, {}, true};
    });
    network_.each_parameter([&](const std::string& name, auto& parameter) {
      users_[name] = parameter.value;
      trains_[name] = true;
    });
  }

  // One random call. Its text is for messages.
  std::string step() {
    switch (below(17)) {
      case 0:
      case 1:
        return inject();
      case 2:
        return load();
      case 3:
      case 4:
        return set_adapters(subset());
      case 5:
        return below(3) == 0 ? delete_adapter(any_name()) : "nothing";
      case 6:
        return merge(subset());
      case 7:
        return merge_active();
      case 8:
        return unmerge(subset());
      case 9:
        return unmerge_all();
      case 10:
        return train();
      case 11:
        return eval();
      case 12:
        return train_a_step();
      case 13:
        return set_scale(any_name());
      case 14:
        return below(2) == 0 ? disable() : enable();
      case 15:
        return below(4) != 0 ? choose_rows() : below(3) == 0 ? unload() : clear_rows();
      default:
        return below(4) == 0 ? merge_and_unload() : enable();
    }
  }

  void check() {
    Names names;
    for (const auto& [name, adapter] : adapters_) names.push_back(name);
    ASSERT_EQ(model_.adapter_names(), names);
    ASSERT_EQ(model_.active_adapters(), active_);
    ASSERT_EQ(model_.merged(), merged());
    network_.each_layer([&](const std::string& name, auto& layer, const auto& x) { check_layer(name, layer, x); });
    network_.each_parameter([&](const std::string& name, auto& parameter) {
      ASSERT_TRUE(same_bits(parameter.value, value_of(name))) << name;
    });
    check_count();
    for (const auto& [name, adapter] : adapters_) {
      const AdapterWeights<double> weights = model_.weights(name);
      for (const auto& [parameter, value] : adapter.values) {
        const auto& saved = weights.saved.at(parameter);
        ASSERT_TRUE(
            same_bits(Eigen::Map<const Matrix<double>>(saved.values.data(), value.rows(), value.cols()), value));
      }
    }
  }

 private:
  // Small helpers.

  std::uint64_t below(std::uint64_t n) { return random_() % n; }
  std::string any_name() { return std::string(1, static_cast<char>('a' + below(5))); }
  Names subset() {
    Names names;
    for (int i = 0; i < 3; ++i) {
      const std::string name = any_name();
      if (adapters_.contains(name) && !contains(names, name) && below(3) > 0) names.push_back(name);
    }
    return names;
  }
  [[nodiscard]] bool merged() const {
    return std::any_of(layers_.begin(), layers_.end(), [](const auto& entry) { return !entry.second.merged.empty(); });
  }
  template <class AnyLayer>
  static Matrix<double> base_weight(const std::string& name, const AnyLayer& layer) {
    const Matrix<double> w = layer.base_weight();
    return name == "embed" || name == "block.gate" ? Matrix<double>(w.transpose()) : w;
  }
  // Expects the error, or none and then the change.
  template <class Call, class Change>
  static void expect(const char* error, const Call& call, const Change& change) {
    std::string got = "none";
    try {
      call();
    } catch (const ConfigError& /*e*/) {
      got = "config";
    } catch (const StateError& /*e*/) {
      got = "state";
    }
    ASSERT_EQ(got, error);
    if (got == "none") change();
  }
  static std::string text(const char* call, const Names& names) {
    std::string result = call;
    for (const std::string& name : names) result.append(" ").append(name);
    return result;
  }

  // Calls.

  void activate(const Names& names) {
    active_ = names;
    for (auto& [parameter, trains] : trains_) {
      trains = std::any_of(active_.begin(), active_.end(),
                           [&, &key = parameter](const auto& name) { return adapters_[name].values.contains(key); });
    }
  }
  void be_born(const std::string& name, const LoraModelConfig& config) {
    Adapter adapter{config, {}};
    for (const auto& [parameter, value] : users_) {
      const bool saved = !config.modules_to_save.empty();
      if (saved || (config.lora.bias == BiasMode::all && parameter == "head.bias")) adapter.values[parameter] = value;
    }
    adapters_[name] = adapter;
    activate({name});
    network_.each_layer([&](const std::string& layer_name, auto& layer, const auto& /*x*/) {
      if (!layer.has_adapter(name)) return;
      const auto& made = layer.adapter(name);
      Own own{made.A, made.B, {}, made.lora_bias, made.magnitude, made.bias, made.config()};
      if (takes_from_weight(made.config().init_lora_weights))
        own.start = product_of(layer_name, layers_[layer_name], own);
      if (made.bias.size() > 0) {
        ASSERT_TRUE(same_bits(made.bias, layers_[layer_name].bias));
      }
      layers_[layer_name].adapters[name] = own;
    });
  }
  std::string inject() {
    const std::string name = any_name();
    const LoraModelConfig& config = configs[below(configs.size())];
    const char* const error = adapters_.contains(name) ? "config" : merged() ? "state" : "none";
    expect(
        error, [&] { model_.inject(config, random_(), name); }, [&] { be_born(name, config); });
    return "inject " + name;
  }
  std::string load() {
    const std::string source = any_name();
    const std::string name = any_name();
    if (!adapters_.contains(source)) return "nothing";
    const char* const error = adapters_.contains(name) ? "config" : merged() ? "state" : "none";
    const LoraModelConfig config = model_.config(source);
    expect(
        error, [&] { model_.load(config, model_.weights(source), 0, name); },
        [&] {
          adapters_[name] = adapters_[source];
          activate({name});
          for (auto& [layer_name, layer] : layers_) {
            if (!layer.adapters.contains(source)) continue;
            Own own = layer.adapters[source];
            own.scale = 1;
            layer.adapters[name] = own;
          }
        });
    return "load " + source + " as " + name;
  }
  // Whether two of these train the same tensor.
  [[nodiscard]] bool clash(const Names& names) const {
    std::map<std::string, int> owners;
    for (const std::string& name : names) {
      for (const auto& [parameter, value] : adapters_.at(name).values) ++owners[parameter];
      for (const auto& [layer_name, layer] : layers_) {
        if (layer.adapters.contains(name) && layer.adapters.at(name).bias.size() > 0) ++owners[layer_name];
      }
    }
    return std::any_of(owners.begin(), owners.end(), [](const auto& owner) { return owner.second > 1; });
  }
  std::string set_adapters(const Names& names) {
    const char* const error = names == active_ ? "none" : merged() ? "state" : clash(names) ? "config" : "none";
    expect(
        error, [&] { model_.set_adapters(names); },
        [&] {
          if (names != active_) activate(names);
        });
    return text("set_adapters", names);
  }
  std::string delete_adapter(const std::string& name) {
    const char* const error = !adapters_.contains(name) ? "config" : merged() ? "state" : "none";
    expect(
        error, [&] { model_.delete_adapter(name); },
        [&] {
          Names rest = active_;
          std::erase(rest, name);
          activate(rest);
          adapters_.erase(name);
          for (auto& [layer_name, layer] : layers_) layer.adapters.erase(name);
          if (rows_) std::replace(rows_->begin(), rows_->end(), name, std::string("__base__"));
        });
    return "delete " + name;
  }

  // What is merged in a layer once `names` are, too; nothing where it cannot be.
  [[nodiscard]] std::optional<Names> merging(const Layer& layer, const Names& names) const {
    Names result = layer.merged;
    for (const std::string& name : names) {
      if (layer.adapters.contains(name) && !contains(result, name)) result.push_back(name);
    }
    if (result.size() == layer.merged.size()) return result;
    if (!enabled_) return std::nullopt;
    const auto dora = [&](const std::string& name) { return layer.adapters.at(name).config.use_dora; };
    if (std::count_if(result.begin(), result.end(), dora) > 1) return std::nullopt;
    std::stable_partition(result.begin(), result.end(), dora);
    return result;
  }
  [[nodiscard]] std::optional<std::map<std::string, Layer>> all_merging(const Names& names) const {
    auto result = layers_;
    for (auto& [layer_name, layer] : result) {
      const auto after = merging(layer, names);
      if (!after) return std::nullopt;
      layer.merged = *after;
    }
    return result;
  }
  std::string merge(const Names& names) {
    const auto after = all_merging(names);
    const auto add = [](Names& all, const Names& more) {
      for (const std::string& name : more) {
        if (!contains(all, name)) all.push_back(name);
      }
    };
    Names parts = names;
    add(parts, active_);
    for (const auto& [layer_name, layer] : layers_) add(parts, layer.merged);
    const bool saves = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return !contains(active_, name) && !adapters_[name].values.empty();
    });
    expect(
        clash(parts)      ? "config"
        : saves || !after ? "state"
                          : "none",
        [&] { model_.merge(names); }, [&] { layers_ = *after; });
    return text("merge", names);
  }
  std::string merge_active() {
    const auto after = all_merging(active_);
    expect(
        after ? "none" : "state", [&] { model_.merge(); }, [&] { layers_ = *after; });
    return "merge the active";
  }
  std::string unmerge(const Names& names) {
    expect(
        "none", [&] { model_.unmerge(names); },
        [&] {
          for (auto& [layer_name, layer] : layers_) {
            for (const std::string& name : names) std::erase(layer.merged, name);
          }
        });
    return text("unmerge", names);
  }
  std::string unmerge_all() {
    model_.unmerge();
    for (auto& [layer_name, layer] : layers_) layer.merged.clear();
    return "unmerge all";
  }
  std::string train() {
    expect(
        "none", [&] { model_.train(); },
        [&] {
          for (auto& [layer_name, layer] : layers_) {
            std::erase_if(layer.merged, [&adapters = layer.adapters](const auto& name) {
              return adapters.at(name).config.merge_weights;
            });
            layer.training = true;
          }
        });
    return "train";
  }
  // Evaluation merges nothing that inference would refuse: two adapters with DoRA, or others beside an active one.
  template <class Layer>
  [[nodiscard]] bool answers_merged(const Layer& layer, const Names& more) const {
    const auto holds = [](const Names& names, const std::string& name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    Index merged = 0;
    for (const auto& [name, own] : layer.adapters) {
      if (!own.config.use_dora) continue;
      const bool stays_out = !holds(layer.merged, name) && !holds(more, name);
      if (stays_out && enabled_ && holds(active_, name)) return false;
      merged += stays_out ? 0 : 1;
    }
    return merged < 2;
  }
  std::string eval() {
    auto after = layers_;
    bool refused = false;
    for (auto& [layer_name, layer] : after) {
      Names names;
      for (const std::string& name : active_) {
        if (!enabled_ || !layer.adapters.contains(name) || !layer.adapters[name].config.merge_weights) continue;
        names.push_back(name);
      }
      layer.training = false;
      if (rows_ || !answers_merged(layer, names)) continue;
      const auto merged_after = merging(layer, names);
      refused = refused || !merged_after;
      if (merged_after) layer.merged = *merged_after;
    }
    expect(
        refused ? "state" : "none", [&] { model_.eval(); }, [&] { layers_ = after; });
    return "eval";
  }

  std::string train_a_step() {
    std::size_t next = 0;
    const auto handles = model_.trainable_parameters();
    const auto change = [&](auto& value, bool locked) {
      if (value.size() == 0) return;
      ASSERT_LT(next, handles.size());
      const auto& handle = handles[next++];
      ASSERT_EQ(handle.size(), value.size());
      if (locked) {
        EXPECT_THROW(static_cast<void>(handle.value()), StateError);
        return;
      }
      const Matrix<double> by = random_matrix<double>(value.rows(), value.cols(), random_(), 0.25);
      handle.value() += by;
      value += by;
    };
    for (const char* layer_name : {"embed", "block.qkv", "block.out", "block.gate"}) {
      Layer& layer = layers_[layer_name];
      for (const std::string& name : active_) {
        if (!enabled_ || !layer.adapters.contains(name)) continue;
        Own& own = layer.adapters[name];
        const bool locked = contains(layer.merged, name);
        change(own.A, locked);
        change(own.B, locked);
        change(own.magnitude, locked);
        change(own.lora_bias, locked);
        change(own.bias, locked);
      }
    }
    for (const char* parameter : {"head.weight", "head.bias"}) {
      if (!trains_[parameter]) continue;
      Matrix<double>* value = &users_[parameter];
      for (const std::string& name : active_) {
        if (adapters_[name].values.contains(parameter)) value = &adapters_[name].values[parameter];
      }
      change(*value, false);
    }
    EXPECT_EQ(next, handles.size());
    return "train a step";
  }
  std::string set_scale(const std::string& name) {
    bool locked = false;
    for (const auto& [layer_name, layer] : layers_) locked = locked || contains(layer.merged, name);
    const double factor = 0.5 + static_cast<double>(below(5));
    const char* const error = !adapters_.contains(name) ? "config" : locked ? "state" : "none";
    expect(
        error, [&] { model_.set_scale(name, factor); },
        [&] {
          for (auto& [layer_name, layer] : layers_) {
            if (layer.adapters.contains(name)) layer.adapters[name].scale = factor;
          }
        });
    return "scale " + name;
  }
  std::string disable() {
    model_.disable_adapters();
    for (auto& [layer_name, layer] : layers_) layer.merged.clear();
    enabled_ = false;
    return "disable";
  }
  std::string enable() {
    model_.enable_adapters();
    enabled_ = true;
    return "enable";
  }
  std::string choose_rows() {
    Names names;
    bool known = true;
    const int samples = below(2) == 0 ? 4 : 2;
    for (int i = 0; i < samples; ++i) {
      names.push_back(below(4) == 0 ? "__base__" : any_name());
      known = known && (names.back() == "__base__" || adapters_.contains(names.back()));
    }
    expect(
        known ? "none" : "config", [&] { model_.set_row_adapters(names); }, [&] { rows_ = names; });
    return text("rows choose", names);
  }
  std::string clear_rows() {
    model_.clear_row_adapters();
    rows_.reset();
    return "rows choose no more";
  }
  void forget() {
    adapters_.clear();
    active_.clear();
    for (auto& [layer_name, layer] : layers_) {
      layer.adapters.clear();
      layer.merged.clear();
    }
    rows_.reset();
    enabled_ = true;
  }
  std::string unload() {
    model_.unload();
    if (!adapters_.empty()) activate({});
    forget();
    return "unload";
  }
  std::string merge_and_unload() {
    const auto after = all_merging(active_);
    const bool works = !active_.empty() && after;
    std::map<std::string, Matrix<double>> weights;
    std::map<std::string, RowVector<double>> biases;
    for (auto& [name, layer] : layers_) {
      Names parts = layer.merged;
      for (const std::string& active : active_) {
        if (layer.adapters.contains(active) && !contains(parts, active)) parts.push_back(active);
      }
      weights[name] = layer.w;
      for (const std::string& part : parts) weights[name] += change_of(name, layer, layer.adapters[part]);
      biases[name] = bias_of(name, layer, parts);
    }
    expect(
        works ? "none" : "state", [&] { model_.merge_and_unload(); },
        [&] {
          network_.each_layer([&](const std::string& name, auto& layer, const auto& /*x*/) {
            const Matrix<double> w = base_weight(name, layer);
            ASSERT_LE((w - weights[name]).norm(), tolerance(weights[name])) << name;
            layers_[name].w = w;
            const RowVector<double> bias = layer.base_bias();
            if (bias.size() > 0) {
              ASSERT_LE((bias - biases[name]).norm(), tolerance(biases[name])) << name;
            }
            if (bias.size() == 0) {
              ASSERT_EQ(biases[name].norm(), 0) << name;
            }
            layers_[name].bias = bias;
          });
          for (auto& [parameter, value] : users_) value = value_of(parameter);
          forget();
        });
    return "merge and unload";
  }

  // What must hold.

  static double tolerance(const Matrix<double>& m) { return 1e-11 * (1 + m.norm()); }
  [[nodiscard]] Matrix<double> value_of(const std::string& parameter) const {
    for (const std::string& name : active_) {
      const auto& values = adapters_.at(name).values;
      if (values.contains(parameter)) return values.at(parameter);
    }
    return users_.at(parameter);
  }
  [[nodiscard]] Names working(const Layer& layer) const {
    Names names;
    for (const std::string& name : active_) {
      if (enabled_ && layer.adapters.contains(name)) names.push_back(name);
    }
    return names;
  }
  static RowVector<double> bias_of(const std::string& layer_name, const Layer& layer, const Names& parts) {
    RowVector<double> bias = layer.bias.size() > 0 ? layer.bias : RowVector<double>::Zero(layer.w.rows());
    for (const std::string& name : parts) {
      if (layer.adapters.at(name).bias.size() > 0) bias = layer.adapters.at(name).bias;
    }
    const auto rows = outputs_of(layer_name, layer.w.rows());
    for (const std::string& name : parts) {
      const Own& own = layer.adapters.at(name);
      for (Index j = 0; j < own.lora_bias.size(); ++j) {
        bias[rows[static_cast<std::size_t>(j)]] += own.scaling() * own.lora_bias[j];
      }
    }
    return bias;
  }
  static Matrix<double> answer_of(const std::string& name, const Layer& layer, const Names& parts,
                                  const Matrix<double>& x) {
    Matrix<double> w = layer.w;
    for (const std::string& part : parts) w += change_of(name, layer, layer.adapters.at(part));
    return (x * w.transpose()).rowwise() + bias_of(name, layer, parts);
  }
  static Matrix<double> dense(const Matrix<double>& x) { return x; }
  static Matrix<double> dense(const std::vector<std::int64_t>& ids) {
    Matrix<double> x = Matrix<double>::Zero(static_cast<Index>(ids.size()), 5);
    for (std::size_t i = 0; i < ids.size(); ++i) x(static_cast<Index>(i), ids[i]) = 1;
    return x;
  }

  template <class AnyLayer, class Input>
  void check_layer(const std::string& name, AnyLayer& layer, const Input& input) {
    const Layer& wanted = layers_.at(name);
    ASSERT_EQ(layer.merged_adapters(), wanted.merged) << name;
    ASSERT_EQ(layer.training(), wanted.training) << name;
    ASSERT_TRUE(same_bits(base_weight(name, layer), wanted.w)) << name;
    if (wanted.merged.empty()) {
      ASSERT_TRUE(same_bits(layer.weight(), layer.base_weight())) << name;
    }
    ASSERT_EQ(layer.adapter_count(), static_cast<Index>(wanted.adapters.size())) << name;
    for (const auto& [adapter, own] : wanted.adapters) {
      const auto& held = layer.adapter(adapter);
      ASSERT_TRUE(same_bits(held.A, own.A) && same_bits(held.B, own.B)) << name << " " << adapter;
      ASSERT_TRUE(same_bits(held.magnitude, own.magnitude) && same_bits(held.bias, own.bias)) << name << " " << adapter;
      ASSERT_TRUE(same_bits(held.lora_bias, own.lora_bias)) << name << " " << adapter;
      ASSERT_EQ(held.scale(), own.scale) << name << " " << adapter;
    }
    Names parts = wanted.merged;
    bool dora_over_merged = false;
    for (const std::string& part : working(wanted)) {
      if (contains(wanted.merged, part)) continue;
      parts.push_back(part);
      dora_over_merged = dora_over_merged || (wanted.adapters.at(part).config.use_dora && !wanted.merged.empty());
    }
    if ((rows_ && !wanted.merged.empty()) || (!rows_ && dora_over_merged)) {
      EXPECT_THROW(static_cast<void>(layer.infer(input)), StateError) << name;
      return;
    }
    const Matrix<double> answer = layer.infer(input);
    const Matrix<double> x = dense(input);
    for (Index i = 0; i < x.rows(); ++i) {
      Names alone;
      if (rows_) {
        const std::string& choice =
            (*rows_)[static_cast<std::size_t>(i * static_cast<Index>(rows_->size()) / x.rows())];
        if (enabled_ && wanted.adapters.contains(choice)) alone.push_back(choice);
      }
      const Matrix<double> y = answer_of(name, wanted, rows_ ? alone : parts, x.row(i));
      ASSERT_LE((answer.row(i) - y).norm(), tolerance(y)) << name << " row " << i;
    }
  }
  void check_count() {
    Index all = 0;
    Index trainable = 0;
    for (const auto& [name, layer] : layers_) {
      all += layer.w.size() + layer.bias.size();
      for (const auto& [adapter, own] : layer.adapters) {
        const Index size = own.A.size() + own.B.size() + own.lora_bias.size() + own.magnitude.size();
        all += size;
        if (enabled_ && contains(active_, adapter)) trainable += size + own.bias.size();
      }
    }
    for (const auto& [parameter, value] : users_) all += value.size();
    for (const auto& [name, adapter] : adapters_) {
      for (const auto& [parameter, value] : adapter.values) {
        if (!adapter.config.modules_to_save.empty()) all += value.size();
      }
    }
    for (const auto& [parameter, trains] : trains_) {
      if (trains) trainable += users_.at(parameter).size();
    }
    ASSERT_EQ(model_.parameter_count().all, all);
    ASSERT_EQ(model_.parameter_count().trainable, trainable);
  }

  std::mt19937_64 random_;
  MatrixLayers network_;
  LoraModel<double> model_;
  std::map<std::string, Layer> layers_;
  std::map<std::string, Matrix<double>> users_;
  std::map<std::string, Adapter> adapters_;
  Names active_;
  std::optional<Names> rows_;
  std::map<std::string, bool> trains_;  // of what is trained whole
  bool enabled_ = true;
};

TEST(LoraModelSequences, EveryCallDoesWhatASimpleModelSays) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Sequence sequence(seed);
    std::string history;
    for (int i = 0; i < 60; ++i) {
      history.append(sequence.step()).append("; ");
      if (!::testing::Test::HasFailure()) sequence.check();
      ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed << ": " << history;
    }
  }
}

}  // namespace
}  // namespace lora::testing::lora_model_sequences_test
