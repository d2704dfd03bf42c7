// SPDX-License-Identifier: MIT
// Fine-tunes a small GPT-2 of llm.c with LoRA and with llm.c's own training step, side by side, and checks one against
// the other. Include this after llm.c's declarations; compare_with_llm_c() is the whole program.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "common/checks.hpp"
#include "llm.c/gpt2_lora.hpp"

namespace hosts::gpt2 {

inline constexpr int batch = 4, length = 64;
inline constexpr lora::Index tokens = lora::Index{batch} * length;
inline constexpr int vocabulary = 250, padded_vocabulary = 256, layers = 4, heads = 4, channels = 256;
inline constexpr float epsilon = std::numeric_limits<float>::epsilon();

/// A model of llm.c, loaded by llm.c from a file with weights as GPT-2 starts: N(0, 0.02^2), norms 1, biases 0.
class Model {
 public:
  explicit Model(std::uint64_t seed) {
    const std::filesystem::path file =
        std::filesystem::temp_directory_path() / ("lora_llm_c_" + std::to_string(::getpid()));
    write(file, seed);
    gpt2_build_from_checkpoint(&gpt2, file.c_str());
    std::filesystem::remove(file);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model() { gpt2_free(&gpt2); }

  void set_weights(const std::vector<float>& weights) { std::ranges::copy(weights, gpt2.params_memory); }
  [[nodiscard]] std::vector<float> weights() const {
    return {gpt2.params_memory, gpt2.params_memory + gpt2.num_parameters};
  }

  GPT2 gpt2{};

 private:
  static void write(const std::filesystem::path& path, std::uint64_t seed) {
    const GPT2Config config{length, vocabulary, padded_vocabulary, layers, heads, channels};
    std::array<std::size_t, NUM_PARAMETER_TENSORS> sizes{};
    fill_in_parameter_sizes(sizes.data(), config);
    const std::array<int, 256> header{20240326, 3, length, vocabulary, layers, heads, channels, padded_vocabulary};
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(header.data()), sizeof header);
    for (std::size_t tensor = 0; tensor < sizes.size(); ++tensor) {
      std::vector<float> values(sizes[tensor], tensor == 2 || tensor == 8 || tensor == 14 ? 1.0F : 0.0F);
      if (tensor < 2 || tensor == 4 || tensor == 6 || tensor == 10 || tensor == 12) {
        const lora::MatrixView<float> row{values.data(), 1, static_cast<lora::Index>(values.size())};
        lora::fill_normal(row, 0.02, lora::RandomStream(seed, tensor));
      }
      file.write(reinterpret_cast<const char*>(values.data()),
                 static_cast<std::streamsize>(values.size() * sizeof(float)));
    }
    file.close();
    if (!file) throw lora::IoError("write", path.string(), "room for a checkpoint", "a failed write");
  }
};

/// Sequences that count by `stride` from a random token on.
class Counting {
 public:
  Counting(int stride, std::uint32_t seed) : stride_(stride), state_(seed) {}

  void next() {
    for (int b = 0; b < batch; ++b) {
      state_ = state_ * 1664525U + 1013904223U;
      int token = static_cast<int>(state_ >> 16U) % vocabulary;
      for (int t = 0; t < length; ++t) {
        inputs[static_cast<std::size_t>(b * length + t)] = token;
        token = (token + stride_ + vocabulary) % vocabulary;
        targets[static_cast<std::size_t>(b * length + t)] = token;
      }
    }
  }
  std::array<int, tokens> inputs{}, targets{};

