// SPDX-License-Identifier: MIT
// What every layer answers: the frozen layer at first, then the dense formula of its adapters, forward and backward.
#include <cmath>
#include <gtest/gtest.h>

#include "lora/core/error.hpp"
#include "support/bits.hpp"
#include "support/layer_cases.hpp"
#include "support/layer_oracle.hpp"
#include "support/thread_executor.hpp"

namespace lora::answer_law_test {
namespace {

using namespace testing;

constexpr Index samples = 7;

LORA_LAYER_LAWS(Answers);

TEST_P(Answers, ANewLayerIsTheFrozenLayerBitForBit) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto frozen = c.make({.rank = 0}, 1);
  const Rows y = frozen->infer(x);
  expected(c, {}, x, Rows()).check_y(y);
  for (const auto& [name, config] : configurations(c)) {
    SCOPED_TRACE(name);
    const auto layer = c.make(config, 5);
    EXPECT_TRUE(same_bits(layer->weight(), c.w0));
    const auto pass = layer->pass(x);
    pass->infer();
    if (takes_from_weight(config.init_lora_weights)) {
      // s (B A - B0 A0) is zero up to rounding.
      expected(c, adapters_of(*layer, layer->names()), x, Rows()).check_y(pass->y());
      EXPECT_TRUE(same_bits(layer->values("default").A, layer->values("default").A0));
      continue;
    }
    // The factors m / n of a start differ from 1 by no more than the rounding of m to the scalar.
    if (config.use_dora) {
      expected(c, adapters_of(*layer, layer->names()), x, Rows()).check_y(pass->y());
      EXPECT_LE((pass->y() - y).cwiseAbs().maxCoeff(),
                c.epsilon * static_cast<double>(c.longest_sum()) * (1 + y.cwiseAbs().maxCoeff()));
      continue;
    }
    EXPECT_TRUE(same_bits(pass->y(), y));
    EXPECT_TRUE(same_bits(layer->infer(x), y));
    if (config.dropout == 0) {
      EXPECT_TRUE(same_bits(layer->forward(x), y));
    }
  }
}

// What training does with no adapter: the gradient of the frozen layer, and nothing to train.
TEST_P(Answers, WithoutAdaptersBackwardIsThatOfTheFrozenLayer) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const auto frozen = c.make({.rank = 0}, 1);
  EXPECT_EQ(frozen->parameter_count(), 0U);
  const auto pass = frozen->pass(x);
  pass->set_dy(c.output_gradient(samples, 4));
  pass->forward();
  pass->backward();
  const auto answer = expected(c, {}, x, c.output_gradient(samples, 4));
  answer.check_y(pass->y());
  if (c.has_dx) answer.check_dx(pass->dx());
}

TEST_P(Answers, AgreeWithTheDenseFormulaForwardAndBackward) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  const Rows dy = c.output_gradient(samples, 4);
  for (const auto& [name, config] : configurations(c)) {
    for (const Order order : {Order::rows, Order::columns}) {
      SCOPED_TRACE(name);
      const auto layer = c.make(config, 5);
      disturb(c, *layer, "default", order == Order::rows ? 8 : 9);
      const auto adapters = adapters_of(*layer, layer->names());
      const auto pass = layer->pass(x, order);
      pass->infer();
      expected(c, adapters, x, dy).check_y(pass->y());

      const auto trained = expected(c, adapters, x, dy, masks_of(c, adapters, samples, {6, 100}));
      pass->set_position(6, 100);
      pass->set_dy(dy);
      pass->forward();
      trained.check_y(pass->y());
      pass->backward();
      trained.check(pass->gradients());
      if (c.has_dx) trained.check_dx(pass->dx());

      // Without dX the same gradients, which are added.
      const auto once = pass->gradients();
      pass->renew_gradients();
      pass->accumulate();
      EXPECT_TRUE(same_bits(pass->gradients()[0].A, once[0].A));
      EXPECT_TRUE(same_bits(pass->gradients()[0].B, once[0].B));
      EXPECT_TRUE(same_bits(pass->gradients()[0].magnitude, once[0].magnitude));
      EXPECT_TRUE(same_bits(pass->gradients()[0].lora_bias, once[0].lora_bias));
      EXPECT_TRUE(same_bits(pass->gradients()[0].bias, once[0].bias));
      pass->accumulate();
      const auto twice = pass->gradients()[0];
      const double size = 1 + once[0].A.cwiseAbs().maxCoeff();
      EXPECT_LE((twice.A - 2 * once[0].A).cwiseAbs().maxCoeff(), 16 * samples * c.epsilon * size);
    }
  }
}

