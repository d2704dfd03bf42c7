// SPDX-License-Identifier: MIT
// Weights of fewer bits against ggml, and products in bf16 against those in float.
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cases/blocks.hpp"
#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

/// ggml rounds inputs to 8 bits, in blocks of 32 or 256: half a step is 1/254 of a block's largest number.
void require_near(const std::string& what, const Matrix<float>& got, const Matrix<float>& expected) {
  const double difference = (got - expected).norm();
  const double bound = 0.02 * static_cast<double>(expected.norm());
  if (difference <= bound) return;
  throw std::runtime_error(what + " differs from ours by " + std::to_string(difference) + ", and at most " +
                           std::to_string(bound) + " can be rounding");
}

/// Weights of the same blocks: one, or as many as no cache can hold.
template <class Weight>
std::vector<Weight> copies_of(const Session& session, const std::vector<std::uint8_t>& blocks, Index d, bool cold) {
  std::vector<Weight> weights;
  std::size_t bytes = 0;
  do {
    weights.push_back(Weight::from_blocks(blocks, d, d));
    bytes += blocks.size();
  } while (cold && bytes < session.options().cold_bytes / 2);
  return weights;
}

/// Adds ggml to the contenders, where it is there and knows the format.
template <class Format>
bool add_ggml(Session& session, const std::vector<std::uint8_t>& blocks, std::size_t copies, const Matrix<float>& x,
              const Matrix<float>& y, std::vector<Contender>& contenders) {
  Peer* const ggml = session.peer("ggml");
  if (ggml == nullptr) return false;
  const std::string format(Format::name);
  Matrix<float> out(y.rows(), y.cols());
  const LoraBenchTask task{.kind = lora_bench_quantized_product,
                           .n = x.rows(),
                           .d = y.cols(),
                           .k = x.cols(),
                           .r = 0,
                           .scaling = 0,
                           .in = x.data(),
                           .w = nullptr,
                           .bias = nullptr,
                           .a = nullptr,
                           .b = nullptr,
                           .dy = nullptr,
                           .out = out.data(),
                           .format = format.c_str(),
                           .blocks = blocks.data(),
                           .bytes = static_cast<long>(blocks.size()),
                           .copies = static_cast<long>(copies)};
  if (!ggml->supports(task)) return false;
  contenders.push_back(ggml->contender(task, [&] { require_near("ggml's " + format, out, y); }));
  return true;
}

/// The time of ggml over ours. With one row the weights are read from memory.
template <class Format, Compute compute>
void measure_against_ggml(Session& session, const char* id, Index n, Index d, bool large) {
  const std::string name = case_name(n, d, d) + "," + std::string(Format::name);
  if (!session.wants({id}, name, large)) return;
  Goal goal{.id = id, .name = name, .target = 1.0, .value = {}, .absent = {"ggml"}};
  if (session.peer("ggml") == nullptr) {
    session.add(std::move(goal));
    return;
  }
  const auto blocks = blocks_of<Format>(d, 1);
  const auto weights = copies_of<QuantizedWeight<Format, compute>>(session, blocks, d, n == 1);
  const auto x = normal_matrix(n, d, 2);
  Matrix<float> y(n, d);
  Workspace workspace;
  const auto ours = [&] {
    for (const auto& weight : weights) weight.product(view_of(x), nullptr, {}, view_of(y), workspace);
  };
  ours();
  const auto copies = static_cast<double>(weights.size());
  const double flops = n == 1 ? 0 : 2.0 * static_cast<double>(n) * static_cast<double>(d) * static_cast<double>(d);
  std::vector<Contender> contenders{{"lora", ours}};
  if (add_ggml<Format>(session, blocks, weights.size(), x, y, contenders)) {
    const auto timings =
        session.compare({id, name, flops, copies * static_cast<double>(blocks.size()), {}}, contenders);
    goal.value = ratio(timings_of(timings, "ggml"), timings_of(timings, "lora"));
    goal.absent.clear();
    goal.against = "ggml";
  }
  session.add(std::move(goal));
}

template <class... Format>
void measure_rows(Session& session) {
  (measure_against_ggml<Format, Compute::exact>(session, "quantized_row_ggml", 1, 4096, false), ...);
}

template <class Format>
void measure_int8(Session& session) {
  for (const Index d : {Index{1024}, Index{4096}}) {
    measure_against_ggml<Format, Compute::int8>(session, "int8_ggml", 1, d, false);
    measure_against_ggml<Format, Compute::int8>(session, "int8_ggml", 256, d, d == 4096);
  }
}

/// The time of a packed float weight over that of the same weight in bf16.
void measure_bf16(Session& session, Index n, Index d) {
  using Weight = QuantizedWeight<formats::BF16, Compute::bf16>;
  const std::string name = case_name(n, d, d);
  if (!session.wants({"bf16_product"}, name, d == 4096)) return;
  const auto weight = Weight::from_blocks(blocks_of<formats::BF16>(d, 1), d, d);
  Matrix<float> values(d, d);
  read_back(weight, view_of(values));
  const PackedWeight<float> packed(view_of(std::as_const(values)));
  const auto x = normal_matrix(n, d, 2);
  Matrix<float> y(n, d);
  Matrix<float> expected(n, d);
  Workspace workspace;
  const auto exact = [&] { packed.product(view_of(x), nullptr, {}, view_of(expected), workspace); };
  const auto rounded = [&] { weight.product(view_of(x), nullptr, {}, view_of(y), workspace); };
  exact();
  rounded();
  require_near("the product in bf16", y, expected);
  const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(d) * static_cast<double>(d);
  const auto timings = session.compare({"bf16_product", name, flops, 0, {}}, {{"float", exact}, {"bf16", rounded}});
  session.add(
      {.id = "bf16_product", .name = name, .target = 1.6, .value = ratio(timings[0], timings[1]), .absent = {}});
}

}  // namespace

void measure_quantized_peer(Session& session) {
  using namespace formats;
  measure_rows<F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, IQ4_NL, IQ4_XS, MXFP4>(session);
  measure_int8<Q8_0>(session);
  measure_int8<Q4_0>(session);
  measure_int8<Q5_0>(session);
  for (const Index d : {Index{1024}, Index{4096}}) {
    for (const Index n : {Index{256}, Index{2048}}) measure_bf16(session, n, d);
  }
}

}  // namespace lora::bench