 private:
  int stride_;
  std::uint32_t state_;
};

inline void forward(GPT2& model, Counting& data) {
  gpt2_forward(&model, data.inputs.data(), data.targets.data(), batch, length);
}

/// The step of llm.c's own training loop.
inline void train_all(GPT2& model, Counting& data, float rate, int step) {
  forward(model, data);
  gpt2_zero_grad(&model);
  gpt2_backward(&model);
  gpt2_update(&model, rate, 0.9F, 0.999F, 1e-8F, 0.0F, step);
}

inline void train_adapters(Gpt2Lora& adapted, Counting& data, lora::AdamW<float>& optimizer) {
  adapted.forward(data.inputs.data(), data.targets.data(), batch, length);
  adapted.backward();
  adapted.update(optimizer);
}

template <class Work>
double milliseconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2));
  return values[values.size() / 2];
}

using Rows = Eigen::Map<const lora::Matrix<float>>;

/// max |a - b| / max |b|
template <class A, class B>
double difference(const A& a, const B& b) {
  return static_cast<double>((a - b).cwiseAbs().maxCoeff() / b.cwiseAbs().maxCoeff());
}

inline Rows logits(const GPT2& model) { return {model.acts.logits, tokens, padded_vocabulary}; }

/// Relative to the largest element. Both sides sum the same terms in other orders: four products of up to 4 C terms in
/// every block, and that of the logits, each off by about epsilon sqrt(terms), and none amplified by the norms between.
inline double forward_tolerance() {
  return static_cast<double>(epsilon) * std::sqrt(4.0 * channels) * (4 * layers + 1);
}
/// The products of both passes, twice as many in the second.
inline double backward_tolerance() { return 3 * forward_tolerance(); }