// The form in which the layer remembers the pass gives the bits of the explicit form.
TEST_P(Answers, BothFormsOfAPassGiveTheSameBits) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  for (const auto& [name, config] : configurations(c)) {
    SCOPED_TRACE(name);
    const auto layer = c.make(config, 5);
    disturb(c, *layer, "default", 8);
    const auto pass = layer->pass(x);
    pass->set_dy(c.output_gradient(samples, 4));
    for (const std::uint64_t step : {0U, 1U}) {
      pass->set_position(step, 0);
      pass->renew_gradients();
      pass->forward();
      pass->backward();
      const Rows y = pass->y();
      const Rows dx = pass->dx();
      const auto gradients = pass->gradients()[0];
      pass->fill_y(9);
      layer->zero_grad();
      pass->remembered_forward();
      EXPECT_TRUE(same_bits(pass->y(), y));
      pass->remembered_backward();
      if (c.has_dx) {
        EXPECT_TRUE(same_bits(pass->dx(), dx));
      }
      EXPECT_TRUE(same_bits(layer->gradients("default").A, gradients.A));
      EXPECT_TRUE(same_bits(layer->gradients("default").B, gradients.B));
      EXPECT_TRUE(same_bits(layer->gradients("default").magnitude, gradients.magnitude));
      EXPECT_TRUE(same_bits(layer->gradients("default").lora_bias, gradients.lora_bias));
      EXPECT_TRUE(same_bits(layer->gradients("default").bias, gradients.bias));
      layer->zero_grad();
      pass->remembered_accumulate();
      EXPECT_TRUE(same_bits(layer->gradients("default").A, gradients.A));
    }
  }
}

// Central differences of <dY, Y>, which is linear in every single parameter and input: only rounding differs, of a
// difference of sums of the size |<dY, Y>|, over the step. Norms of DoRA count as constants, so that A and B are left
// out.
TEST_P(Answers, GradientsAreFiniteDifferences) {
  const LayerCase& c = layer_case();
  if (c.epsilon > 1e-10) GTEST_SKIP() << "in double";
  const Rows x = c.inputs(samples, 3);
  const Rows dy = c.output_gradient(samples, 4);
  constexpr double step = 0x1p-6;
  for (const auto& [name, config] : configurations(c)) {
    SCOPED_TRACE(name);
    const auto layer = c.make(config, 5);
    disturb(c, *layer, "default", 8);
    const auto pass = layer->pass(x);
    pass->set_dy(dy);
    pass->set_position(3, 0);
    double size = 0;
    const auto loss = [&] {
      pass->forward();
      size = std::max(size, pass->y().cwiseAbs().cwiseProduct(dy.cwiseAbs()).sum());
      return pass->y().cwiseProduct(dy).sum();
    };
    loss();
    pass->backward();
    const auto g = pass->gradients()[0];
    const Rows dx = pass->dx();
    const AdapterValues at = layer->values("default");
    const auto check = [&](const Rows& value, const Rows& gradient, const char* what, const auto& set) {
      for (Index k = 0; k < value.size(); k += 5) {
        Rows moved = value;
        moved.data()[k] = value.data()[k] + step;
        set(moved);
        const double above = loss();
        moved.data()[k] = value.data()[k] - step;
        set(moved);
        const double below = loss();
        const double bound = static_cast<double>(c.longest_sum() + samples * c.positions) * c.epsilon * size * 4 / step;
        EXPECT_NEAR((above - below) / (2 * step), gradient.data()[k], bound) << what << k;
      }
      set(value);
    };
    if (!config.use_dora) {
      if (c.frozen_column() < 0) {
        check(at.A, g.A, "A", [&](const Rows& v) { layer->set_factors("default", v, at.B); });
      }
      check(at.B, g.B, "B", [&](const Rows& v) { layer->set_factors("default", at.A, v); });
    }
    check(at.lora_bias, g.lora_bias, "lora_bias", [&](const Rows& v) { layer->set_lora_bias("default", v); });
    check(at.bias, g.bias, "bias", [&](const Rows& v) { layer->set_bias("default", v); });
    check(at.magnitude, g.magnitude, "magnitude", [&](const Rows& v) { layer->set_magnitude("default", v); });
    if (c.has_dx) check(x, dx, "x", [&](const Rows& v) { pass->set_x(v); });
  }
}

