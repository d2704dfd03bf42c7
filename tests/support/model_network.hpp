// A model of every kind of layer, and all that can be seen of it from outside.
#pragma once

#include <cstdint>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <vector>

#include "lora/layers/conv.hpp"
#include "lora/layers/embedding.hpp"
#include "lora/layers/linear.hpp"
#include "lora/layers/merged_linear.hpp"
#include "lora/model/lora_model.hpp"
#include "support/bits.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {

/// Layers of every kind, a head that is trained whole or not at all, and the model over them. Stays where it is.
struct ModelNetwork {
  using Linear = LoraLinear<double>;
  static constexpr std::uint64_t no_seed = 0;

  LoraEmbedding<double> embed{random_matrix<double>(5, 4, 1), LoraConfig{.rank = 0}, no_seed, 2};
  LoraConv<double, 1> grouped{random_matrix<double>(4, 6, 2), random_vector<double>(4, 3),
                              ConvGeometry<1>{.in_channels = 4, .out_channels = 4, .kernel = {3}, .groups = 2},
                              LoraConfig{.rank = 0}, no_seed};
  LoraConv<double, 2> conv{random_matrix<double>(3, 12, 4),
                           ConvGeometry<2>{.in_channels = 2, .out_channels = 3, .kernel = {3, 2}, .padding = {1, 0}},
                           LoraConfig{.rank = 0}, no_seed};
  MergedLinear<double> qkv{
      random_matrix<double>(6, 4, 5), random_vector<double>(6, 6), {true, false, true}, LoraConfig{.rank = 0}, no_seed};
  Linear out{random_matrix<double>(4, 6, 7), random_vector<double>(4, 8), LoraConfig{.rank = 0}, no_seed};
  Linear gate{random_matrix<double>(4, 5, 9), LoraConfig{.rank = 0, .fan_in_fan_out = true}, no_seed};
  Trainable<double> head{random_matrix<double>(3, 4, 10), {}, {}};
  Trainable<double> head_bias{random_matrix<double>(1, 3, 11), {}, {}};
  Trainable<double> norm{random_matrix<double>(1, 4, 12), {}, {}};
  LoraModel<double> model;

  ModelNetwork() {
    model.add("embed", embed);
    model.add("grouped", grouped);
    model.add("conv", conv);
    model.add("block.qkv", qkv);
    model.add("block.out", out);
    model.add("block.gate", gate);
    model.add("head.weight", head);
    model.add("head.bias", head_bias);
    model.add("norm.weight", norm);
  }
  ModelNetwork(const ModelNetwork&) = delete;
  ModelNetwork& operator=(const ModelNetwork&) = delete;

  /// visit(name, layer, x): every layer with a batch of four samples for infer and forward.
  template <class Visit>
  void each_layer(const Visit& visit) {
    const std::vector<std::int64_t> ids = {0, 3, 2, 4};
    const Matrix<double> signals = random_matrix<double>(4, 4 * 5, 21);
    const Matrix<double> images = random_matrix<double>(4, 2 * 12, 22);
    const Matrix<double> four = random_matrix<double>(4, 4, 23);
    const Matrix<double> six = random_matrix<double>(4, 6, 24);
    visit("embed", embed, ids);
    visit("grouped", grouped, Images<Matrix<double>, 1>{signals, {5}});
    visit("conv", conv, Images<Matrix<double>, 2>{images, {4, 3}});
    visit("block.qkv", qkv, four);
    visit("block.out", out, six);
    visit("block.gate", gate, four);
  }
  [[nodiscard]] std::map<std::string, Matrix<double>> answers() {
    std::map<std::string, Matrix<double>> result;
    each_layer([&](const char* name, auto& layer, const auto& x) { result[name] = layer.infer(x); });
    return result;
  }
  /// Every weight, the base biases, and the user's own parameters.
  [[nodiscard]] std::map<std::string, Matrix<double>> weights() {
    std::map<std::string, Matrix<double>> result;
    each_layer([&](const std::string& name, auto& layer, const auto& /*x*/) {
      result[name + ".weight"] = layer.weight();
      result[name + ".bias"] = layer.bias();
    });
    result["head.weight"] = head.value;
    result["head.bias"] = head_bias.value;
    result["norm.weight"] = norm.value;
    return result;
  }
  /// Gives everything that trains other values.
  void randomize(std::uint64_t seed, double bound = 1.0) {
    for (const auto& parameter : model.trainable_parameters()) {
      parameter.value() = random_matrix<double>(parameter.rows(), parameter.cols(), ++seed, bound);
    }
  }
  [[nodiscard]] std::vector<std::string> trainable_names() {
    std::vector<std::string> names;
    for (const auto& parameter : model.trainable_parameters()) names.push_back(parameter.name());
    return names;
  }
};

/// Success when both hold the same arrays under the same names, bit for bit.
[[nodiscard]] inline ::testing::AssertionResult same_bits(const std::map<std::string, Matrix<double>>& a,
                                                          const std::map<std::string, Matrix<double>>& b) {
  for (const auto& [name, values] : a) {
    if (!b.contains(name)) return ::testing::AssertionFailure() << name << " is gone";
    if (const auto same = same_bits(values, b.at(name)); !same) {
      return ::testing::AssertionFailure() << name << ": " << same.message();
    }
  }
  for (const auto& [name, values] : b) {
    if (!a.contains(name)) return ::testing::AssertionFailure() << name << " is new";
  }
  return ::testing::AssertionSuccess();
}

