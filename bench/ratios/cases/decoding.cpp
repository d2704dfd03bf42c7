// SPDX-License-Identifier: MIT
// One row through many layers, as in decoding: together their weights exceed every cache, so that each comes from
// memory.
#include <memory>

#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

struct Layers {
  Layers(Index d, Index r, std::size_t bytes) : x(normal_matrix(1, d, 1)), y(1, d) {
    const auto w0 = normal_matrix(d, d, 0);
    const std::size_t each = static_cast<std::size_t>(d * d) * sizeof(float);
    for (std::size_t i = 0; i * each < bytes; ++i) {
      layers.push_back(std::make_unique<LoraLinear<float>>(
          w0, LoraConfig{.rank = r, .alpha = 16, .init_lora_weights = InitLoraWeights::random}, i));
    }
    weight_bytes = static_cast<double>(layers.size() * each);
  }

  void base() {
    for (const auto& layer : layers) {
      layer->frozen_weight().product(view_of(std::as_const(x)), nullptr, {}, view_of(y), workspace);
    }
  }
  void lora() {
    for (const auto& layer : layers) layer->infer(x, y, workspace);
  }

  Matrix<float> x, y;
  std::vector<std::unique_ptr<LoraLinear<float>>> layers;
  Workspace workspace;
  double weight_bytes = 0;
};

}  // namespace

void measure_decoding(Session& session) {
  for (const Index d : {Index{1024}, Index{4096}}) {
    for (const Index r : {Index{8}, Index{16}, Index{64}}) {
      const std::string name = case_name(1, d, d, r);
      const bool decode = r == 8 && session.wants({"decode"}, name);
      if (!session.wants({"decode_lora"}, name) && !decode) continue;
      Layers layers(d, r, session.options().cold_bytes);
      const auto timings =
          session.compare({"decoding", name, 0, layers.weight_bytes, {}},
                          {{"base", [&] { layers.base(); }}, {"lora", [&] { layers.lora(); }}, session.read()});
      if (r == 8) {
        const double share = layers.weight_bytes / static_cast<double>(session.options().cold_bytes);
        session.add({.id = "decode",
                     .name = case_name(1, d, d),
                     .target = 0.90,
                     .value = ratio(timings[2], timings[0], share),
                     .absent = {}});
      }
      session.add({.id = "decode_lora",
                   .name = name,
                   .relation = Relation::at_most,
                   .target = 1 + adapter_share(d, d, r) + 0.05,
                   .value = ratio(timings[1], timings[0]),
                   .absent = {}});
    }
  }
}

}  // namespace lora::bench
