// SPDX-License-Identifier: MIT
// Stands in for llm.c: what examples/hosts/llm.c/gpt2_lora.hpp uses of it, over raw buffers, and written for tests,
// with short loops. As there, backward functions add to what they are given.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <numeric>

struct GPT2Config {
  int max_seq_len, vocab_size, padded_vocab_size, num_layers, num_heads, channels;
};

struct ParameterTensors {
  float *wte, *wpe, *ln1w, *ln1b, *qkvw, *qkvb, *attprojw, *attprojb, *ln2w, *ln2b, *fcw, *fcb, *fcprojw, *fcprojb,
      *lnfw, *lnfb;
};

struct ActivationTensors {
  float *encoded, *ln1, *ln1_mean, *ln1_rstd, *qkv, *atty, *preatt, *att, *attproj, *residual2, *ln2, *ln2_mean,
      *ln2_rstd, *fch, *fch_gelu, *fcproj, *residual3, *lnf, *lnf_mean, *lnf_rstd, *logits, *probs, *losses;
};

inline constexpr std::array stand_in_activations = {
    &ActivationTensors::encoded,   &ActivationTensors::ln1,       &ActivationTensors::ln1_mean,
    &ActivationTensors::ln1_rstd,  &ActivationTensors::qkv,       &ActivationTensors::atty,
    &ActivationTensors::preatt,    &ActivationTensors::att,       &ActivationTensors::attproj,
    &ActivationTensors::residual2, &ActivationTensors::ln2,       &ActivationTensors::ln2_mean,
    &ActivationTensors::ln2_rstd,  &ActivationTensors::fch,       &ActivationTensors::fch_gelu,
    &ActivationTensors::fcproj,    &ActivationTensors::residual3, &ActivationTensors::lnf,
    &ActivationTensors::lnf_mean,  &ActivationTensors::lnf_rstd,  &ActivationTensors::logits,
    &ActivationTensors::probs,     &ActivationTensors::losses};

struct GPT2 {
  GPT2Config config{};
  ParameterTensors params{};
  ActivationTensors acts{};
  std::size_t act_sizes[stand_in_activations.size()]{};
  std::size_t num_activations = 0;
  float* acts_memory = nullptr;
  int batch_size = 0, seq_len = 0;
  int *inputs = nullptr, *targets = nullptr;
  float mean_loss = 0;
};

