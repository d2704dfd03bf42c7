// SPDX-License-Identifier: MIT
// The frozen weight's two products against the core's peak and against the peers.
#include <algorithm>
#include <utility>

#include "cases/agreement.hpp"
#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

struct Size {
  Index n;
  Index d;
};

// d = k throughout.
constexpr Size products[] = {{256, 768}, {256, 1024}, {256, 4096}, {2048, 768}, {2048, 1024}, {2048, 4096}};
constexpr Size small_products[] = {{8, 1024}, {32, 1024}, {64, 1024}, {8, 4096}, {32, 4096}, {64, 4096}};

bool is_large(const Size& size) { return size.n * size.d > 2048 * 1024; }

std::vector<std::string> absent_peers(const Session& session) {
  std::vector<std::string> absent;
  for (const auto& name : peer_names) {
    if (name != "torch" && name != "ggml" && session.peer(name) == nullptr) absent.push_back(name);
  }
  return absent;
}

// The peer that comes closest to ours, by the median of its ratios.
void add_against_best(Session& session, Goal goal, const std::vector<Timings>& timings) {
  goal.absent = absent_peers(session);
  for (const auto& peer : session.peers()) {
    const auto found =
        std::find_if(timings.begin(), timings.end(), [&](const auto& t) { return t.name == peer->name(); });
    if (found == timings.end()) continue;
    const Summary value = ratio(*found, timings_of(timings, "lora"));
    if (goal.measured() && value.median >= goal.value.median) continue;
    goal.value = value;
    goal.against = peer->name();
  }
  session.add(std::move(goal));
}

// `forward`: Y = X W^T, else dX = dY W; ours, the core's peak and all peers in one comparison.
std::vector<Timings> compare_product(Session& session, const Size& size, bool forward) {
  const Index n = size.n;
  const Index d = size.d;
  LayerData data(n, d, d);
  const PackedWeight<float> weight(view_of(std::as_const(data.w0)));
  const Matrix<float>& in = forward ? data.x : data.dy;
  Matrix<float> out(n, d);
  Workspace workspace;
  const auto ours = [&] {
    if (forward) {
      weight.product(view_of(in), nullptr, {}, view_of(out), workspace);
    } else {
      weight.product_transposed(view_of(in), {}, view_of(out), workspace);
    }
  };
  std::vector<Contender> contenders{{"lora", ours}, session.peak()};
  ours();
  Matrix<float> peers_out(n, d);
  const LoraBenchTask task{.kind = forward ? lora_bench_product : lora_bench_product_transposed,
                           .n = n,
                           .d = d,
                           .k = d,
                           .r = 0,
                           .scaling = 0,
                           .in = in.data(),
                           .w = data.w0.data(),
                           .bias = nullptr,
                           .a = nullptr,
                           .b = nullptr,
                           .dy = nullptr,
                           .out = peers_out.data(),
                           .format = nullptr,
                           .blocks = nullptr,
                           .bytes = 0,
                           .copies = 0};
  const double magnitude = static_cast<double>(in.norm()) * static_cast<double>(data.w0.norm());
  for (const auto& peer : session.peers()) {
    if (!peer->supports(task)) continue;
    contenders.push_back(peer->contender(task, [&] { require_agreement(peer->name(), peers_out, out, magnitude, d); }));
  }
  return session.compare(
      {forward ? "base" : "dx", case_name(n, d, d), product_flops(n, d, d), product_bytes(n, d, d), {}}, contenders);
}

}  // namespace

void measure_base(Session& session) {
  for (const Size& size : products) {
    const std::string name = case_name(size.n, size.d, size.d);
    if (session.wants({"base_peak", "base_peer"}, name, is_large(size))) {
      const auto timings = compare_product(session, size, true);
      const double share = product_flops(size.n, size.d, size.d) / session.peak_flops();
      session.add({.id = "base_peak",
                   .name = name,
                   .relation = Relation::at_least,
                   .target = 0.88,
                   .value = ratio(timings_of(timings, "peak"), timings_of(timings, "lora"), share),
                   .absent = {}});
      add_against_best(session, {.id = "base_peer", .name = name, .target = 1.0, .value = {}, .absent = {}}, timings);
    }
    if (session.wants({"dx_peer"}, name, is_large(size))) {
      const auto timings = compare_product(session, size, false);
      add_against_best(session, {.id = "dx_peer", .name = name, .target = 1.0, .value = {}, .absent = {}}, timings);
    }
  }
  for (const Size& size : small_products) {
    const std::string name = case_name(size.n, size.d, size.d);
    if (!session.wants({"base_small"}, name)) continue;
    const auto timings = compare_product(session, size, true);
    add_against_best(session, {.id = "base_small", .name = name, .target = 1.3, .value = {}, .absent = {}}, timings);
  }
}

void sweep_batch_sizes(Session& session) {
  const auto reading = session.compare({"sweep", "read", 0, 0, {}}, {session.read()});
  const double bandwidth = static_cast<double>(session.options().cold_bytes) / reading[0].summary().median;
  for (const Index d : {Index{1024}, Index{4096}}) {
    for (Index n = 1; n <= 2048; n *= 2) {
      if (session.options().quick && n * d > 256 * 4096) continue;
      const std::string plot = "time_over_n_" + std::to_string(d);
      const auto x = static_cast<double>(n);
      for (const auto& timing : compare_product(session, {n, d}, true)) {
        const double seconds = timing.summary().median;
        if (timing.name != "peak") {
          session.sweep().push_back({plot, timing.name, x, seconds});
          continue;
        }
        const double computing = product_flops(n, d, d) / session.peak_flops() * seconds;
        session.sweep().push_back({plot, "roofline", x, std::max(computing, product_bytes(n, d, d) / bandwidth)});
      }
    }
  }
}

}  // namespace lora::bench
