// SPDX-License-Identifier: MIT
// Trains two adapters of a model of NeuralAmpModelerCore, merges one in place, and changes between them while another
// thread plays. perform() is the whole program.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <memory>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "NAM/get_dsp.h"
#include "common/checks.hpp"
#include "neural_amp/allocation_count.hpp"
#include "neural_amp/live_adapters.hpp"
#include "neural_amp/lstm_training.hpp"

namespace hosts::amplifier {

using Matrix = lora::Matrix<float>;
using Signal = std::vector<NAM_SAMPLE>;

inline constexpr int cells = 2, hidden = 24, block = 64;
inline constexpr double sample_rate = 48000;

/// A model as a .nam file describes it, with weights from a generator: "amplifier" here is any LSTM that distorts.
inline std::unique_ptr<nam::DSP> load_model() {
  nlohmann::json file;
  file["version"] = "0.5.4";
  file["architecture"] = "LSTM";
  file["config"] = {{"input_size", 1}, {"hidden_size", hidden}, {"num_layers", cells}};
  file["sample_rate"] = sample_rate;
  std::vector<float> weights;
  const auto append = [&](lora::Index count, double bound) {
    Matrix values(1, count);
    lora::fill_uniform(lora::view_of(values), bound, lora::RandomStream(7, weights.size()));
    weights.insert(weights.end(), values.data(), values.data() + count);
  };
  for (int cell = 0; cell < cells; ++cell) {
    const int inputs = (cell == 0 ? 1 : hidden) + hidden;
    append(lora::Index{4} * hidden * inputs, 0.45);
    append(lora::Index{4} * hidden, 0.3);
    append(lora::Index{2} * hidden, 0);  // the state it starts from
  }
  append(hidden, 0.5);
  append(1, 0);
  file["weights"] = weights;
  return nam::get_dsp(file, {.prewarm = false});
}

/// A chord that swells, `samples` long.
inline Signal chord(lora::Index samples, double root) {
  Signal signal(static_cast<std::size_t>(samples));
  for (std::size_t t = 0; t < signal.size(); ++t) {
    const double time = static_cast<double>(t) / sample_rate;
    double sum = 0;
    for (const double ratio : {1.0, 1.25, 1.5}) sum += std::sin(2 * std::numbers::pi * root * ratio * time);
    signal[t] = static_cast<NAM_SAMPLE>(0.3 * sum * (0.6 + 0.4 * std::sin(2 * std::numbers::pi * 3 * time)));
  }
  return signal;
}

/// What a fresh model answers.
inline Signal play(nam::DSP& model, Signal input) {
  Signal output(input.size());
  for (std::size_t t = 0; t < input.size(); t += block) {
    NAM_SAMPLE* in = input.data() + t;
    NAM_SAMPLE* out = output.data() + t;
    model.process(&in, &out, static_cast<int>(std::min<std::size_t>(block, input.size() - t)));
  }
  return output;
}

/// Signals of noise and tones of many levels, one per row.
inline Matrix training_signals(lora::Index count, lora::Index length, std::uint64_t seed) {
  Matrix signals(count, length);
  lora::fill_normal(lora::view_of(signals), 0.15, lora::RandomStream(seed, 0));
  Matrix choices(count, 3);
  lora::fill_uniform(lora::view_of(choices), 1.0, lora::RandomStream(seed, 1));
  for (lora::Index row = 0; row < count; ++row) {
    const float level = 0.5F + 0.5F * choices(row, 0), pitch = 0.08F + 0.07F * choices(row, 1);
    for (lora::Index t = 0; t < length; ++t) {
      signals(row, t) += level * std::sin(pitch * static_cast<float>(t) + 3 * choices(row, 2));
    }
  }
  return signals;
}

/// An adapter that plays as the model does when its drive is turned: for an input `drive` times as large.
class TurnedDrive {
 public:
  TurnedDrive(nam::lstm::LSTM& model, float drive, std::uint64_t seed)
      : training_(model, {.rank = 2, .alpha = 4}, seed) {
    lora::AdamW<float> optimizer({.learning_rate = 1e-2, .weight_decay = 0});
    LstmTraining frozen(model, {.rank = 0}, 0);
    constexpr int steps = 400;
    for (int step = 0; step < steps; ++step) {
      const Matrix signals = training_signals(16, 96, seed + static_cast<std::uint64_t>(step));
      optimizer.set_learning_rate(1e-2 * (1 - static_cast<double>(step) / steps));
      const float error = training_.train(signals, frozen.forward(drive * signals), optimizer);
      if (step == 0) first_error = error;
      last_error = error;
    }
  }
  [[nodiscard]] LstmTraining& training() noexcept { return training_; }

  float first_error = 0, last_error = 0;

