// SPDX-License-Identifier: MIT
// How far the answers of a merged and an unmerged network may lie apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "common/batches.hpp"
#include "fashion_mnist/method.hpp"

namespace examples {

/// Bounds |merged - unmerged| for each logit of an unmerged network, to first order in the unit roundoff u.
///
/// A chain of n operations whose terms have absolute values that sum to S errs by at most n u S, and by less than
/// g S, g = 2 sqrt(n) u, when rounding errors are independent with mean 0, as they are but for contrived numbers; S
/// stands for partial sums that are smaller by about sqrt(n), which leaves nothing to chance.
///
/// One layer, on an input a of k elements: both ways compute (W0 + s B A) a + b. With n = k + r + 2 and
/// S = |b| + (|W0| + s|B||A|) |a|, T = s|B||A||a|,
///   unmerged  b + W0 a + (s B) U       errs by g S, and by g T more through U = A a, which all outputs share;
///   merged    b + fl(W0 + s B A) a     errs by g S in the weights, and by g S in the product.
/// So the outputs differ by q = 3 g S, whose elements have nothing to do with each other, and t = g T. The next layer
/// passes these on, q in quadrature as independent errors add, t in full; max(0, .) does not widen them:
///   q <- sqrt((W o W) q^2 + (3 g S)^2),   t <- |W| t + g T,   with W = W0 + s B A.
/// Source: N. Higham, T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41
/// (2019), theorem 2.4.
class MergeTolerance {
 public:
  /// @throws std::bad_alloc
  explicit MergeTolerance(const LoraNetwork& network) : network_(&network) {
    for (const auto& layer : network.layers()) layers_.emplace_back(layer);
  }

  /// The bound for every logit of these rows. The network must be unmerged and as it was.
  [[nodiscard]] lora::Matrix<float> operator()(const lora::Matrix<float>& x) {
    network_->infer(x, pass_);
    lora::Matrix<float> independent = lora::Matrix<float>::Zero(x.rows(), x.cols());
    lora::Matrix<float> shared = independent;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      const LayerTerms& layer = layers_[l];
      const lora::Matrix<float> input = (l == 0 ? x : pass_.outputs[l - 1]).cwiseAbs();
      const lora::Matrix<float> own = 3 * layer.g * apply(layer.size, input);
      independent = (apply(layer.squares, independent.cwiseAbs2()) + own.cwiseAbs2()).cwiseSqrt();
      shared = apply(layer.slopes, shared) + layer.g * apply(layer.low_rank_size, input);
    }
    return independent + shared;
  }

 private:
  using Layer = DenseLayer<float>;

  /// What the bound takes from a layer.
  struct LayerTerms {
    Layer size;           // |W0| + s|B||A|, |b|
    Layer low_rank_size;  // s|B||A|
    Layer slopes;         // |W|
    Layer squares;        // W o W
    float g;

    explicit LayerTerms(const lora::LoraLinear<float>& layer)
        : size(layer.base_weight().cwiseAbs() + low_rank(layer), layer.bias().cwiseAbs()),
          low_rank_size(without_bias(low_rank(layer))),
          slopes(without_bias((layer.base_weight() + layer.delta_weight()).cwiseAbs())),
          squares(without_bias(slopes.weight().cwiseAbs2())),
          g(2 * std::sqrt(static_cast<float>(layer.in_features() + layer.rank() + 2)) *
            std::numeric_limits<float>::epsilon() / 2) {}

    static lora::Matrix<float> low_rank(const lora::LoraLinear<float>& layer) {
      return std::abs(layer.scaling()) * (layer.lora_B().cwiseAbs() * layer.lora_A().cwiseAbs());
    }
    static Layer without_bias(lora::Matrix<float> weight) {
      const Index outputs = weight.rows();
      return {std::move(weight), lora::RowVector<float>::Zero(outputs)};
    }
  };

  lora::Matrix<float> apply(const Layer& layer, const lora::Matrix<float>& input) {
    lora::Matrix<float> output(input.rows(), layer.out_features());
    layer.infer(input, output, pass_.workspace);
    return output;
  }

  const LoraNetwork* network_;
  std::vector<LayerTerms> layers_;
  Pass<LoraNetwork::Layer> pass_;
};

/// The bound for every image of a set, count x classes.
[[nodiscard]] inline lora::Matrix<float> merge_tolerance(const LoraNetwork& network, const ImageSet& set) {
  constexpr Index rows_at_once = 500;
  MergeTolerance tolerance(network);
  lora::Matrix<float> bounds(set.count(), network.layers().back().out_features());
  Batch batch;
  std::vector<Index> order;
  for (Index first = 0; first < set.count(); first += rows_at_once) {
    order.resize(static_cast<std::size_t>(std::min(rows_at_once, set.count() - first)));
    std::iota(order.begin(), order.end(), first);
    fill_batch(set, order, batch);
    bounds.middleRows(first, batch.x.rows()) = tolerance(batch.x);
  }
  return bounds;
}

}  // namespace examples
