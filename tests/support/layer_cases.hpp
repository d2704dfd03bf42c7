// SPDX-License-Identifier: MIT
// Layers of every kind, weight and scalar behind one interface, so that a law about layers is written and compiled
// once.
//
// Numbers cross the interface as double, which holds every float exactly: what has the same bits here has the same bits
// in the layer. Each kind's file (layers/linear_test.cpp and its like) makes its cases, with support/native_layer.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <gtest/gtest.h>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/core/executor.hpp"
#include "lora/core/types.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "support/half_numbers.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {

using Rows = Matrix<double>;
using Wide = long double;
using WideRows = Matrix<Wide>;
using Names = std::vector<std::string>;

/// What one adapter holds.
struct AdapterValues {
  std::string name;
  LoraConfig config;
  std::uint64_t seed = 0;
  double scaling = 0;
  double scale = 1;
  bool merged = false;
  Rows A, B, A0, B0, lora_bias, magnitude, bias;  ///< empty where absent
};

/// The gradients of one adapter.
struct GradientValues {
  Rows A, B, lora_bias, bias, magnitude;
};

/// An adapter that stands in no layer.
class AnyAdapter {
 public:
  virtual ~AnyAdapter() = default;
  [[nodiscard]] virtual AdapterValues values() const = 0;
};

/// One batch, with all that its passes through a layer need in the layer's own scalar: calls allocate nothing that the
/// layer does not allocate.
class LayerPass {
 public:
  virtual ~LayerPass() = default;

  virtual void infer() = 0;  ///< infer(x, y, workspace)
  virtual void infer(const std::vector<Index>& choices) = 0;
  virtual void infer(const Names& choices) = 0;
  virtual void forward() = 0;     ///< forward(x, tape, y, workspace)
  virtual void backward() = 0;    ///< backward(x, tape, dy, gradients, dx, workspace)
  virtual void accumulate() = 0;  ///< the same without dx
  virtual void remembered_forward() = 0;
  virtual void remembered_backward() = 0;
  virtual void remembered_accumulate() = 0;

  virtual void set_position(std::uint64_t step, Index first_row) = 0;
  virtual void set_x(const Rows& x) = 0;
  virtual void set_dy(const Rows& dy) = 0;
  virtual void fill_y(double value) = 0;
  virtual void resize_y(Index rows) = 0;
  virtual void set_executor(Executor& executor) = 0;
  /// Gradients of the layer's active adapters of now, zero.
  virtual void renew_gradients() = 0;
  /// The tape of another pass of the same case.
  virtual void take_tape(const LayerPass& other) = 0;

  [[nodiscard]] virtual Rows y() const = 0;
  [[nodiscard]] virtual Rows dx() const = 0;
  [[nodiscard]] virtual std::vector<GradientValues> gradients() const = 0;
  [[nodiscard]] virtual Index tape_rows() const = 0;
  [[nodiscard]] virtual std::size_t tape_bytes() const = 0;
};

enum class Order : std::uint8_t { rows, columns };

/// A layer of any kind. Functions are those of the layer; weights are out_features x in_features here.
class AnyLayer {
 public:
  virtual ~AnyLayer() = default;

  [[nodiscard]] virtual std::unique_ptr<LayerPass> pass(const Rows& x, Order order = Order::rows) = 0;
  [[nodiscard]] virtual Rows infer(const Rows& x) const = 0;
  [[nodiscard]] virtual Rows forward(const Rows& x) = 0;
  /// infer(x, choices), the form that returns.
  [[nodiscard]] virtual Rows infer(const Rows& x, const Names& choices) const = 0;

  virtual void train() = 0;
  virtual void eval() = 0;
  virtual void merge() = 0;
  virtual void merge(const Names& names) = 0;
  virtual void unmerge() = 0;
  virtual void unmerge(const Names& names) = 0;
  virtual void merge_and_unload() = 0;
  virtual void unload() = 0;
  [[nodiscard]] virtual bool training() const = 0;
  [[nodiscard]] virtual bool merged() const = 0;
  [[nodiscard]] virtual Names merged_adapters() const = 0;
  [[nodiscard]] virtual bool mergeable() = 0;
  [[nodiscard]] virtual std::size_t merge_bytes() const = 0;
  [[nodiscard]] virtual Rows weight() const = 0;
  [[nodiscard]] virtual Rows base_weight() const = 0;
  [[nodiscard]] virtual Rows delta_weight(std::string_view name) const = 0;
  [[nodiscard]] virtual Rows bias() const = 0;
  [[nodiscard]] virtual Rows base_bias() const = 0;