/// The largest difference between arrays of the same names.
[[nodiscard]] inline double difference(const std::map<std::string, Matrix<double>>& a,
                                       const std::map<std::string, Matrix<double>>& b) {
  double largest = 0;
  for (const auto& [name, values] : a) {
    largest = std::max(largest, (values - b.at(name)).cwiseAbs().maxCoeff());
  }
  return largest;
}

/// Everything observable: numbers by name, and words by name.
struct Observation {
  std::map<std::string, Matrix<double>> numbers;
  std::map<std::string, std::string> words;
};

[[nodiscard]] inline ::testing::AssertionResult same(const Observation& a, const Observation& b) {
  if (const auto numbers = same_bits(a.numbers, b.numbers); !numbers) return numbers;
  for (const auto& [name, text] : a.words) {
    if (!b.words.contains(name)) return ::testing::AssertionFailure() << name << " is gone";
    if (b.words.at(name) != text) {
      return ::testing::AssertionFailure() << name << ": \"" << text << "\" against \"" << b.words.at(name) << "\"";
    }
  }
  if (a.words.size() == b.words.size()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "there are new words";
}

[[nodiscard]] inline std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text.append(name).append(" ");
  return text;
}

inline void observe(Observation& seen, const std::string& name, const Matrix<double>& value,
                    const Matrix<double>& gradient, const Moments<double>& moments) {
  seen.numbers[name] = value;
  seen.numbers[name + " gradient"] =
      gradient.size() > 0 ? gradient : Matrix<double>(Matrix<double>::Zero(value.rows(), value.cols()));
  std::string text = std::to_string(moments.steps);
  for (const double m : moments.first) text.append(" ").append(std::to_string(m));
  for (const double m : moments.second) text.append(" ").append(std::to_string(m));
  seen.words[name + " moments"] = text;
}

[[nodiscard]] inline Observation observe(ModelNetwork& network) {
  Observation seen;
  network.each_layer([&](const std::string& layer_name, auto& layer, const auto& x) {
    const std::string at = layer_name + " ";
    try {
      seen.numbers[at + "answer"] = layer.infer(x);
    } catch (const StateError& error) {
      seen.words[at + "refusal"] = error.what();
    }
    seen.numbers[at + "weight"] = layer.weight();
    seen.numbers[at + "base weight"] = layer.base_weight();
    seen.numbers[at + "bias"] = layer.bias();
    seen.numbers[at + "base bias"] = layer.base_bias();
    seen.words[at + "adapters"] = joined(layer.adapter_names());
    seen.words[at + "active"] = joined(layer.active_adapters());
    seen.words[at + "merged"] = joined(layer.merged_adapters());
    seen.words[at + "modes"] = std::string(layer.training() ? "train " : "eval ") +
                               (layer.adapters_enabled() ? "enabled " : "disabled ") +
                               std::to_string(layer.dropout_step());
    for (const std::string& name : layer.adapter_names()) {
      const auto& adapter = layer.adapter(name);
      const std::string own = at + name + " ";
      seen.numbers[own + "A"] = adapter.A;
      seen.numbers[own + "B"] = adapter.B;
      seen.numbers[own + "lora_bias"] = adapter.lora_bias;
      seen.numbers[own + "magnitude"] = adapter.magnitude;
      seen.numbers[own + "bias"] = adapter.bias;
      seen.numbers[own + "dA"] = layer.gradients(name).A;
      seen.numbers[own + "dB"] = layer.gradients(name).B;
      seen.words[own + "scale"] = std::to_string(adapter.scale()) + " " + std::to_string(adapter.scaling());
    }
  });
  observe(seen, "head.weight", network.head.value, network.head.gradient, network.head.moments);
  observe(seen, "head.bias", network.head_bias.value, network.head_bias.gradient, network.head_bias.moments);
  observe(seen, "norm.weight", network.norm.value, network.norm.gradient, network.norm.moments);
  LoraModel<double>& model = network.model;
  seen.words["names"] = joined(model.adapter_names());
  seen.words["active"] = joined(model.active_adapters());
  seen.words["merged"] = model.merged() ? "yes" : "no";
  seen.words["count"] = model.parameter_count().text();
  for (const auto& parameter : model.trainable_parameters()) {
    observe(seen, "trains " + parameter.name(), parameter.gradient(), parameter.gradient(), parameter.moments());
  }
  for (const std::string& name : model.adapter_names()) {
    const AdapterWeights<double> weights = model.weights(name);
    for (const auto& [module, own] : weights.modules) {
      seen.numbers[name + " of " + module + " A"] = own.A;
      seen.numbers[name + " of " + module + " B"] = own.B;
    }
    for (const auto& [tensor, saved] : weights.saved) {
      seen.numbers[name + " of " + tensor] =
          Eigen::Map<const Matrix<double>>(saved.values.data(), 1, static_cast<Index>(saved.values.size()));
    }
  }
  return seen;
}

/// The text of the error of this type that `call` raises.
template <class ErrorType, class Call>
[[nodiscard]] std::string message_of(const Call& call) {
  try {
    call();
  } catch (const ErrorType& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error of the type expected";
  return {};
}

}  // namespace lora::testing
