// SPDX-License-Identifier: MIT
// Times several contenders in one process, interleaved, so that whatever slows the machine down slows all of them.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "statistics.hpp"

namespace lora::bench {

[[nodiscard]] inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that the calling thread has had a processor.
[[nodiscard]] inline double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct TimingPolicy {
  std::size_t minimum_repetitions = 15;
  std::size_t maximum_repetitions = 101;
  double budget_seconds = 3;     ///< per comparison; repetitions go on until it is spent
  double sample_seconds = 2e-3;  ///< a faster contender runs several times for one sample
  /// Samples are processor time of the calling thread instead of time on the wall: for contenders of one thread on a
  /// machine that has other work.
  bool processor_time = false;
};

/// One thing to time.
struct Contender {
  std::string name;
  std::function<void()> run;
  /// Runs before each run, untimed; then a sample is a single run.
  std::function<void()> prepare = {};
};

/// Seconds per run of one contender, one value per repetition.
struct Timings {
  std::string name;
  std::vector<double> seconds;

  [[nodiscard]] Summary summary() const { return summarize(seconds); }
};

namespace detail {

inline double time_runs(const Contender& contender, int runs, const TimingPolicy& policy) {
  if (contender.prepare) contender.prepare();
  const auto clock = policy.processor_time ? thread_seconds : now_seconds;
  const double begin = clock();
  for (int i = 0; i < runs; ++i) contender.run();
  return (clock() - begin) / runs;
}

// Warms up, and finds how many runs make a sample.
inline int runs_per_sample(const Contender& contender, const TimingPolicy& policy) {
  (void)time_runs(contender, 1, policy);
  if (contender.prepare) return 1;
  int runs = 1;
  while (true) {
    const double seconds = time_runs(contender, runs, policy);
    if (seconds * runs >= 0.5 * policy.sample_seconds)
      return std::max(1, static_cast<int>(std::ceil(policy.sample_seconds / seconds)));
    runs *= 2;
  }
}

}  // namespace detail

/// Repetition i takes one sample of every contender, in an order that is reversed with each repetition and rotated with
/// every second, so that nobody always follows the same neighbour.
[[nodiscard]] inline std::vector<Timings> time_interleaved(const std::vector<Contender>& contenders,
                                                           const TimingPolicy& policy) {
  const std::size_t count = contenders.size();
  std::vector<Timings> timings(count);
  std::vector<int> runs(count);
  for (std::size_t c = 0; c < count; ++c) {
    timings[c].name = contenders[c].name;
    runs[c] = detail::runs_per_sample(contenders[c], policy);
  }
  const double begin = now_seconds();
  for (std::size_t i = 0; i < policy.maximum_repetitions; ++i) {
    if (i >= policy.minimum_repetitions && now_seconds() - begin >= policy.budget_seconds) break;
    for (std::size_t step = 0; step < count; ++step) {
      const std::size_t rotated = (step + i / 2) % count;
      const std::size_t c = i % 2 == 0 ? rotated : count - 1 - rotated;
      timings[c].seconds.push_back(detail::time_runs(contenders[c], runs[c], policy));
    }
  }
  return timings;
}

/// factor * a / b, repetition by repetition.
[[nodiscard]] inline Summary ratio(const Timings& a, const Timings& b, double factor = 1) {
  std::vector<double> ratios(a.seconds.size());
  for (std::size_t i = 0; i < ratios.size(); ++i) ratios[i] = factor * a.seconds[i] / b.seconds[i];
  return summarize(std::move(ratios));
}

}  // namespace lora::bench
