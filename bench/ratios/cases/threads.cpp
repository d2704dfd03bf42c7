// SPDX-License-Identifier: MIT
// Two threads against one.
#include <memory>
#include <thread>

#include "cases/cases.hpp"
#include "cases/layer.hpp"
#include "executors.hpp"
#include "lora/core/thread_pool_executor.hpp"

namespace lora::bench {
namespace {

constexpr Index r = 8;

// `executors` by name; each runs its own copy of the layer.
void compare_threads(Session& session, Index n, Index d, bool step,
                     const std::vector<std::pair<std::string, Executor*>>& executors) {
  LayerData data(n, d, d);
  std::vector<std::unique_ptr<TimedLayer>> layers;
  std::vector<Contender> contenders;
  for (const auto& [name, executor] : executors) {
    layers.push_back(std::make_unique<TimedLayer>(data, r));
    TimedLayer& layer = *layers.back();
    layer.run_on(*executor);
    if (step) {
      contenders.push_back({name, [&layer] { layer.step(); }});
    } else {
      contenders.push_back({name, [&layer] { layer.infer(); }});
    }
  }
  const std::string pass = step ? "step," : "forward,";
  const auto timings = session.compare({"threads", pass + case_name(n, d, d, r), 0, 0, {}, true}, contenders);
  for (std::size_t i = 1; i < timings.size(); ++i) {
    session.add({.id = "threads",
                 .name = pass + timings[i].name + "," + case_name(n, d, d, r),
                 .target = 1.8,
                 .value = ratio(timings[0], timings[i]),
                 .absent = {}});
  }
}

}  // namespace

void measure_threads(Session& session) {
  Eigen::ThreadPool pool(1, false);
  ThreadPoolExecutor thread_pool(pool);
  SerialExecutor serial;
  const auto openmp = make_openmp_executor(2);
  std::vector<std::pair<std::string, Executor*>> executors{{"one", &serial}, {"pool", &thread_pool}};
  if (openmp != nullptr) executors.emplace_back("openmp", openmp.get());
  for (const Index d : {Index{768}, Index{1024}, Index{4096}}) {
    for (const Index n : {Index{256}, Index{2048}}) {
      for (const bool step : {false, true}) {
        const std::string name = (step ? "step," : "forward,") + case_name(n, d, d, r);
        if (!session.wants({"threads"}, name, n * d > 2048 * 1024)) continue;
        if (std::thread::hardware_concurrency() >= 2) {
          compare_threads(session, n, d, step, executors);
        } else {
          session.add({.id = "threads", .name = name, .target = 1.8, .value = {}, .absent = {"second_core"}});
        }
      }
    }
  }
}

}  // namespace lora::bench