 private:
  LstmTraining training_;
};

/// |a - b| / |b|
inline double difference(const Signal& a, const Signal& b) {
  double error = 0, size = 0;
  for (std::size_t t = 0; t < a.size(); ++t) {
    error += std::pow(static_cast<double>(a[t] - b[t]), 2);
    size += std::pow(static_cast<double>(b[t]), 2);
  }
  return std::sqrt(error / size);
}

inline nam::lstm::LSTM& as_lstm(nam::DSP& model) { return dynamic_cast<nam::lstm::LSTM&>(model); }

inline std::vector<float> weights_of(nam::DSP& model) {
  std::vector<float> all;
  for (auto& cell : as_lstm(model)._layers) {
    const Eigen::MatrixXf& w = nam_access::weight_of(cell);
    all.insert(all.end(), w.data(), w.data() + w.size());
  }
  return all;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// What the audio thread saw.
struct Report {
  std::atomic<long> blocks{0};
  std::atomic<long> changes{0};
  long allocations = 0;
  std::vector<double> block_us;  ///< of processor time, as other programs may have the core meanwhile

  Report() { block_us.reserve(1U << 20U); }
};

/// Processor time of the calling thread.
inline double thread_us() noexcept {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
}

/// Plays blocks until told to stop.
inline void audio_thread(nam::DSP& model, LiveAdapters& live, const std::atomic<bool>& stop, Report& report) {
  Signal input = chord(block * 750, 110), output(block);
  const long before = allocation_count;
  for (long at = 0; !stop.load(std::memory_order_relaxed); ++at) {
    const double start = thread_us();
    if (live.between_blocks()) report.changes.fetch_add(1, std::memory_order_relaxed);
    NAM_SAMPLE* in = input.data() + at % 750 * block;
    NAM_SAMPLE* out = output.data();
    model.process(&in, &out, block);
    if (report.block_us.size() < report.block_us.capacity()) report.block_us.push_back(thread_us() - start);
    report.blocks.fetch_add(1, std::memory_order_release);
  }
  report.allocations = allocation_count - before;
}

/// Asks for one adapter after the other, and lets each play for at least 20 blocks.
inline void change_adapters(LiveAdapters& live, const Report& report, int changes) {
  const std::optional<std::string_view> names[] = {"more drive", "less drive", std::nullopt};
  for (int i = 0; i < changes; ++i) {
    while (!live.select(names[i % 3])) std::this_thread::yield();
    const long until = report.blocks.load(std::memory_order_acquire) + 20;
    while (report.blocks.load(std::memory_order_acquire) < until) std::this_thread::yield();
  }
}

/// Prints what it measures and checks; returns the number of checks that failed.
inline int perform() {
  Checks check;
  const std::unique_ptr<nam::DSP> model = load_model();
  nam::lstm::LSTM& lstm = as_lstm(*model);
  const std::vector<float> original = weights_of(*model);

  // The training's arithmetic is the model's own, but for the order of sums.
  const Signal song = chord(4800, 82.4);
  {
    LstmTraining frozen(lstm, {.rank = 0}, 0);
    const Signal theirs = play(*load_model(), song);
    const Matrix row = Eigen::Map<const Eigen::Matrix<NAM_SAMPLE, 1, Eigen::Dynamic>>(song.data(), 4800).cast<float>();
    const Matrix ours = frozen.forward(row);
    check.at_most(difference(Signal(ours.data(), ours.data() + ours.size()), theirs), 1e-5,
                  "4800 samples by the training's forward pass against the model's process(), relative");
  }

  TurnedDrive more(lstm, 2.5F, 100), less(lstm, 0.4F, 200);
  std::printf("more drive: mean squared error %.2e, after training %.2e\n", static_cast<double>(more.first_error),
              static_cast<double>(more.last_error));
  std::printf("less drive: mean squared error %.2e, after training %.2e\n", static_cast<double>(less.first_error),
              static_cast<double>(less.last_error));
  check(same_bits(weights_of(*model), original), "training wrote to none of the model's weights");

  // Merged in place: the library's own process() plays the adapter.
  const auto driven = [&](float drive) {
    Signal louder = song;
    for (NAM_SAMPLE& sample : louder) sample *= static_cast<NAM_SAMPLE>(drive);
    return play(*load_model(), louder);
  };
  const Signal wanted = driven(2.5F);
  const double before = difference(driven(1), wanted);
  const std::unique_ptr<nam::DSP> merged = load_model();
  LiveAdapters merged_adapters(as_lstm(*merged));
  merged_adapters.add("more drive", more.training().layers());
  check(merged_adapters.select("more drive"), "the first offer is accepted");
  merged_adapters.between_blocks();
  const double after = difference(play(*merged, song), wanted);
  std::printf("process() against the turned drive, relative: %.3f before, %.3f merged\n", before, after);
  check(after < before / 5, "merged, process() errs less than a fifth of what it did");

  LiveAdapters live(lstm);
  live.add("more drive", more.training().layers());
  live.add("less drive", less.training().layers());
  constexpr int changes = 300;
  Report report;
  std::atomic<bool> stop{false};
  std::thread audio([&] { audio_thread(*model, live, stop, report); });
  change_adapters(live, report, changes);
  stop = true;
  audio.join();

  Report control;  // the count counts: an audio thread that allocates is seen
  std::thread allocating([&] {
    const long count = allocation_count;
    const Eigen::VectorXf grown = Eigen::VectorXf::Zero(64);
    control.allocations = allocation_count - count + (grown.size() == 64 ? 0 : 1);
  });
  allocating.join();
  check(control.allocations > 0, "an allocation in a thread is counted");
  check(report.changes.load() == changes, "the audio thread took every change");
  check(report.allocations == 0, "the audio thread allocated and freed nothing");
  check(same_bits(weights_of(*model), original),
        "after the last change, to no adapter, the weights are W0 bit for bit");

  std::ranges::sort(report.block_us);
  const auto quantile = [&](double q) {
    return report.block_us[static_cast<std::size_t>(q * static_cast<double>(report.block_us.size() - 1))];
  };
  std::printf("\n| blocks of %d | changes | allocations | us a block: median | 99%% | longest | to play it |\n", block);
  std::printf("|---:|---:|---:|---:|---:|---:|---:|\n| %ld | %ld | %ld | %.0f | %.0f | %.0f | %.0f |\n\n",
              report.blocks.load(), report.changes.load(), report.allocations, quantile(0.5), quantile(0.99),
              quantile(1), 1e6 * block / sample_rate);
  return check.failures();
}

}  // namespace hosts::amplifier