  virtual void add(std::string_view name, const LoraConfig& config, std::uint64_t seed) = 0;
  virtual void add(const AnyAdapter& adapter) = 0;
  [[nodiscard]] virtual std::unique_ptr<AnyAdapter> make_adapter(std::string_view name, const LoraConfig& config,
                                                                 std::uint64_t seed) = 0;
  virtual void swap(std::string_view name, AnyAdapter& other) = 0;
  virtual void erase(std::string_view name) = 0;
  virtual void reset(const LoraConfig& config, std::uint64_t seed) = 0;
  virtual void set_adapters(const Names& names) = 0;
  virtual void enable() = 0;
  virtual void disable() = 0;
  [[nodiscard]] virtual bool enabled() const = 0;
  [[nodiscard]] virtual Names names() const = 0;
  [[nodiscard]] virtual Names active() const = 0;
  [[nodiscard]] virtual AdapterValues values(std::string_view name) const = 0;
  virtual void set_factors(std::string_view name, const Rows& a, const Rows& b) = 0;
  virtual void set_lora_bias(std::string_view name, const Rows& values) = 0;
  virtual void set_magnitude(std::string_view name, const Rows& values) = 0;
  virtual void set_bias(std::string_view name, const Rows& values) = 0;
  virtual void set_scale(std::string_view name, double factor) = 0;
  virtual void set_alpha(std::string_view name, double alpha) = 0;
  virtual void scale_layer(double factor) = 0;
  virtual void unscale_layer(double factor) = 0;
  virtual void unscale_layer() = 0;
  virtual void set_row_adapters(const Names& names, bool unknown_is_base) = 0;
  virtual void clear_row_adapters() = 0;

  virtual void zero_grad() = 0;
  [[nodiscard]] virtual GradientValues gradients(std::string_view name) = 0;
  [[nodiscard]] virtual Names parameter_names() = 0;
  /// Asks for the parameters and does nothing with them.
  [[nodiscard]] virtual std::size_t parameter_count() = 0;
  virtual void step() = 0;  ///< of AdamW
  /// Updates that the optimiser has applied to the parameters, one for each.
  [[nodiscard]] virtual std::vector<std::int64_t> steps_taken() = 0;
  [[nodiscard]] virtual std::size_t parameter_bytes() const = 0;
  [[nodiscard]] virtual std::uint64_t dropout_step() const = 0;
  virtual void set_dropout_step(std::uint64_t step) = 0;
  virtual void set_executor(Executor& executor) = 0;

  [[nodiscard]] virtual bool copyable() const = 0;
  /// Null where the weight cannot be copied.
  [[nodiscard]] virtual std::unique_ptr<AnyLayer> copy() const = 0;
};

/// One kind of layer over one kind of weight, of a small size with tails, and the linear map L(W, x) that it is,
/// by naive loops. The formulas of adapters over L are in support/layer_oracle.hpp.
class LayerCase {
 public:
  std::string name;
  std::string layer_name;  ///< in error messages
  double epsilon = 0;      ///< of the layer's scalar
  WeightStorage storage = WeightStorage::scalars;
  Index rank = 3;
  Index positions = 1;         ///< places of an output channel
  std::vector<Index> adapted;  ///< outputs that adapters adapt
  Rows w0;                     ///< out_features x in_features
  Rows bias0;                  ///< 1 x out_features, or empty
  bool by_row = true;          ///< rows may choose their adapters
  bool drops = true;           ///< dropout does something
  bool has_lora_bias = true;
  bool has_dx = true;
  bool mergeable = true;
  bool starts_from_weight = false;  ///< takes pissa, olora and orthogonal
  Index group = 0;                  ///< of QALoRA, if the layer takes it

  virtual ~LayerCase() = default;

  [[nodiscard]] virtual std::unique_ptr<AnyLayer> make(const LoraConfig& config, std::uint64_t seed) const = 0;
  [[nodiscard]] virtual Rows inputs(Index samples, std::uint64_t seed) const = 0;
  [[nodiscard]] virtual Index output_width() const = 0;
  [[nodiscard]] virtual Index longest_sum() const = 0;  ///< terms of an element of y, dW or dx, a few samples given

