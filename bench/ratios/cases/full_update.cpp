// SPDX-License-Identifier: MIT
// A LoRA step with AdamW against the step that trains every weight, written as well as the library's kernels allow.
#include "cases/cases.hpp"
#include "cases/layer.hpp"
#include "support/training_step.hpp"

namespace lora::bench {

void measure_full_update(Session& session) {
  struct Batch {
    Index n;
    double target;
  };
  for (const Index d : {Index{1024}, Index{4096}}) {
    for (const auto& [n, target] : {Batch{1, 0.30}, Batch{32, 0.45}, Batch{2048, 0.75}}) {
      std::vector<Index> ranks;
      for (const Index r : {Index{8}, Index{16}}) {
        if (session.wants({"full_step"}, case_name(n, d, d, r), n * d > 2048 * 1024)) ranks.push_back(r);
      }
      for (const Index r : ranks) {
        const StepShape shape{n, d, d, r};
        StepData data(shape);
        LoraStep lora_step(shape, data);
        FullStep full_step(shape, data);
        const std::string name = case_name(n, d, d, r);
        const auto timings = session.compare({"full_update", name, product_flops(n, d, d), 0, {}},
                                             {{"lora", [&] { lora_step.run(); }}, {"full", [&] { full_step.run(); }}});
        session.add({.id = "full_step",
                     .name = name,
                     .relation = Relation::at_most,
                     .target = target,
                     .value = ratio(timings[0], timings[1]),
                     .absent = {}});
      }
    }
  }
}

}  // namespace lora::bench