/// Gradients of the adapters and of the input, against those that llm.c computes for its merged weights W0 + s B A: its
/// dW gives dB = s dW A^T and dA = s B^T dW.
inline void check_gradients(Gpt2Lora& adapted, Model& ours, Model& theirs, Counting& data, Checks& check) {
  data.next();
  adapted.forward(data.inputs.data(), data.targets.data(), batch, length);
  lora::Matrix<float> d_encoded(tokens, channels);
  adapted.backward(d_encoded.data());
  for (auto& block : adapted.blocks()) block.qkv.zero_grad(), block.attproj.zero_grad();
  adapted.backward();  // as in training, which needs no gradient of the input

  adapted.merge();
  theirs.set_weights(ours.weights());
  adapted.unmerge();
  forward(theirs.gpt2, data);
  gpt2_zero_grad(&theirs.gpt2);
  gpt2_backward(&theirs.gpt2);
  check.at_most(difference(d_encoded, Rows(theirs.gpt2.grads_acts.encoded, tokens, channels)), backward_tolerance(),
                "dX of the whole stack against llm.c's, relative");

  double worst = 0;
  const auto compare = [&](auto& layer, Rows dw, lora::Index first_row, lora::Index output) {
    const lora::Index rank = layer.rank(), outputs = dw.rows();
    const float s = layer.scaling();
    const auto a = layer.lora_A().middleRows(first_row, rank);
    const auto b = layer.lora_B().middleRows(output, outputs);
    const lora::Matrix<float> da = s * b.transpose() * dw;
    const lora::Matrix<float> db = s * dw * a.transpose();
    worst = std::max({worst, difference(layer.gradients().A.middleRows(first_row, rank), da),
                      difference(layer.gradients().B.middleRows(output, outputs), db)});
  };
  for (std::size_t l = 0; l < adapted.blocks().size(); ++l) {
    auto& [qkv, attproj, qkv_tape, attproj_tape] = adapted.blocks()[l];
    const ParameterTensors& g = theirs.gpt2.grads;
    const lora::Index square = lora::Index{channels} * channels, at = static_cast<lora::Index>(l);
    for (lora::Index projection = 0; projection < 3; ++projection) {
      compare(qkv, Rows(g.qkvw + (3 * at + projection) * square, channels, channels), projection * qkv.rank(),
              projection * channels);
    }
    compare(attproj, Rows(g.attprojw + at * square, channels, channels), 0, 0);
  }
  check.at_most(worst, backward_tolerance(), "dA and dB of every adapter against s B^T dW and s dW A^T, relative");
  for (auto& block : adapted.blocks()) block.qkv.zero_grad(), block.attproj.zero_grad();
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline double megabytes(std::size_t bytes) { return static_cast<double>(bytes) * 1e-6; }

inline void print_costs(double full_ms, double lora_ms, const GPT2& theirs, const Gpt2Lora::Memory& ours) {
  const std::size_t weights = theirs.num_parameters * sizeof(float);
  const std::size_t activations = theirs.num_activations * sizeof(float);
  std::printf("\n| of a step | llm.c, all weights | LoRA |\n|---|---:|---:|\n");
  std::printf("| ms, median | %.0f | %.0f |\n", full_ms, lora_ms);
  const auto row = [](const char* name, std::size_t full, std::size_t lora) {
    std::printf("| %s, MB | %.3f | %.3f |\n", name, megabytes(full), megabytes(lora));
  };
  row("what trains", weights, ours.parameters);
  row("its gradients", weights, ours.gradients);
  row("state of AdamW", 2 * weights, ours.optimizer);
  row("activations", activations, activations + ours.tapes);
  row("their gradients", activations, ours.activation_gradients);
  std::printf("\n");
}

/// Prints what it measures and checks; returns the number of checks that failed.
inline int compare_with_llm_c() {
  Checks check;
  Model ours(1), theirs(1);
  Counting by_one(1, 1), by_two(2, 2);
  for (int step = 1; step <= 60; ++step) {
    by_one.next();
    train_all(theirs.gpt2, by_one, 1e-3F, step);
  }
  const std::vector<float> base = theirs.weights();
  ours.set_weights(base);
  const float base_loss = theirs.gpt2.mean_loss;

  Gpt2Lora adapted(ours.gpt2, {.rank = 8, .alpha = 16}, /*seed=*/42);
  by_two.next();
  adapted.forward(by_two.inputs.data(), by_two.targets.data(), batch, length);
  forward(theirs.gpt2, by_two);
  const float loss_before = theirs.gpt2.mean_loss;
  check.at_most(difference(logits(ours.gpt2), logits(theirs.gpt2)), forward_tolerance(),
                "logits with B = 0 against llm.c's, relative");

  lora::AdamW<float> optimizer({.learning_rate = 5e-3, .weight_decay = 0});
  std::vector<double> full_ms, lora_ms;
  for (int step = 1; step <= 150; ++step) {
    by_two.next();
    lora_ms.push_back(milliseconds([&] { train_adapters(adapted, by_two, optimizer); }));
    // llm.c's step is timed on the same batches, in turns, and its result is not used.
    if (step % 15 == 0) full_ms.push_back(milliseconds([&] { train_all(theirs.gpt2, by_two, 1e-3F, 61); }));
  }
  check(same_bits(ours.weights(), base), "training wrote to none of llm.c's weights");

  check_gradients(adapted, ours, theirs, by_two, check);

  by_two.next();
  adapted.forward(by_two.inputs.data(), by_two.targets.data(), batch, length);
  const lora::Matrix<float> unmerged = logits(ours.gpt2);
  const float loss_after = ours.gpt2.mean_loss;
  std::printf("loss of counting by twos: %.3f before, %.3f after LoRA (by ones, as llm.c trained it: %.3f)\n",
              static_cast<double>(loss_before), static_cast<double>(loss_after), static_cast<double>(base_loss));
  check(loss_after < loss_before / 2, "the loss is less than half of what it was");
  adapted.merge();
  forward(ours.gpt2, by_two);
  check.at_most(difference(unmerged, logits(ours.gpt2)), forward_tolerance(),
                "llm.c's own gpt2_forward on the merged weights against the adapted model, relative");
  adapted.unmerge();
  check(same_bits(ours.weights(), base), "unmerging restored every bit of llm.c's weights");

  print_costs(median(full_ms), median(lora_ms), theirs.gpt2, adapted.memory());
  return check.failures();
}

}  // namespace hosts::gpt2