  /// Y = L(W, X)
  [[nodiscard]] virtual WideRows apply(const WideRows& w, const WideRows& x) const = 0;
  /// X' = the gradient of <dY, L(W, X)> by X
  [[nodiscard]] virtual WideRows adjoint(const WideRows& w, const WideRows& dy) const = 0;
  /// The gradient of <dY, L(W, X)> by W
  [[nodiscard]] virtual WideRows outer(const WideRows& dy, const WideRows& x) const = 0;
  /// B with zeros where an output does not see a row of A: out_features x rows of A
  [[nodiscard]] virtual WideRows spread(const WideRows& b, Index /*a_rows*/) const { return b; }
  /// The elements of such a matrix that are B's.
  [[nodiscard]] virtual WideRows gathered(const WideRows& spread_b, Index /*b_cols*/) const { return spread_b; }
  /// Column of A whose gradient stays as it is; -1 without.
  [[nodiscard]] virtual Index frozen_column() const { return -1; }
  /// Inputs of an adapter's mask: columns of x.
  [[nodiscard]] Index input_width() const { return inputs(1, 1).cols(); }

  /// Rounds to the layer's scalar.
  [[nodiscard]] Rows rounded(const Rows& m) const { return epsilon > 1e-10 ? Rows(m.cast<float>().cast<double>()) : m; }
  /// `w` after merging `delta` into it.
  [[nodiscard]] Rows merged(const Rows& w, const Rows& delta) const {
    if (storage == WeightStorage::scalars) return rounded(w + delta);
    Rows sum(w.rows(), w.cols());
    for (Index i = 0; i < w.size(); ++i) {
      const auto of = [i](const Rows& m) { return static_cast<float>(m.data()[i]); };
      sum.data()[i] = static_cast<double>(merged_half(storage, of(w), of(delta), 1.0F));
    }
    return sum;
  }
  /// The relative error of rounding to what the weight stores; 0 if that is the layer's scalar.
  [[nodiscard]] double storage_error() const {
    if (storage == WeightStorage::scalars) return 0;
    return storage == WeightStorage::f16 ? 0x1p-11 : 0x1p-9;
  }
  [[nodiscard]] Rows random(Index rows, Index cols, std::uint64_t seed, double bound = 1.0) const {
    return rounded(random_matrix<double>(rows, cols, seed, bound));
  }
  [[nodiscard]] Rows output_gradient(Index samples, std::uint64_t seed) const {
    return random(samples, output_width(), seed);
  }
};

using CasePointer = std::shared_ptr<const LayerCase>;
inline void PrintTo(const CasePointer& c, std::ostream* stream) { *stream << c->name; }  // NOLINT: the name is gtest's

std::vector<CasePointer> linear_cases();
std::vector<CasePointer> embedding_cases();
std::vector<CasePointer> conv_cases();

// Made once, not once for each law: a process that runs a single test registers them all.
[[nodiscard]] inline const std::vector<CasePointer>& all_layer_cases() {
  static const std::vector<CasePointer> cases = [] {
    std::vector<CasePointer> all = linear_cases();
    for (const auto& more : {embedding_cases(), conv_cases()}) all.insert(all.end(), more.begin(), more.end());
    return all;
  }();
  return cases;
}

/// A law that holds for every case: `LORA_LAYER_LAWS(Name)` in a file, then `TEST_P(Name, ...)` over `layer_case()`.
class LayerLaw : public ::testing::TestWithParam<CasePointer> {
 protected:
  [[nodiscard]] static const LayerCase& layer_case() { return *GetParam(); }
};

#define LORA_LAYER_LAWS(Suite)                                                         \
  class Suite : public testing::LayerLaw {};                                           \
  INSTANTIATE_TEST_SUITE_P(Of, Suite, ::testing::ValuesIn(testing::all_layer_cases()), \
                           [](const auto& tested) { return tested.param->name; })

/// Configurations that a case takes, all with options away from their neutral values.
struct NamedConfig {
  std::string name;
  LoraConfig config;
};

