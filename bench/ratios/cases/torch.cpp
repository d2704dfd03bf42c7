// SPDX-License-Identifier: MIT
// LoRA against libtorch's.
#include "cases/agreement.hpp"
#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

constexpr Index r = 8;

LoraBenchTask torch_task(LayerData& data, TimedLayer& ours, LoraBenchTaskKind kind, Matrix<float>& out) {
  const auto& layer = ours.layer();
  return {.kind = kind,
          .n = data.x.rows(),
          .d = data.w0.rows(),
          .k = data.w0.cols(),
          .r = layer.rank(),
          .scaling = layer.scaling(),
          .in = data.x.data(),
          .w = data.w0.data(),
          .bias = data.bias.data(),
          .a = layer.lora_A().data(),
          .b = layer.lora_B().data(),
          .dy = data.dy.data(),
          .out = out.data(),
          .format = nullptr,
          .blocks = nullptr,
          .bytes = 0,
          .copies = 0};
}

void compare_with_torch(Session& session, Peer& torch, Index n, Index d, const std::string& name) {
  LayerData data(n, d, d);
  TimedLayer ours(data, r);
  ours.infer();
  ours.step();
  Matrix<float> torch_y(n, d);
  Matrix<float> torch_dx(n, d);
  const double forward_magnitude = static_cast<double>(data.x.norm()) * static_cast<double>(data.w0.norm());
  const double backward_magnitude = static_cast<double>(data.dy.norm()) * static_cast<double>(data.w0.norm());
  const auto timings = session.compare(
      {"torch", name, product_flops(n, d, d), product_bytes(n, d, d), {}},
      {{"forward", [&] { ours.infer(); }},
       {"step",
        [&] {
          ours.step();
          ours.zero_grad();
        }},
       torch.contender(torch_task(data, ours, lora_bench_lora_forward, torch_y),
                       [&] { require_agreement("torch's y", torch_y, data.y, forward_magnitude, d + 2 * r); }),
       [&] {
         auto step = torch.contender(torch_task(data, ours, lora_bench_lora_step, torch_dx), [&] {
           require_agreement("torch's dx", torch_dx, data.dx, backward_magnitude, d + 2 * r);
         });
         step.name = "torch step";
         return step;
       }()});
  session.add({.id = "torch_forward",
               .name = name,
               .target = 1.25,
               .value = ratio(timings_of(timings, "torch"), timings_of(timings, "forward")),
               .absent = {},
               .against = "torch"});
  session.add({.id = "torch_step",
               .name = name,
               .target = 1.3,
               .value = ratio(timings_of(timings, "torch step"), timings_of(timings, "step")),
               .absent = {},
               .against = "torch"});
}

}  // namespace

void measure_torch(Session& session) {
  Peer* const torch = session.peer("torch");
  for (const Index d : {Index{1024}, Index{4096}}) {
    for (const Index n : {Index{32}, Index{256}, Index{2048}}) {
      const std::string name = case_name(n, d, d, r);
      if (!session.wants({"torch_forward", "torch_step"}, name, n * d > 2048 * 1024)) continue;
      if (torch != nullptr) {
        compare_with_torch(session, *torch, n, d, name);
      } else {
        session.add({.id = "torch_forward", .name = name, .target = 1.25, .value = {}, .absent = {"torch"}});
        session.add({.id = "torch_step", .name = name, .target = 1.3, .value = {}, .absent = {"torch"}});
      }
    }
  }
}

}  // namespace lora::bench
