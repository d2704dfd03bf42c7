// SPDX-License-Identifier: MIT
// What a layer with any adapters must answer, from the dense formula of each, and how far rounding may carry it.
#pragma once

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "lora/adapter/dropout.hpp"
#include "support/layer_cases.hpp"

namespace lora::testing {

struct WideGradients {
  WideRows A, B, lora_bias, bias, magnitude;
};
struct WideAnswer {
  WideRows y, dx;
  std::vector<WideGradients> gradients;  ///< of each adapter
};

/// Factors on the inputs of each adapter: 0 or 1 / (1 - p); none at all without dropout.
using Masks = std::vector<WideRows>;

/// The masks of adapters over a batch at this place of their sequences.
[[nodiscard]] inline Masks masks_of(const LayerCase& c, const std::vector<AdapterValues>& adapters, Index samples,
                                    DropoutPosition position) {
  Masks masks;
  SerialExecutor executor;
  for (const AdapterValues& adapter : adapters) {
    WideRows mask = WideRows::Ones(samples, c.input_width());
    if (c.drops && adapter.config.dropout > 0) {
      DropoutBits bits;
      bits.draw(adapter.config.dropout, adapter.seed, position, samples, c.input_width(), executor);
      const auto keep = bits.mask<double>(adapter.config.dropout);
      const Wide kept = 0x1p32L / (0x1p32L - static_cast<Wide>(lora::detail::drop_threshold(adapter.config.dropout)));
      for (Index i = 0; i < mask.rows(); ++i)
        for (Index j = 0; j < mask.cols(); ++j) {
          mask(i, j) = keep.keeps(i, j) ? kept : Wide(0);
        }
    }
    masks.push_back(mask);
  }
  return masks;
}

namespace detail {

/// Plain numbers, or their absolute values with every minus a plus: the sums that rounding errors scale with.
struct Signs {
  bool magnitudes;
  [[nodiscard]] WideRows of(const Rows& m) const {
    const WideRows wide = m.cast<Wide>();
    return magnitudes ? WideRows(wide.cwiseAbs()) : wide;
  }
  [[nodiscard]] Wide of(double x) const { return magnitudes ? std::abs(static_cast<Wide>(x)) : static_cast<Wide>(x); }
  [[nodiscard]] Wide minus() const { return magnitudes ? 1 : -1; }
};

/// P of QALoRA, the identity of other adapters: P(q, j) = (inputs / g) / g for the inputs j of group q.
[[nodiscard]] inline WideRows pooling(const LoraConfig& config, Index inputs) {
  if (!config.use_qalora) return WideRows::Identity(inputs, inputs);
  const Index g = config.qalora_group_size;
  WideRows p = WideRows::Zero(inputs / g, inputs);
  for (Index j = 0; j < inputs; ++j) p(j / g, j) = static_cast<Wide>(inputs / g) / static_cast<Wide>(g);
  return p;
}

[[nodiscard]] inline WideRows delta_of(const LayerCase& c, const AdapterValues& a, Signs signs) {
  WideRows delta = WideRows::Zero(c.w0.rows(), c.w0.cols());
  if (a.A.rows() == 0) return delta;
  delta = c.spread(signs.of(a.B), a.A.rows()) * signs.of(a.A) * pooling(a.config, c.w0.cols());
  if (a.A0.size() > 0) delta += signs.minus() * c.spread(signs.of(a.B0), a.A0.rows()) * signs.of(a.A0);
  return signs.of(a.scaling) * delta;
}

[[nodiscard]] inline WideRows row_scaled(const WideRows& row, const WideRows& m) {
  return row.transpose().asDiagonal() * m;
}

}  // namespace detail

/// The exact answer. For the i-th adapter, with x~ = mask_i (.) x, M = W + s (B A P - B0 A0) and f = 1 or DoRA's m / n,
///   Y += L(f (.) M, x~) - L(W, x~) + s lora_bias,
/// and gradients follow with n a constant; none where dY is empty. With `magnitudes` the same over absolute values,
/// with the exact norms.
[[nodiscard]] inline WideAnswer exact_answer(const LayerCase& c, const std::vector<AdapterValues>& adapters,
                                             const Rows& bias, const Rows& x_given, const Rows& dy_given,
                                             const Masks& masks, bool magnitudes = false) {
  const detail::Signs signs{magnitudes};
  const bool looks_up = !c.has_dx;  // x are ids
  const WideRows x = looks_up ? WideRows(x_given.cast<Wide>()) : signs.of(x_given);
  const WideRows w = signs.of(c.w0), dy = signs.of(dy_given);
  const Index outputs = c.bias0.size() > 0 ? c.bias0.cols() : c.w0.rows();
  WideAnswer answer;
  answer.y = c.apply(w, x);
  const auto add_to_outputs = [&](Index output, Wide value) {
    for (Index q = 0; q < c.positions; ++q) answer.y.col(output * c.positions + q).array() += value;
  };
  if (bias.size() > 0) {
    for (Index o = 0; o < outputs; ++o) add_to_outputs(o, signs.of(bias(0, o)));
  }
  const bool differentiates = dy.rows() > 0;
  if (differentiates && c.has_dx) answer.dx = c.adjoint(w, dy);
  WideRows sums = WideRows::Zero(1, outputs);
  if (differentiates && (c.bias0.size() > 0 || c.has_lora_bias)) {
    for (Index o = 0; o < outputs; ++o) sums(0, o) = dy.middleCols(o * c.positions, c.positions).sum();
  }

  for (std::size_t i = 0; i < adapters.size(); ++i) {
    const AdapterValues& a = adapters[i];
    const Wide s = signs.of(a.scaling);
    const WideRows mask = i < masks.size() ? masks[i] : WideRows::Ones(x.rows(), x.cols());
    const WideRows dropped = looks_up ? x : WideRows(x.cwiseProduct(mask));
    const WideRows delta = detail::delta_of(c, a, signs);
    const WideRows sum = w + delta;
    WideRows f = WideRows::Ones(1, w.rows());
    WideRows norms = f;
    const bool dora = a.magnitude.size() > 0;
    if (dora) {
      const WideRows exact = c.w0.cast<Wide>() + detail::delta_of(c, a, {false});
      for (std::size_t j = 0; j < c.adapted.size(); ++j) {
        const Index output = c.adapted[j];
        norms(0, output) = exact.row(output).norm();
        f(0, output) = signs.of(a.magnitude(0, static_cast<Index>(j))) / norms(0, output);
      }
    }
    const WideRows scaled = detail::row_scaled(f, sum);
    if (dora) {
      answer.y += c.apply(scaled, dropped) + signs.minus() * c.apply(w, dropped);
    } else {
      answer.y += c.apply(delta, dropped);
    }
    for (std::size_t j = 0; j < c.adapted.size() && a.lora_bias.size() > 0; ++j) {
      add_to_outputs(c.adapted[j], s * signs.of(a.lora_bias(0, static_cast<Index>(j))));
    }
    if (!differentiates) continue;
    WideGradients g;
    const WideRows outer = c.outer(dy, dropped);
    const WideRows scaled_outer = detail::row_scaled(f, outer);
    if (a.A.rows() > 0) {
      const WideRows b = c.spread(signs.of(a.B), a.A.rows());
      const WideRows p = detail::pooling(a.config, c.w0.cols());
      g.A = s * b.transpose() * scaled_outer * p.transpose();
      if (c.frozen_column() >= 0) g.A.col(c.frozen_column()).setZero();
      g.B = c.gathered(WideRows(s * scaled_outer * (signs.of(a.A) * p).transpose()), a.B.cols());
      if (c.has_dx) {
        const WideRows seen =
            dora ? WideRows(c.adjoint(scaled, dy) + signs.minus() * c.adjoint(w, dy)) : c.adjoint(delta, dy);
        answer.dx += seen.cwiseProduct(mask);
      }
    }
    g.magnitude = WideRows::Zero(1, a.magnitude.size());
    g.lora_bias = WideRows::Zero(1, a.lora_bias.size());
    for (std::size_t j = 0; j < c.adapted.size(); ++j) {
      const auto at = static_cast<Index>(j);
      const Index output = c.adapted[j];
      if (dora) g.magnitude(0, at) = outer.row(output).cwiseProduct(sum.row(output)).sum() / norms(0, output);
      if (a.lora_bias.size() > 0) g.lora_bias(0, at) = s * sums(0, output);
    }
    if (a.bias.size() > 0) g.bias = sums;
    answer.gradients.push_back(g);
  }
  return answer;
}

/// The answer of a layer as it stands, by its active adapters and those that are merged.
struct Expected {
  WideAnswer exact, size;
  double bound;              ///< relative to `size`
  double storage_error = 0;  ///< the same, of rounding all adapters into the weight

