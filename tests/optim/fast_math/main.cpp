// SPDX-License-Identifier: MIT
// Compiled with -ffast-math, under which the compiler takes every number for a finite one: the library must still
// refuse infinite and NaN options and gradients.
#include <bit>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "lora/adapter/config.hpp"
#include "lora/core/error.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/optim/adamw.hpp"
#include "lora/optim/clip.hpp"
#include "lora/optim/lora_plus.hpp"
#include "lora/optim/schedule.hpp"
#include "lora/optim/sgd.hpp"

#if !defined(__FINITE_MATH_ONLY__) || __FINITE_MATH_ONLY__ != 1
#error "compile this with -ffast-math"
#endif

namespace {

int failures = 0;

template <class Call>
void expect_refusal(const char* what, double bad, const Call& call) {
  try {
    call();
  } catch (const lora::Error&) {
    return;
  }
  std::printf("%s: %016llx is accepted\n", what, static_cast<unsigned long long>(std::bit_cast<std::uint64_t>(bad)));
  ++failures;
}

struct TwoNumbers {
  lora::Trainable<float> trainable;
  std::vector<lora::Parameter<float>> parameters;

  TwoNumbers() {
    trainable.value = lora::Matrix<float>::Ones(1, 2);
    parameters = {trainable.parameter("p", lora::ParameterRole::lora_B)};
  }
};

template <class Scalar>
void check_optimisers(double bad) {
  expect_refusal("AdamW learning_rate", bad, [&] { lora::AdamW<Scalar>({.learning_rate = bad}); });
  expect_refusal("AdamW beta1", bad, [&] { lora::AdamW<Scalar>({.beta1 = bad}); });
  expect_refusal("AdamW beta2", bad, [&] { lora::AdamW<Scalar>({.beta2 = bad}); });
  expect_refusal("AdamW epsilon", bad, [&] { lora::AdamW<Scalar>({.epsilon = bad}); });
  expect_refusal("AdamW weight_decay", bad, [&] { lora::AdamW<Scalar>({.weight_decay = bad}); });
  expect_refusal("AdamW set_learning_rate", bad, [&] { lora::AdamW<Scalar>().set_learning_rate(bad); });
  expect_refusal("SGD learning_rate", bad, [&] { lora::SGD<Scalar>({.learning_rate = bad}); });
  expect_refusal("SGD momentum", bad, [&] { lora::SGD<Scalar>({.momentum = bad}); });
  expect_refusal("SGD dampening", bad, [&] { lora::SGD<Scalar>({.dampening = bad}); });
  expect_refusal("SGD weight_decay", bad, [&] { lora::SGD<Scalar>({.weight_decay = bad}); });
}

void check_parameters(double bad) {
  TwoNumbers numbers;
  expect_refusal("lora_plus ratio", bad, [&] { lora::lora_plus(numbers.parameters, bad); });
  numbers.parameters.front().set_learning_rate_scale(bad);
  expect_refusal("learning_rate_scale", bad, [&] { lora::SGD<float>().step(numbers.parameters); });
  numbers.trainable.gradient(0, 1) = static_cast<float>(bad);
  expect_refusal("clip_gradient_norm", bad, [&] { lora::clip_gradient_norm(numbers.parameters, 1.0); });
  expect_refusal("WarmupCosine", bad, [&] { lora::WarmupCosine({.learning_rate = bad}); });
}

void check_layer_options(double bad) {
  expect_refusal("alpha", bad, [&] { lora::check_config("test", {.rank = 2, .alpha = bad}); });
  expect_refusal("dropout", bad, [&] { lora::check_config("test", {.rank = 2, .dropout = bad}); });
  expect_refusal("scaling", bad, [&] {
    if (!lora::detail::same_scaling(bad, 1)) throw lora::ConfigError("test", "scaling", "1", "another");
  });
}

}  // namespace

int main() {
  constexpr std::uint64_t infinity = 0x7ff0000000000000U;
  constexpr std::uint64_t quiet_nan = 0x7ff8000000000000U;
  constexpr std::uint64_t sign = 0x8000000000000000U;
  for (const std::uint64_t bits : {infinity, infinity | sign, quiet_nan, quiet_nan | sign}) {
    const auto bad = std::bit_cast<double>(bits);
    check_optimisers<float>(bad);
    check_optimisers<double>(bad);
    check_parameters(bad);
    check_layer_options(bad);
  }
  if (failures == 0) std::puts("every infinity and NaN is refused");
  return failures == 0 ? 0 : 1;
}
