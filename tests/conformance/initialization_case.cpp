// SPDX-License-Identifier: MIT
// Initialisations that take A and B from the weight. PEFT leaves the rest of it in the layer; here W0 stays.
#include <cstdlib>
#include <string>

#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/layers/linear.hpp"

namespace lora::conformance {
namespace initialization_case {
namespace {

// "pissa", "pissa_niter_<n>" or "olora".
void read_init(const std::string& name, LoraConfig& config) {
  const std::string iterations = "pissa_niter_";
  if (name == "olora") {
    config.init_lora_weights = InitLoraWeights::olora;
  } else if (name == "pissa") {
    config.init_lora_weights = InitLoraWeights::pissa;
  } else if (name.starts_with(iterations)) {
    config.init_lora_weights = InitLoraWeights::pissa;
    config.pissa_niter = std::atoi(name.c_str() + iterations.size());
  } else {
    throw UnknownCase("unknown init_lora_weights " + name);
  }
}

template <class Scalar>
void check(GoldenCase& golden, Comparison& comparison) {
  auto options = golden.nested("lora");
  LoraConfig config;
  config.rank = options.get<Index>("r");
  config.alpha = options.get<double>("lora_alpha");
  config.use_rslora = options.get<bool>("use_rslora", false);
  read_init(options.get<std::string>("init_lora_weights"), config);
  options.finish();

  const auto base = golden.matrix<Scalar>("base.weight");
  const LoraLinear<Scalar> layer(base, config, 1);
  const auto theirs_A = golden.matrix<Scalar>("param.lora_A");
  const auto theirs_B = golden.matrix<Scalar>("param.lora_B");
  const double bound = Comparison::svd_bound;
  const auto& start = layer.adapter("default").start;
  const Matrix<Scalar> taken = layer.scaling() * (start.B * start.A);
  comparison.close<Scalar>("the product B A", layer.lora_B() * layer.lora_A(), theirs_B * theirs_A, bound);
  comparison.close<Scalar>("residual_weight", layer.base_weight() - taken, golden.matrix<Scalar>("residual_weight"),
                           bound);
  comparison.equal("W0, bit for bit", layer.weight() == base, true);
  comparison.close<Scalar>("delta before training", layer.delta_weight(),
                           Matrix<Scalar>::Zero(base.rows(), base.cols()), Comparison::rounding_bound<Scalar>,
                           static_cast<double>(taken.norm()));
  comparison.close<Scalar>("lora_A up to sign", layer.lora_A().cwiseAbs(), theirs_A.cwiseAbs(), bound);
  comparison.close<Scalar>("lora_B up to sign", layer.lora_B().cwiseAbs(), theirs_B.cwiseAbs(), bound);
}

}  // namespace
}  // namespace initialization_case

void check_initialization(GoldenCase& golden, Comparison& comparison) {
  with_scalar(golden, [&](auto zero) { initialization_case::check<decltype(zero)>(golden, comparison); });
}

}  // namespace lora::conformance
