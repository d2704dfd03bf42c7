// SPDX-License-Identifier: MIT
// Combinations of three adapters of one linear layer, compared with PEFT's add_weighted_adapter.
#include <string>
#include <vector>

#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/model/combine.hpp"

namespace lora::conformance {
namespace combine_case {
namespace {

template <class Scalar>
AdapterWeights<Scalar> read_adapter(GoldenCase& golden, std::size_t i, Index rank, double alpha) {
  const std::string prefix = "a" + std::to_string(i) + ".";
  ModuleWeights<Scalar> module;
  module.A = golden.matrix<Scalar>(prefix + "lora_A");
  module.B = golden.matrix<Scalar>(prefix + "lora_B");
  module.scaling = alpha / static_cast<double>(rank);
  AdapterWeights<Scalar> state;
  state.modules.emplace("layer", std::move(module));
  return state;
}

CombineOptions read_options(Options& options) {
  CombineOptions result;
  const auto name = options.get<std::string>("combination_type");
  const auto type = parse_combination_type(name);
  if (!type) throw UnknownCase("unknown combination_type " + name);
  result.combination_type = *type;
  if (options.contains("density")) result.density = options.get<double>("density");
  if (options.contains("svd_rank")) result.svd_rank = options.get<Index>("svd_rank");
  if (options.contains("svd_clamp")) result.svd_clamp = options.get<double>("svd_clamp");
  const auto sign = options.get<std::string>("majority_sign_method", "total");
  if (sign != "total" && sign != "frequency") throw UnknownCase("unknown majority_sign_method " + sign);
  result.majority_sign_method = sign == "total" ? MajoritySign::total : MajoritySign::frequency;
  result.compatibility = Compatibility::peft;
  return result;
}

template <class Scalar>
void check(GoldenCase& golden, Comparison& comparison) {
  auto shape = golden.nested("layer");
  auto options = golden.nested("lora");
  const auto ranks = options.get<std::vector<Index>>("ranks");
  const auto alphas = options.get<std::vector<double>>("alphas");
  const auto weights = options.get<std::vector<double>>("weights");
  const CombineOptions how = read_options(options);
  std::vector<AdapterWeights<Scalar>> adapters;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    adapters.push_back(read_adapter<Scalar>(golden, i, ranks[i], alphas.at(i)));
  }
  std::vector<WeightedAdapter<Scalar>> weighted;
  for (std::size_t i = 0; i < ranks.size(); ++i) weighted.push_back({&adapters[i], weights.at(i)});

  const auto mixed = combine_adapters<Scalar>(weighted, how).modules.at("layer");
  const auto theirs_A = golden.matrix<Scalar>("mix.lora_A");
  const auto theirs_B = golden.matrix<Scalar>("mix.lora_B");
  const auto their_scaling = options.get<double>("mix_scaling");
  options.finish();
  comparison.equal("in_features", mixed.A.cols(), shape.get<Index>("in_features"));
  comparison.equal("out_features", mixed.B.rows(), shape.get<Index>("out_features"));
  shape.finish();

  comparison.equal("rank", mixed.rank(), theirs_A.rows());
  comparison.close<double>("mix_scaling", Matrix<double>::Constant(1, 1, mixed.scaling),
                           Matrix<double>::Constant(1, 1, their_scaling));
  const Matrix<double> delta = mixed.scaling * (mixed.B.template cast<double>() * mixed.A.template cast<double>());
  const auto theirs_delta = golden.matrix<Scalar>("mix.delta").template cast<double>().eval();
  const bool decomposed = golden.options().at("lora").at("combination_type").get<std::string>().ends_with("svd");
  if (decomposed) {
    // The factors have free signs, and the product is as sensitive as the gap behind the last singular value is small.
    comparison.close_in_norm<double>("mix.delta", delta, theirs_delta, Comparison::svd_bound);
    return;
  }
  // Sums of a few products each: what is left is a rounding or two of every element, some 1e-7 in float.
  constexpr double bound = Comparison::rounding_bound<Scalar> / 10;
  comparison.close_in_norm<double>("mix.delta", delta, theirs_delta, bound);
  comparison.close_in_norm<Scalar>("mix.lora_A", mixed.A, theirs_A, bound);
  comparison.close_in_norm<Scalar>("mix.lora_B", mixed.B, theirs_B, bound);
}

}  // namespace
}  // namespace combine_case

void check_combination(GoldenCase& golden, Comparison& comparison) {
  with_scalar(golden, [&](auto zero) { combine_case::check<decltype(zero)>(golden, comparison); });
}

}  // namespace lora::conformance