inline void* mallocCheck(std::size_t bytes) {
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

inline void fill_in_activation_sizes(std::size_t* sizes, GPT2Config config, int batch, int length) {
  const auto rows = static_cast<std::size_t>(batch * length), c = static_cast<std::size_t>(config.channels);
  const auto layers = static_cast<std::size_t>(config.num_layers), wide = rows * c;
  const std::size_t scores = rows * static_cast<std::size_t>(config.num_heads * length);
  const std::size_t logits = rows * static_cast<std::size_t>(config.padded_vocab_size);
  const std::array of_a_block = {wide, rows, rows, 3 * wide, wide,     scores,   scores, wide,
                                 wide, wide, rows, rows,     4 * wide, 4 * wide, wide,   wide};
  *sizes++ = wide;
  for (const std::size_t size : of_a_block) *sizes++ = layers * size;
  for (const std::size_t size : {wide, rows, rows, logits, logits, rows}) *sizes++ = size;
}

inline float* malloc_and_point_activations(ActivationTensors* acts, const std::size_t* sizes) {
  const std::size_t count = std::accumulate(sizes, sizes + stand_in_activations.size(), std::size_t{0});
  float* const memory = static_cast<float*>(mallocCheck(count * sizeof(float)));
  float* next = memory;
  for (const auto tensor : stand_in_activations) {
    acts->*tensor = next;
    next += *sizes++;
  }
  return memory;
}

inline void encoder_forward(float* out, const int* tokens, const float* wte, const float* wpe, int b, int t, int c) {
  for (int row = 0; row < b * t; ++row) {
    for (int i = 0; i < c; ++i) out[row * c + i] = wte[tokens[row] * c + i] + wpe[row % t * c + i];
  }
}

inline void layernorm_forward(float* out, float* mean, float* rstd, const float* x, const float* weight,
                              const float* bias, int b, int t, int c) {
  for (int row = 0; row < b * t; ++row, x += c, out += c) {
    const float m = std::accumulate(x, x + c, 0.0F) / static_cast<float>(c);
    float variance = 0;
    for (int i = 0; i < c; ++i) variance += (x[i] - m) * (x[i] - m) / static_cast<float>(c);
    const float s = 1 / std::sqrt(variance + 1e-5F);
    for (int i = 0; i < c; ++i) out[i] = (x[i] - m) * s * weight[i] + bias[i];
    mean[row] = m;
    rstd[row] = s;
  }
}

inline void layernorm_backward(float* dx, float* dweight, float* dbias, const float* dout, const float* x,
                               const float* weight, const float* mean, const float* rstd, int b, int t, int c) {
  for (int row = 0; row < b * t; ++row, x += c, dx += c, dout += c) {
    float sum = 0, sum_x = 0;
    for (int i = 0; i < c; ++i) {
      const float norm = (x[i] - mean[row]) * rstd[row];
      sum += weight[i] * dout[i] / static_cast<float>(c);
      sum_x += weight[i] * dout[i] * norm / static_cast<float>(c);
      dweight[i] += dout[i] * norm;
      dbias[i] += dout[i];
    }
    for (int i = 0; i < c; ++i) {
      const float norm = (x[i] - mean[row]) * rstd[row];
      dx[i] += rstd[row] * (weight[i] * dout[i] - sum - norm * sum_x);
    }
  }
}

/// Calls body(position, offset of its query, offset of its output, offset of its scores) for every head.
template <class Body>
void for_each_query(int b, int t, int c, int heads, const Body& body) {
  for (int batch = 0; batch < b; ++batch) {
    for (int head = 0; head < heads; ++head) {
      for (int from = 0; from < t; ++from) {
        const int row = batch * t + from, column = head * (c / heads);
        body(from, row * 3 * c + column, row * c + column, ((batch * heads + head) * t + from) * t);
      }
    }
  }
}

inline void attention_forward(float* out, float* preatt, float* att, const float* qkv, int b, int t, int c, int heads) {
  const int size = c / heads;
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  std::fill_n(att, b * heads * t * t, 0.0F);
  for_each_query(b, t, c, heads, [&](int from, int query, int y, int scores) {
    float total = 0;
    const auto key = [&](int to) { return query + (to - from) * 3 * c + c; };
    for (int to = 0; to <= from; ++to) {
      preatt[scores + to] = scale * std::inner_product(qkv + query, qkv + query + size, qkv + key(to), 0.0F);
      total += att[scores + to] = std::exp(preatt[scores + to]);
    }
    std::fill_n(out + y, size, 0.0F);
    for (int to = 0; to <= from; ++to) {
      att[scores + to] /= total;
      for (int i = 0; i < size; ++i) out[y + i] += att[scores + to] * qkv[key(to) + c + i];
    }
  });
}

inline void attention_backward(float* dqkv, float* dpreatt, float* datt, const float* dout, const float* qkv,
                               const float* att, int b, int t, int c, int heads) {
  const int size = c / heads;
  const float scale = 1 / std::sqrt(static_cast<float>(size));
  for_each_query(b, t, c, heads, [&](int from, int query, int y, int scores) {
    const auto key = [&](int to) { return query + (to - from) * 3 * c + c; };
    float mean = 0;
    for (int to = 0; to <= from; ++to) {
      for (int i = 0; i < size; ++i) {
        datt[scores + to] += dout[y + i] * qkv[key(to) + c + i];
        dqkv[key(to) + c + i] += att[scores + to] * dout[y + i];
      }
      mean += att[scores + to] * datt[scores + to];
    }
    for (int to = 0; to <= from; ++to) {
      dpreatt[scores + to] += att[scores + to] * (datt[scores + to] - mean);
      for (int i = 0; i < size; ++i) {
        dqkv[query + i] += scale * dpreatt[scores + to] * qkv[key(to) + i];
        dqkv[key(to) + i] += scale * dpreatt[scores + to] * qkv[query + i];
      }
    }
  });
}

inline constexpr double stand_in_gelu_slope = 0.7978845608028654;  // sqrt(2 / pi)

inline void gelu_forward(float* out, const float* x, int n) {
  const auto k = static_cast<float>(stand_in_gelu_slope);
  for (int i = 0; i < n; ++i) out[i] = x[i] / 2 * (1 + std::tanh(k * (x[i] + 0.044715F * x[i] * x[i] * x[i])));
}

inline void gelu_backward(float* dx, const float* x, const float* dout, int n) {
  const auto k = static_cast<float>(stand_in_gelu_slope);
  for (int i = 0; i < n; ++i) {
    const float level = std::tanh(k * (x[i] + 0.044715F * x[i] * x[i] * x[i]));
    dx[i] += dout[i] / 2 * (1 + level + x[i] * (1 - level * level) * k * (1 + 3 * 0.044715F * x[i] * x[i]));
  }
}

inline void residual_forward(float* out, const float* a, const float* b, int n) {
  for (int i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

inline void softmax_forward(float* probs, const float* logits, int b, int t, int v, int padded) {
  for (int row = 0; row < b * t; ++row, probs += padded, logits += padded) {
    float total = 0;
    for (int i = 0; i < v; ++i) total += probs[i] = std::exp(logits[i]);
    for (int i = 0; i < padded; ++i) probs[i] = i < v ? probs[i] / total : 0;
  }
}

inline void crossentropy_forward(float* losses, const float* probs, const int* targets, int b, int t, int padded) {
  for (int row = 0; row < b * t; ++row) losses[row] = -std::log(probs[row * padded + targets[row]]);
}

inline void crossentropy_softmax_backward(float* dlogits, const float* dlosses, const float* probs, const int* targets,
                                          int b, int t, int v, int padded) {
  for (int row = 0; row < b * t; ++row) {
    for (int i = 0; i < v; ++i) {
      dlogits[row * padded + i] += dlosses[row] * (probs[row * padded + i] - (i == targets[row] ? 1.0F : 0.0F));
    }
  }
}
