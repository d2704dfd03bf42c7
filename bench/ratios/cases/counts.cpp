// SPDX-License-Identifier: MIT
// Exact counts: allocations of a steady step, bytes remembered, bytes resident.
#include <unistd.h>

#include <cstdio>
#include <fstream>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "cases/cases.hpp"
#include "cases/layer.hpp"
#include "lora/core/thread_pool_executor.hpp"
#include "lora/optim/adamw.hpp"
#include "support/allocation_counter.hpp"

namespace lora::bench {
namespace {

Summary exactly(double value) { return {value, value, value, 1}; }

Goal at_most(const char* id, std::string name, double value, double target) {
  return {.id = id,
          .name = std::move(name),
          .relation = Relation::at_most,
          .target = target,
          .value = exactly(value),
          .absent = {}};
}

double allocations_of_a_step(double dropout, Executor& executor) {
  constexpr Index n = 64;
  LayerData data(n, 256, 512);
  LoraLinear<float> layer(data.w0, data.bias, {.rank = 8, .dropout = dropout}, 1);
  layer.set_executor(executor);
  AdamW<float> optimizer;
  const auto step = [&] {
    layer.forward(data.x, data.y);
    layer.backward(data.dy, data.dx);
    optimizer.step(layer);
    layer.zero_grad();
  };
  step();
  return static_cast<double>(testing::allocations_of(step));
}

double allocations_of_inference(Executor& executor) {
  LayerData data(64, 256, 512);
  TimedLayer timed(data, 8);
  timed.run_on(executor);
  timed.infer();
  return static_cast<double>(testing::allocations_of([&] { timed.infer(); }));
}

void count_allocations(Session& session) {
  SerialExecutor serial;
  Eigen::ThreadPool pool(1, false);
  ThreadPoolExecutor two_threads(pool);
  const std::pair<const char*, Executor*> executors[] = {{"threads=1", &serial}, {"threads=2", &two_threads}};
  for (const auto& [threads, executor] : executors) {
    const std::string inference = std::string("inference,") + threads;
    if (session.wants({"allocations"}, inference)) {
      session.add(at_most("allocations", inference, allocations_of_inference(*executor), 0));
    }
    for (const double dropout : {0.0, 0.1}) {
      const std::string step = std::string(dropout > 0 ? "step,p=0.1," : "step,p=0,") + threads;
      if (!session.wants({"allocations"}, step)) continue;
      session.add(at_most("allocations", step, allocations_of_a_step(dropout, *executor), 0));
    }
  }
}

void count_saved(Session& session) {
  constexpr Index n = 256, k = 1024, r = 8;
  for (const double dropout : {0.0, 0.1}) {
    const std::string name = case_name(n, k, k, r) + (dropout > 0 ? ",p=0.1" : ",p=0");
    if (!session.wants({"saved"}, name)) continue;
    LayerData data(n, k, k);
    TimedLayer timed(data, r, dropout);
    timed.forward();
    session.add(at_most("saved", name, static_cast<double>(timed.tape().bytes()), 4.0 * n * r + n * k / 8.0));
  }
}

// Bytes of this process in memory; 0 where the system does not say.
double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double total = 0, resident = 0;
  if (!(file >> total >> resident)) return 0;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// The layer, its gradients, and what one training step over 32 rows leaves behind; the caller's W0 is not counted.
void count_resident(Session& session) {
  constexpr Index n = 32, d = 4096, r = 8;
  const std::string name = case_name(n, d, d, r);
  if (!session.wants({"resident"}, name)) return;
  LayerData data(n, d, d);
  data.y.setZero();  // so that their pages are there before
  data.dx.setZero();
#if defined(__GLIBC__)
  malloc_trim(0);  // what earlier cases freed must not hide what this one takes
#endif
  const double before = resident_bytes();
  TimedLayer timed(data, r);
  timed.step();
  const double after = resident_bytes();
  const double weight = 4.0 * d * d;
  const double held = before > 0 ? after - before : static_cast<double>(timed.layer().parameter_bytes());
  session.add(at_most("resident", name, held / weight, 1.06));
}

}  // namespace

void measure_counts(Session& session) {
  count_allocations(session);
  count_saved(session);
  count_resident(session);
}

}  // namespace lora::bench