  [[nodiscard]] ::testing::AssertionResult near(const Rows& got, const WideRows& value, const WideRows& magnitude,
                                                const char* what) const {
    if (value.size() == 0 && got.size() == 0) return ::testing::AssertionSuccess();
    if (got.rows() != value.rows() || got.cols() != value.cols()) {
      return ::testing::AssertionFailure() << what << " of shape " << got.rows() << " x " << got.cols() << ", expected "
                                           << value.rows() << " x " << value.cols();
    }
    for (Index i = 0; i < got.rows(); ++i) {
      for (Index j = 0; j < got.cols(); ++j) {
        const Wide error = std::abs(static_cast<Wide>(got(i, j)) - value(i, j));
        if (error <= bound * magnitude(i, j)) continue;
        return ::testing::AssertionFailure() << what << "(" << i << ", " << j << "): " << got(i, j) << ", expected "
                                             << value(i, j) << " within " << bound * magnitude(i, j);
      }
    }
    return ::testing::AssertionSuccess();
  }
  void check_y(const Rows& y) const { EXPECT_TRUE(near(y, exact.y, size.y, "y")); }
  /// The answer of a weight that adapters are merged into; each is rounded to what the weight stores.
  [[nodiscard]] Expected of_merged() const {
    Expected merged = *this;
    merged.bound += storage_error;
    return merged;
  }
  void check_merged_y(const Rows& y) const { of_merged().check_y(y); }
  void check_dx(const Rows& dx) const { EXPECT_TRUE(near(dx, exact.dx, size.dx, "dx")); }
  void check(std::size_t i, const GradientValues& got) const {
    const WideGradients& e = exact.gradients.at(i);
    const WideGradients& m = size.gradients.at(i);
    EXPECT_TRUE(near(got.A, e.A, m.A, "dA")) << i;
    EXPECT_TRUE(near(got.B, e.B, m.B, "dB")) << i;
    EXPECT_TRUE(near(got.lora_bias, e.lora_bias, m.lora_bias, "dlora_bias")) << i;
    EXPECT_TRUE(near(got.bias, e.bias, m.bias, "dbias")) << i;
    EXPECT_TRUE(near(got.magnitude, e.magnitude, m.magnitude, "dmagnitude")) << i;
  }
  void check(const std::vector<GradientValues>& got) const {
    ASSERT_EQ(got.size(), exact.gradients.size());
    for (std::size_t i = 0; i < got.size(); ++i) check(i, got[i]);
  }
};

[[nodiscard]] inline std::vector<AdapterValues> adapters_of(const AnyLayer& layer, const Names& names) {
  std::vector<AdapterValues> values;
  for (const std::string& name : names) values.push_back(layer.values(name));
  return values;
}
/// The bias of the frozen layer, or that of the first of these that trains it.
[[nodiscard]] inline Rows bias_beside(const LayerCase& c, const std::vector<AdapterValues>& adapters) {
  for (const AdapterValues& a : adapters) {
    if (a.bias.size() > 0) return a.bias;
  }
  return c.bias0;
}

/// The bound of a sum of `longest_sum` products, with each factor rounded some times (Higham, Accuracy and Stability of
/// Numerical Algorithms, section 3.1): the ranks in between, scaling, mask, and norms of DoRA, which lose what two
/// terms of a square lose.
[[nodiscard]] inline Expected expected(const LayerCase& c, const std::vector<AdapterValues>& adapters, const Rows& bias,
                                       const Rows& x, const Rows& dy, const Masks& masks = {}) {
  Index terms = c.longest_sum() + x.rows() * c.positions + 24;
  for (const AdapterValues& a : adapters) {
    terms += 2 * a.A.rows() + 2 * a.A0.rows() + a.config.group_size();
    if (a.magnitude.size() > 0) terms += 2 * c.longest_sum();
  }
  return {exact_answer(c, adapters, bias, x, dy, masks), exact_answer(c, adapters, bias, x, dy, masks, true),
          c.epsilon * static_cast<double>(terms), c.storage_error() * static_cast<double>(adapters.size())};
}
[[nodiscard]] inline Expected expected(const LayerCase& c, const std::vector<AdapterValues>& adapters, const Rows& x,
                                       const Rows& dy, const Masks& masks = {}) {
  return expected(c, adapters, bias_beside(c, adapters), x, dy, masks);
}

}  // namespace lora::testing
