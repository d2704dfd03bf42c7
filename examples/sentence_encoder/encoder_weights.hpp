// SPDX-License-Identifier: MIT
// The arrays of a Universal Sentence Encoder Lite: a small Transformer whose kernels are stored in_features first.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "lora/core/random.hpp"
#include "lora/core/types.hpp"
#include "lora/core/view.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// y = x kernel + bias.
template <class Scalar>
struct LinearWeights {
  lora::Matrix<Scalar> kernel;   ///< in_features x out_features
  lora::RowVector<Scalar> bias;  ///< out_features
};

/// y = scale (x - mean) / sqrt(variance + 1e-6) + shift.
template <class Scalar>
struct NormWeights {
  lora::RowVector<Scalar> scale;
  lora::RowVector<Scalar> shift;
};

/// One layer, from `in` to `out` features: h = residual(x) + output(attention(qkv(norm(x)))),
/// y = h + ffn_output(max(0, ffn_hidden(ffn_norm(h)))).
template <class Scalar>
struct LayerWeights {
  NormWeights<Scalar> attention_norm;  ///< in
  LinearWeights<Scalar> qkv;           ///< in x 3 in: queries, keys, values
  LinearWeights<Scalar> output;        ///< in x out
  LinearWeights<Scalar> residual;      ///< in x out; empty where the residual is x itself
  NormWeights<Scalar> ffn_norm;        ///< out
  LinearWeights<Scalar> ffn_hidden;    ///< out x hidden
  LinearWeights<Scalar> ffn_output;    ///< hidden x out
};

template <class Scalar>
struct EncoderWeights {
  lora::Matrix<Scalar> embedding;       ///< vocabulary x in
  lora::RowVector<Scalar> frequencies;  ///< of the position's sines and cosines, in / 2
  Index heads = 4;
  std::vector<LayerWeights<Scalar>> layers;
  LinearWeights<Scalar> projection;  ///< of the mean over tokens, before tanh
  std::uint64_t hash = 0;            ///< of the files they were read from; 0 of weights made otherwise
};

/// Extents of an encoder.
struct EncoderShape {
  Index vocabulary = 0;
  Index embedding = 0;  ///< width of the first layer's input
  Index width = 0;      ///< of every layer's output
  Index hidden = 0;     ///< of the feed-forward
  Index layers = 0;
  Index heads = 4;
  Index output = 0;
};

/// Random weights, as small as trained ones: for tests. The first layer has a residual kernel where the widths differ.
template <class Scalar>
[[nodiscard]] EncoderWeights<Scalar> random_encoder_weights(const EncoderShape& shape, std::uint64_t seed) {
  std::uint64_t stream = 0;
  const auto fill = [&](auto& values, double bound) {
    lora::fill_uniform(lora::view_of(values), bound, lora::RandomStream(seed, stream++));
  };
  const auto linear = [&](Index in, Index out) {
    LinearWeights<Scalar> weights{lora::Matrix<Scalar>(in, out), lora::RowVector<Scalar>(out)};
    fill(weights.kernel, 1.5 / std::sqrt(static_cast<double>(in)));
    fill(weights.bias, 0.3);
    return weights;
  };
  const auto norm = [&](Index size) {
    NormWeights<Scalar> weights{lora::RowVector<Scalar>(size), lora::RowVector<Scalar>(size)};
    fill(weights.scale, 0.5);
    weights.scale.array() += Scalar(1);
    fill(weights.shift, 0.3);
    return weights;
  };
  EncoderWeights<Scalar> weights;
  weights.embedding.resize(shape.vocabulary, shape.embedding);
  fill(weights.embedding, 1.0);
  weights.frequencies.resize(shape.embedding / 2);
  fill(weights.frequencies, 1.0);
  weights.heads = shape.heads;
  for (Index l = 0; l < shape.layers; ++l) {
    const Index in = l == 0 ? shape.embedding : shape.width;
    LayerWeights<Scalar> layer;
    layer.attention_norm = norm(in);
    layer.qkv = linear(in, 3 * in);
    layer.output = linear(in, shape.width);
    if (in != shape.width) layer.residual = linear(in, shape.width);
    layer.ffn_norm = norm(shape.width);
    layer.ffn_hidden = linear(shape.width, shape.hidden);
    layer.ffn_output = linear(shape.hidden, shape.width);
    weights.layers.push_back(std::move(layer));
  }
  weights.projection = linear(shape.width, shape.output);
  return weights;
}

}  // namespace examples::sentence_encoder
