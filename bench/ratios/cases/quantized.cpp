// SPDX-License-Identifier: MIT
// Weights of fewer bits: decoding one row against the bandwidth of memory, and batches against a packed weight.
#include "lora/weight/quantized.hpp"

#include <string>
#include <vector>

#include "cases/blocks.hpp"
#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

template <class Format>
QuantizedWeight<Format> weight_of(Index d) {
  return QuantizedWeight<Format>::from_blocks(blocks_of<Format>(d, 1), d, d);
}

// Bytes per second over the bandwidth of memory: the weights together exceed every cache.
template <class Format>
void measure_row(Session& session, const char* id, double target) {
  constexpr Index d = 4096;
  const std::string name = case_name(1, d, d) + "," + std::string(Format::name);
  if (!session.wants({id}, name)) return;
  const auto blocks = blocks_of<Format>(d, 1);
  std::vector<QuantizedWeight<Format>> weights;
  std::size_t bytes = 0;
  while (bytes < session.options().cold_bytes / 2) {
    weights.push_back(QuantizedWeight<Format>::from_blocks(blocks, d, d));
    bytes += blocks.size();
  }
  const auto x = normal_matrix(1, d, 2);
  Matrix<float> y(1, d);
  Workspace workspace;
  const auto decode = [&] {
    for (const auto& weight : weights) weight.product(view_of(x), nullptr, {}, view_of(y), workspace);
  };
  const auto timings =
      session.compare({"quantized", name, 0, static_cast<double>(bytes), {}}, {{"decode", decode}, session.read()});
  const double share = static_cast<double>(bytes) / static_cast<double>(session.options().cold_bytes);
  session.add({.id = id, .name = name, .target = target, .value = ratio(timings[1], timings[0], share), .absent = {}});
}

// The speed of a packed float weight of the same shape, kept.
template <class Format>
void measure_batch(Session& session, Index n, Index d, bool forward, bool large) {
  const char* const id = forward ? "quantized_product" : "quantized_dx";
  const std::string name = case_name(n, d, d) + "," + std::string(Format::name);
  if (!session.wants({id}, name, large)) return;
  const auto weight = weight_of<Format>(d);
  Matrix<float> values(d, d);
  read_back(weight, view_of(values));
  const PackedWeight<float> packed(view_of(std::as_const(values)));
  const auto x = normal_matrix(n, d, 2);
  Matrix<float> y(n, d);
  Workspace workspace;
  const auto run = [&](const auto& of) {
    if (forward) {
      of.product(view_of(x), nullptr, {}, view_of(y), workspace);
    } else {
      of.product_transposed(view_of(x), {}, view_of(y), workspace);
    }
  };
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(d) * static_cast<double>(d);
  const auto timings = session.compare({forward ? "quantized" : "quantized_dx", name, flops, 0, {}},
                                       {{"float", [&] { run(packed); }}, {"quantized", [&] { run(weight); }}});
  session.add(
      {.id = id, .name = name, .target = forward ? 0.85 : 0.80, .value = ratio(timings[0], timings[1]), .absent = {}});
}

// A training step with dX over the base product of the same weight.
template <class Format>
void measure_step(Session& session, Index d, bool large) {
  constexpr Index n = 256;
  constexpr Index r = 8;
  const std::string name = case_name(n, d, d, r) + "," + std::string(Format::name);
  if (!session.wants({"quantized_step"}, name, large)) return;
  using Layer = TimedLayerOver<QuantizedWeight<Format>>;
  LayerData data(n, d, d);
  Layer base(data, weight_of<Format>(d), timed_config(0));
  Layer adapted(data, weight_of<Format>(d), timed_config(r));
  const auto timings = session.compare({"quantized_step", name, 0, 0, {}},
                                       {{"base", [&] { base.infer(); }}, {"step", [&] { adapted.step(); }}});
  session.add({.id = "quantized_step",
               .name = name,
               .relation = Relation::at_most,
               .target = 2.15 + 4 * adapter_share(d, d, r),
               .value = ratio(timings[1], timings[0]),
               .absent = {}});
}

template <class Format>
void count_bytes(Session& session) {
  constexpr Index d = 1024;
  const std::string name = case_name(0, d, d) + "," + std::string(Format::name);
  if (!session.wants({"quantized_bytes"}, name)) return;
  const double held = static_cast<double>(weight_of<Format>(d).bytes());
  const double value = held / static_cast<double>(d * formats::row_bytes<Format>(d));
  session.add({.id = "quantized_bytes",
               .name = name,
               .relation = Relation::at_most,
               .target = 1.02,
               .value = {value, value, value, 1},
               .absent = {}});
}

template <class Format>
void measure_format(Session& session, double row_target) {
  count_bytes<Format>(session);
  measure_row<Format>(session, "quantized_row", row_target);
  for (const bool forward : {true, false}) {
    measure_batch<Format>(session, 256, 1024, forward, false);
    measure_batch<Format>(session, 256, 4096, forward, true);
  }
  measure_batch<Format>(session, 2048, 1024, true, true);
  measure_step<Format>(session, 1024, false);
  measure_step<Format>(session, 4096, true);
}

}  // namespace

void measure_quantized(Session& session) {
  using namespace formats;
  measure_format<F16>(session, 0.90);
  measure_format<BF16>(session, 0.90);
  measure_format<Q8_0>(session, 0.85);
  measure_format<Q4_0>(session, 0.70);
  measure_format<Q4_1>(session, 0.70);
  measure_format<Q4_K>(session, 0.70);
  measure_format<IQ4_NL>(session, 0.70);
  measure_format<IQ4_XS>(session, 0.70);
  measure_format<MXFP4>(session, 0.70);
  measure_format<NF4<>>(session, 0.70);
  measure_format<FP4<>>(session, 0.70);
}

}  // namespace lora::bench
