// SPDX-License-Identifier: MIT
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

/// Layers that multiply each row by a matrix, and a head that is trained whole or not at all. Stays where it is.
struct MatrixLayers {
  using Linear = LoraLinear<double>;
  static constexpr std::uint64_t no_seed = 0;

  LoraEmbedding<double> embed{random_matrix<double>(5, 4, 1), LoraConfig{.rank = 0}, no_seed, 2};
  MergedLinear<double> qkv{
      random_matrix<double>(6, 4, 5), random_vector<double>(6, 6), {true, false, true}, LoraConfig{.rank = 0}, no_seed};
  Linear out{random_matrix<double>(4, 6, 7), random_vector<double>(4, 8), LoraConfig{.rank = 0}, no_seed};
  Linear gate{random_matrix<double>(4, 5, 9), LoraConfig{.rank = 0, .fan_in_fan_out = true}, no_seed};
  Trainable<double> head{random_matrix<double>(3, 4, 10), {}, {}};
  Trainable<double> head_bias{random_matrix<double>(1, 3, 11), {}, {}};

  MatrixLayers() = default;
  MatrixLayers(const MatrixLayers&) = delete;
  MatrixLayers& operator=(const MatrixLayers&) = delete;

  /// visit(name, layer, x): every layer with a batch of four samples for infer and forward.
  template <class Visit>
  void each_layer(const Visit& visit) {
    const Matrix<double> four = random_matrix<double>(4, 4, 23);
    visit("embed", embed, std::vector<std::int64_t>{0, 3, 2, 4});
    visit("block.qkv", qkv, four);
    visit("block.out", out, random_matrix<double>(4, 6, 24));
    visit("block.gate", gate, four);
  }
  /// visit(name, parameter)
  template <class Visit>
  void each_parameter(const Visit& visit) {
    visit("head.weight", head);
    visit("head.bias", head_bias);
  }
};

/// Adds all of a network to a model.
template <class Network>
void add_all(LoraModel<double>& model, Network& network) {
  network.each_layer([&](const char* name, auto& layer, const auto& /*x*/) { model.add(name, layer); });
  network.each_parameter([&](const char* name, auto& parameter) { model.add(name, parameter); });
}

/// Layers of every kind, parameters, and the model over them.
struct ModelNetwork : MatrixLayers {
  LoraConv<double, 1> grouped{random_matrix<double>(4, 6, 2), random_vector<double>(4, 3),
                              ConvGeometry<1>{.in_channels = 4, .out_channels = 4, .kernel = {3}, .groups = 2},
                              LoraConfig{.rank = 0}, no_seed};
  LoraConv<double, 2> conv{random_matrix<double>(3, 12, 4),
                           ConvGeometry<2>{.in_channels = 2, .out_channels = 3, .kernel = {3, 2}, .padding = {1, 0}},
                           LoraConfig{.rank = 0}, no_seed};
  Trainable<double> norm{random_matrix<double>(1, 4, 12), {}, {}};
  LoraModel<double> model;

  ModelNetwork() { add_all(model, *this); }

  template <class Visit>
  void each_layer(const Visit& visit) {
    MatrixLayers::each_layer(visit);
    const Matrix<double> signals = random_matrix<double>(4, 4 * 5, 21);
    const Matrix<double> images = random_matrix<double>(4, 2 * 12, 22);
    visit("grouped", grouped, Images<Matrix<double>, 1>{signals, {5}});
    visit("conv", conv, Images<Matrix<double>, 2>{images, {4, 3}});
  }
  template <class Visit>
  void each_parameter(const Visit& visit) {
    MatrixLayers::each_parameter(visit);
    visit("norm.weight", norm);
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
    each_parameter([&](const char* name, const auto& parameter) { result[name] = parameter.value; });
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
  network.each_parameter([&](const char* name, const auto& parameter) {
    observe(seen, name, parameter.value, parameter.gradient, parameter.moments);
  });
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
