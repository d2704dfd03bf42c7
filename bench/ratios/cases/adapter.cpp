// SPDX-License-Identifier: MIT
// What the adapter adds to the layer's own base product: forward, a whole step, dropout, DoRA, and nothing once merged.
#include <cmath>
#include <memory>

#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

struct Size {
  Index n;
  Index d;
};

constexpr Size sizes[] = {{256, 768}, {256, 1024}, {256, 4096}, {2048, 768}, {2048, 1024}, {2048, 4096}};
constexpr Size dora_sizes[] = {{256, 1024}, {256, 4096}, {2048, 1024}, {2048, 4096}};
constexpr Size merged_sizes[] = {{1, 1024}, {1, 4096}, {256, 1024}, {256, 4096}, {2048, 1024}};

bool is_large(const Size& size) { return size.n * size.d > 2048 * 1024; }

std::string rank_name(const char* pass, Index r) { return std::string(pass) + ",r=" + std::to_string(r); }

// Contenders "base", then "forward,r=..." and "step,r=..." for each rank.
std::vector<Timings> compare_ranks(Session& session, const Size& size, const std::vector<Index>& ranks) {
  const auto [n, d] = size;
  LayerData data(n, d, d);
  TimedLayer base(data, 0);
  std::vector<std::unique_ptr<TimedLayer>> layers;
  std::vector<Contender> contenders{{"base", [&] { base.infer(); }}};
  for (const Index r : ranks) {
    layers.push_back(std::make_unique<TimedLayer>(data, r));
    TimedLayer& layer = *layers.back();
    layer.forward();
    contenders.push_back({rank_name("forward", r), [&layer] { layer.forward(); }});
    contenders.push_back({rank_name("step", r), [&layer] { layer.step(); }});
  }
  return session.compare({"adapter", case_name(n, d, d), product_flops(n, d, d), product_bytes(n, d, d), {}},
                         contenders);
}

}  // namespace

void measure_adapter(Session& session) {
  for (const Size& size : sizes) {
    std::vector<Index> ranks;
    for (const Index r : {Index{8}, Index{16}, Index{64}}) {
      if (session.wants({"lora_forward", "lora_step"}, case_name(size.n, size.d, size.d, r), is_large(size))) {
        ranks.push_back(r);
      }
    }
    if (ranks.empty()) continue;
    const auto timings = compare_ranks(session, size, ranks);
    for (const Index r : ranks) {
      const double share = adapter_share(size.d, size.d, r);
      const std::string name = case_name(size.n, size.d, size.d, r);
      session.add({.id = "lora_forward",
                   .name = name,
                   .relation = Relation::at_most,
                   .target = 1 + 2 * share + 0.01,
                   .value = ratio(timings_of(timings, rank_name("forward", r)), timings[0]),
                   .absent = {}});
      session.add({.id = "lora_step",
                   .name = name,
                   .relation = Relation::at_most,
                   .target = 2.15 + 4 * share,
                   .value = ratio(timings_of(timings, rank_name("step", r)), timings[0]),
                   .absent = {}});
    }
  }
}

void measure_dropout(Session& session) {
  constexpr Index r = 8;
  for (const Size& size : sizes) {
    const auto [n, d] = size;
    const std::string name = case_name(n, d, d, r);
    if (!session.wants({"dropout"}, name, is_large(size))) continue;
    LayerData data(n, d, d);
    TimedLayer without(data, r);
    TimedLayer with(data, r, 0.1);
    const auto timings = session.compare({"dropout", name, 0, 0, {}},
                                         {{"step,p=0", [&] { without.step(); }}, {"step,p=0.1", [&] { with.step(); }}});
    session.add({.id = "dropout",
                 .name = name,
                 .relation = Relation::at_most,
                 .target = 1.05,
                 .value = ratio(timings[1], timings[0]),
                 .absent = {}});
  }
}

void measure_dora(Session& session) {
  constexpr Index r = 8;
  for (const Size& size : dora_sizes) {
    const auto [n, d] = size;
    const std::string name = case_name(n, d, d, r);
    if (!session.wants({"dora_step"}, name, is_large(size))) continue;
    LayerData data(n, d, d);
    TimedLayer lora(data, r);
    TimedLayer dora(data, {.rank = r, .alpha = 16, .use_dora = true, .init_lora_weights = InitLoraWeights::random});
    const auto timings =
        session.compare({"dora", name, 0, 0, {}}, {{"lora", [&] { lora.step(); }}, {"dora", [&] { dora.step(); }}});
    session.add({.id = "dora_step",
                 .name = name,
                 .relation = Relation::at_most,
                 .target = 1.15,
                 .value = ratio(timings[1], timings[0]),
                 .absent = {}});
  }
}

void measure_merged(Session& session) {
  constexpr Index r = 8;
  for (const Size& size : merged_sizes) {
    const auto [n, d] = size;
    const std::string name = case_name(n, d, d, r);
    if (!session.wants({"merged"}, name)) continue;
    LayerData data(n, d, d);
    TimedLayer base(data, 0);
    TimedLayer merged(data, r);
    merged.layer().merge();
    const auto timings = session.compare({"merged", name, product_flops(n, d, d), product_bytes(n, d, d), {}},
                                         {{"base", [&] { base.infer(); }}, {"merged", [&] { merged.infer(); }}});
    // The goal is 1.00 +- 0.02, and its value how far the ratio is from 1; the quartiles keep their sign.
    Summary value = ratio(timings[1], timings[0]);
    value.median = std::abs(value.median - 1);
    value.lower_quartile -= 1;
    value.upper_quartile -= 1;
    session.add(
        {.id = "merged", .name = name, .relation = Relation::at_most, .target = 0.02, .value = value, .absent = {}});
  }
}

void sweep_ranks(Session& session) {
  const std::vector<Index> ranks{1, 2, 4, 8, 16, 32, 64, 128};
  for (const Size& size : {Size{256, 1024}, Size{256, 4096}}) {
    const auto timings = compare_ranks(session, size, ranks);
    const std::string plot = "ratio_over_r_" + std::to_string(size.d);
    for (const Index r : ranks) {
      const auto x = static_cast<double>(r);
      const double share = adapter_share(size.d, size.d, r);
      for (const char* pass : {"forward", "step"}) {
        const double value = ratio(timings_of(timings, rank_name(pass, r)), timings[0]).median;
        session.sweep().push_back({plot, pass, x, value});
      }
      session.sweep().push_back({plot, "goal of forward", x, 1 + 2 * share + 0.01});
      session.sweep().push_back({plot, "goal of step", x, 2.15 + 4 * share});
    }
  }
}

}  // namespace lora::bench
