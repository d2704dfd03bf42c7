// The making of what adapts a frozen weight: its factors, its magnitude, and the residual it leaves.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "lora/adapter/adapter.hpp"
#include "lora/adapter/dora.hpp"
#include "lora/adapter/starts.hpp"
#include "lora/weight/merge_undo.hpp"

namespace lora {

/// What adapts one weight. `dora` is inactive without use_dora.
template <RealScalar Scalar>
struct Adaptation {
  LoraAdapter<Scalar> adapter;
  DoraMagnitude<Scalar> dora;
};

namespace detail {

template <FrozenWeight Weight>
[[nodiscard]] DoraMagnitude<typename Weight::Scalar> make_magnitude(
    const Weight& weight, const LoraAdapter<typename Weight::Scalar>& adapter) {
  using Magnitude = DoraMagnitude<typename Weight::Scalar>;
  return adapter.config().use_dora ? Magnitude(weight, adapter.update()) : Magnitude();
}

template <FrozenWeight Weight>
[[nodiscard]] LoraFactors<double> start_from_weight(std::string_view operation, const Weight& weight,
                                                    const LoraConfig& config, std::uint64_t seed) {
  Matrix<typename Weight::Scalar> stored(weight.out_features(), weight.in_features());
  read_back(weight, view_of(stored));
  const Matrix<double> decoded = stored.template cast<double>();
  return factors_from_weight<double>(operation, view_of(decoded), config, seed);
}

}  // namespace detail

/// A fresh adapter for an unmerged `weight`. With pissa and olora the weight becomes the residual W - s*B*A, so that
/// residual and adapter together answer as the weight did; with other initialisations it does not change.
/// Source of the residuals: arXiv 2404.02948, arXiv 2406.01775.
/// @throws ConfigError; StateError when the residual is not finite or the weight is read-only; std::bad_alloc. Then the
/// weight is as it was, bit for bit.
template <FrozenWeight Weight>
[[nodiscard]] Adaptation<typename Weight::Scalar> make_adaptation(std::string_view operation, Weight& weight,
                                                                  const LoraConfig& config, std::uint64_t seed) {
  using Scalar = typename Weight::Scalar;
  using Adapter = LoraAdapter<Scalar>;
  check_config(operation, config);
  if (config.rank == 0 || !takes_from_weight(config.init_lora_weights)) {
    Adapter adapter(operation, weight.in_features(), weight.out_features(), config, seed);
    auto magnitude = detail::make_magnitude(weight, adapter);
    return {std::move(adapter), std::move(magnitude)};
  }
  const auto start = detail::start_from_weight(operation, weight, config, seed);
  Adapter adapter(operation, config, seed, {start.A.template cast<Scalar>(), start.B.template cast<Scalar>()});
  LowRankUpdate<Scalar> taken = adapter.update();
  taken.scale = -taken.scale;
  const auto record = MergeUndo<Scalar>::merge(operation, weight, taken);
  try {
    auto magnitude = detail::make_magnitude(weight, adapter);
    return {std::move(adapter), std::move(magnitude)};
  } catch (...) {
    record.unmerge(weight);
    throw;
  }
}

}  // namespace lora