// One sample's answer depends neither on the others, nor on the storage order, nor on the number of workers.
TEST_P(Answers, BitsDependOnNeitherTheBatchNorItsOrderNorTheWorkers) {
  const LayerCase& c = layer_case();
  const Rows x = c.inputs(samples, 3);
  ThreadExecutor threads(3);
  const auto layer = layer_with(c, company_with_dora(c));
  const auto pass = layer->pass(x);
  pass->set_dy(c.output_gradient(samples, 4));
  pass->infer();
  const Rows inferred = pass->y();
  pass->set_position(2, 0);
  pass->forward();
  pass->backward();

  const auto columns = layer->pass(x, Order::columns);
  columns->set_dy(c.output_gradient(samples, 4));
  columns->set_executor(threads);
  columns->infer();
  EXPECT_TRUE(same_bits(columns->y(), inferred));
  columns->set_position(2, 0);
  columns->forward();
  EXPECT_TRUE(same_bits(columns->y(), pass->y()));
  columns->backward();
  EXPECT_TRUE(same_bits(columns->dx(), pass->dx()));
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_TRUE(same_bits(columns->gradients()[i].A, pass->gradients()[i].A)) << i;
    EXPECT_TRUE(same_bits(columns->gradients()[i].B, pass->gradients()[i].B)) << i;
    EXPECT_TRUE(same_bits(columns->gradients()[i].magnitude, pass->gradients()[i].magnitude)) << i;
  }
  const Rows y = pass->y();
  const Rows dx = pass->dx();
  for (const Index row : {Index{0}, Index{3}, samples - 1}) {
    const auto alone = layer->pass(x.middleRows(row, 1));
    alone->infer();
    EXPECT_TRUE(same_bits(alone->y(), inferred.middleRows(row, 1))) << row;
    alone->set_position(2, row);  // a part of the whole batch's mask
    alone->set_dy(c.output_gradient(samples, 4).middleRows(row, 1));
    alone->forward();
    EXPECT_TRUE(same_bits(alone->y(), y.middleRows(row, 1))) << row;
    alone->backward();
    if (c.has_dx) {
      EXPECT_TRUE(same_bits(alone->dx(), dx.middleRows(row, 1))) << row;
    }
  }
  const auto none = layer->pass(x.topRows(0));
  none->infer();
  EXPECT_EQ(none->y().rows(), 0);
}

// The start of pissa and olora: W0 is never written, and the update at the start is nothing.
TEST_P(Answers, StartsFromTheWeightLeaveItAsItIs) {
  const LayerCase& c = layer_case();
  if (!c.starts_from_weight) {
    const auto layer = c.make({.rank = 0}, 1);
    if (c.layer_name == "LoraEmbedding") GTEST_SKIP() << "every start of an embedding is the first one, as in PEFT";
    EXPECT_THROW(layer->add("a", {.rank = c.rank, .init_lora_weights = InitLoraWeights::pissa}, 1), ConfigError);
    return;
  }
  const Rows x = c.inputs(samples, 3);
  for (const InitLoraWeights init : {InitLoraWeights::pissa, InitLoraWeights::olora}) {
    const auto layer = c.make({.rank = c.rank, .alpha = 5, .init_lora_weights = init}, 7);
    EXPECT_TRUE(same_bits(layer->base_weight(), c.w0));
    EXPECT_TRUE(same_bits(layer->values("default").B0, layer->values("default").B));
    const double norms = layer->values("default").A.norm() * layer->values("default").B.norm();
    EXPECT_LE(layer->delta_weight("default").norm(), static_cast<double>(4 * c.rank) * 5 * c.epsilon * norms);
    // A new A and B are measured against the start.
    layer->set_factors("default", Rows::Zero(c.rank, c.w0.cols()), Rows::Zero(c.w0.rows(), c.rank));
    const AdapterValues v = layer->values("default");
    const Rows gone = -v.scaling * v.B0 * v.A0;
    EXPECT_LE((layer->delta_weight("default") - gone).norm(), static_cast<double>(4 * c.rank) * c.epsilon * norms * 5);
    EXPECT_GT(gone.norm(), 0.1);
    layer->unload();
    EXPECT_TRUE(same_bits(layer->weight(), c.w0));
  }
}

}  // namespace
}  // namespace lora::answer_law_test
