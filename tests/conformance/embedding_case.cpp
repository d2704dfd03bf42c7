// SPDX-License-Identifier: MIT
// Embeddings: PEFT's lora.Embedding.
#include "conformance/cases.hpp"
#include "conformance/layer_options.hpp"
#include "lora/layers/embedding.hpp"

namespace lora::conformance {
namespace embedding_case {
namespace {

template <class Scalar>
void check(GoldenCase& golden, Comparison& comparison) {
  const LoraConfig config = layer_config(golden.nested("lora"));
  const auto table = golden.matrix<Scalar>("base.weight");
  LoraEmbedding<Scalar> layer(table, config, 1);
  auto shape = golden.nested("layer");
  comparison.equal("num_embeddings", layer.num_embeddings(), shape.get<Index>("num_embeddings"));
  comparison.equal("embedding_dim", layer.embedding_dim(), shape.get<Index>("embedding_dim"));
  shape.finish();
  layer.set_factors(golden.matrix<Scalar>("param.lora_embedding_A"), golden.matrix<Scalar>("param.lora_embedding_B"));
  if (config.use_dora) layer.set_magnitude(golden.matrix<Scalar>("param.lora_magnitude_vector.weight"));

  const auto ids = golden.vector<std::int64_t>("x");
  comparison.close<Scalar>("y", layer.forward(ids), golden.matrix<Scalar>("y"));
  comparison.close<Scalar>("y of infer", layer.infer(ids), golden.matrix<Scalar>("y"));
  layer.backward(golden.matrix<Scalar>("grad_y"));
  const auto& gradients = layer.gradients();
  comparison.close<Scalar>("grad.lora_embedding_A", gradients.A, golden.matrix<Scalar>("grad.lora_embedding_A"));
  comparison.close<Scalar>("grad.lora_embedding_B", gradients.B, golden.matrix<Scalar>("grad.lora_embedding_B"));
  if (config.use_dora) {
    comparison.close<Scalar>("grad.lora_magnitude_vector", gradients.magnitude,
                             golden.matrix<Scalar>("grad.lora_magnitude_vector.weight"));
  }
  comparison.close<Scalar>("delta", layer.delta_weight(), golden.matrix<Scalar>("delta"));
  layer.eval();
  comparison.close<Scalar>("merged_weight", layer.weight(), golden.matrix<Scalar>("merged_weight"));
  comparison.close<Scalar>("y_merged", layer.infer(ids), golden.matrix<Scalar>("y_merged"));
  layer.train();
  comparison.equal("the unmerged table, bit for bit", layer.weight() == table, true);
}

}  // namespace
}  // namespace embedding_case

void check_embedding(GoldenCase& golden, Comparison& comparison) {
  with_scalar(golden, [&](auto zero) { embedding_case::check<decltype(zero)>(golden, comparison); });
}

}  // namespace lora::conformance
