// SPDX-License-Identifier: MIT
// All that is instantiated for LoRA, rsLoRA and DoRA: training runs, classifiers, embeddings of the frozen encoder.
#include <iostream>

#include "common/parallel_runs.hpp"
#include "lora/core/thread_pool_executor.hpp"
#include "sentence_encoder/embed.hpp"
#include "sentence_encoder/embed_command.hpp"
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/merge_tolerance.hpp"
#include "sentence_encoder/method_run_impl.hpp"
#include "sentence_encoder/probe.hpp"

namespace examples::sentence_encoder {

namespace {

// On up to `workers` threads; the result does not depend on their number.
template <class Layers>
lora::Matrix<float> embed_all(const SentenceEncoder<Layers>& encoder, const std::vector<TokenIds>& texts,
                              std::size_t workers) {
  constexpr std::size_t texts_at_once = 256;
  lora::Matrix<float> all(static_cast<Index>(texts.size()), encoder.embedding_size());
  parallel_runs((texts.size() + texts_at_once - 1) / texts_at_once, workers, [&](std::size_t part) {
    const std::size_t first = part * texts_at_once;
    const auto some = std::span(texts).subspan(first, std::min(texts_at_once, texts.size() - first));
    all.middleRows(static_cast<Index>(first), static_cast<Index>(some.size())) = encoder.embed(some);
  });
  return all;
}

}  // namespace

template RunResult run_method_with<AdaptedLayers<float>>(const RunRequest&);
template StepTimes time_steps_with<AdaptedLayers<float>>(const RunRequest&, int);
template std::unique_ptr<TextClassifier> make_text_classifier_with<AdaptedLayers<float>>(const EncoderWeights<float>&,
                                                                                         const Adapter&,
                                                                                         const AdaptedLayers<float>&);

double merge_tolerance(const EncoderWeights<float>& weights, const Adapter& adapter, std::span<const TokenIds> texts) {
  return MergeTolerance<AdaptedLayers<float>>(weights, adapter)(texts);
}

FrozenEmbeddings embed_task(const EncoderWeights<float>& weights, const Task& task, std::size_t workers) {
  const SentenceEncoder<AdaptedLayers<float>> encoder(weights);
  return {embed_all(encoder, task.train.texts, workers), embed_all(encoder, task.validation.texts, workers),
          embed_all(encoder, task.test.texts, workers)};
}

void embed_standard_input(const std::filesystem::path& model_dir) {
  Eigen::ThreadPool pool(static_cast<int>(available_cores()) - 1, /*allow_spinning=*/false);
  lora::ThreadPoolExecutor executor(pool);
  run_embed_command(model_dir, std::cin, std::cout, executor);
}

}  // namespace examples::sentence_encoder
