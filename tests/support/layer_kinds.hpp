// One way to make a layer for each scalar and each kind and storage of its weight, so that laws are written once.
#pragma once

#include <cstdint>
#include <gtest/gtest.h>
#include <memory>
#include <utility>

#include "lora/layers/linear.hpp"
#include "lora/weight/dense.hpp"

namespace lora::testing {

/// A layer and the caller's memory that its weight may view.
template <class Kind>
struct LayerUnderTest {
  using Layer = typename Kind::Layer;
  typename Kind::Storage storage;  ///< W0 as the caller keeps it
  std::unique_ptr<Layer> layer;
};

template <class ScalarType, class WeightType, class StorageType, bool views>
struct LayerKind {
  using Scalar = ScalarType;
  using Layer = LoraLinear<Scalar, WeightType>;
  using Storage = StorageType;

  /// `w` is out_features x in_features; it is stored transposed with config.fan_in_fan_out.
  static LayerUnderTest<LayerKind> make(const Matrix<Scalar>& w, const RowVector<Scalar>& bias,
                                        const LoraConfig& config, std::uint64_t seed = 1) {
    LayerUnderTest<LayerKind> result;
    result.storage = config.fan_in_fan_out ? Matrix<Scalar>(w.transpose()) : w;
    const auto weight = [&] {
      if constexpr (views) {
        const auto view = view_of(result.storage);
        return WeightType(config.fan_in_fan_out ? view.transpose() : view);
      } else {
        const auto view = view_of(std::as_const(result.storage));
        return WeightType(config.fan_in_fan_out ? view.transpose() : view);
      }
    };
    result.layer = bias.size() > 0 ? std::make_unique<Layer>(weight(), bias, config, seed)
                                   : std::make_unique<Layer>(weight(), config, seed);
    return result;
  }
};

template <class Scalar>
using ColumnMajor = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;

using LayerKinds = ::testing::Types<LayerKind<float, PackedWeight<float>, Matrix<float>, false>,
                                    LayerKind<double, PackedWeight<double>, ColumnMajor<double>, false>,
                                    LayerKind<float, DenseWeight<float>, ColumnMajor<float>, true>,
                                    LayerKind<double, DenseWeight<double>, Matrix<double>, true>>;

struct LayerKindNames {
  template <class Kind>
  static std::string GetName(int /*index*/) {
    using Scalar = typename Kind::Scalar;
    constexpr bool packed = std::is_same_v<typename Kind::Layer::Weight, PackedWeight<Scalar>>;
    constexpr bool rows = std::is_same_v<typename Kind::Storage, Matrix<Scalar>>;
    std::string name = std::is_same_v<Scalar, float> ? "Float" : "Double";
    name += packed ? "Packed" : "Dense";
    name += rows ? "RowMajor" : "ColumnMajor";
    return name;
  }
};

}  // namespace lora::testing