[[nodiscard]] inline std::vector<NamedConfig> configurations(const LayerCase& c) {
  const double alpha = 2.5 * static_cast<double>(c.rank);
  const bool has_bias = c.bias0.size() > 0;
  std::vector<NamedConfig> all;
  all.push_back({"plain", {.rank = c.rank, .alpha = alpha}});
  all.push_back({"rslora_dropout", {.rank = c.rank, .alpha = alpha, .dropout = 0.3, .use_rslora = true}});
  all.push_back({"dora", {.rank = c.rank, .alpha = alpha, .use_dora = true}});
  all.push_back({"dora_dropout_bias",
                 {.rank = c.rank,
                  .alpha = alpha,
                  .dropout = 0.4,
                  .use_dora = true,
                  .bias = has_bias ? BiasMode::all : BiasMode::none}});
  if (has_bias) {
    all.push_back({"bias", {.rank = c.rank, .alpha = alpha, .bias = BiasMode::lora_only}});
  }
  if (c.has_lora_bias) {
    all.push_back({"lora_bias_dropout_bias",
                   {.rank = c.rank,
                    .alpha = alpha,
                    .dropout = 0.25,
                    .lora_bias = true,
                    .bias = has_bias ? BiasMode::lora_only : BiasMode::none}});
  }
  if (c.group > 0) {
    const LoraConfig qalora{.rank = c.rank, .alpha = alpha, .use_qalora = true, .qalora_group_size = c.group};
    all.push_back({"qalora", qalora});
    all.push_back({"qalora_dropout_bias", qalora});
    all.back().config.dropout = 0.3;
    all.back().config.bias = has_bias ? BiasMode::all : BiasMode::none;
  }
  if (c.starts_from_weight) {
    for (const InitLoraWeights init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
      const std::string of = init == InitLoraWeights::pissa ? "pissa" : "olora";
      all.push_back({of, {.rank = c.rank, .alpha = alpha, .dropout = 0.2, .init_lora_weights = init}});
      all.push_back({of + "_dora", {.rank = c.rank, .alpha = alpha, .use_dora = true, .init_lora_weights = init}});
    }
  }
  return all;
}

/// Moves all that an adapter holds away from its start, and its scale from 1.
inline void disturb(const LayerCase& c, AnyLayer& layer, std::string_view name, std::uint64_t seed) {
  const AdapterValues v = layer.values(name);
  const auto around = [&](const Rows& m, std::uint64_t more, double bound) {
    return Rows(m + c.random(m.rows(), m.cols(), 97 * seed + more, bound));
  };
  layer.set_factors(name, around(v.A, 1, 0.5), around(v.B, 2, 0.5));
  if (v.lora_bias.size() > 0) layer.set_lora_bias(name, around(v.lora_bias, 3, 1.0));
  if (v.magnitude.size() > 0) layer.set_magnitude(name, around(v.magnitude, 4, 0.5));
  if (v.bias.size() > 0) layer.set_bias(name, around(v.bias, 5, 1.0));
  layer.set_scale(name, seed % 2 == 0 ? 0.75 : -1.25);
}

/// Different adapters that stand together in one layer of the case.
[[nodiscard]] inline std::vector<NamedConfig> company(const LayerCase& c) {
  const double alpha = 1.5 * static_cast<double>(c.rank);
  std::vector<NamedConfig> all;
  all.push_back({"first",
                 {.rank = c.rank,
                  .alpha = alpha,
                  .dropout = 0.2,
                  .lora_bias = c.has_lora_bias,
                  .bias = c.bias0.size() > 0 ? BiasMode::lora_only : BiasMode::none}});
  all.push_back({"second",
                 {.rank = 2 * c.rank,
                  .alpha = 3 * alpha,
                  .dropout = 0.5,
                  .use_rslora = true,
                  .use_qalora = c.group > 0,
                  .qalora_group_size = c.group}});
  all.push_back({"third", {.rank = c.rank, .alpha = -alpha, .lora_bias = c.has_lora_bias}});
  return all;
}
[[nodiscard]] inline std::vector<NamedConfig> company_with_dora(const LayerCase& c) {
  auto all = company(c);
  const double alpha = 1.5 * static_cast<double>(c.rank);
  all.push_back({"dora", {.rank = c.rank, .alpha = alpha, .use_dora = true}});
  all.push_back({"other_dora", {.rank = c.rank, .alpha = 2 * alpha, .dropout = 0.3, .use_dora = true}});
  return all;
}

/// A layer of no adapters, and then these, disturbed and active in their order.
[[nodiscard]] inline std::unique_ptr<AnyLayer> layer_with(const LayerCase& c,
                                                          const std::vector<NamedConfig>& adapters) {
  auto layer = c.make({.rank = 0}, 1);
  Names active;
  for (const auto& [name, config] : adapters) {
    layer->add(name, config, 11 + active.size());
    active.push_back(name);
  }
  for (std::size_t i = 0; i < active.size(); ++i) disturb(c, *layer, active[i], 31 + i);
  layer->set_adapters(active);
  return layer;
}
[[nodiscard]] inline Names names_of(const std::vector<NamedConfig>& adapters) {
  Names names;
  for (const auto& adapter : adapters) names.push_back(adapter.name);
  return names;
}

}  // namespace lora::testing
