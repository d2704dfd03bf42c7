// SPDX-License-Identifier: MIT
// Which kind of layers a method needs.
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/method_run.hpp"
#include "sentence_encoder/text_classifier.hpp"

namespace examples::sentence_encoder {

extern template RunResult run_method_with<AdaptedLayers<float>>(const RunRequest&);
extern template RunResult run_method_with<TrainedLayers<float>>(const RunRequest&);
extern template StepTimes time_steps_with<AdaptedLayers<float>>(const RunRequest&, int);
extern template StepTimes time_steps_with<TrainedLayers<float>>(const RunRequest&, int);
extern template std::unique_ptr<TextClassifier> make_text_classifier_with<AdaptedLayers<float>>(
    const EncoderWeights<float>&, const Adapter&, const AdaptedLayers<float>&);

RunResult run_method(const RunRequest& request) {
  return request.method.full() ? run_method_with<TrainedLayers<float>>(request)
                               : run_method_with<AdaptedLayers<float>>(request);
}

StepTimes time_steps(const RunRequest& request, int steps) {
  return request.method.full() ? time_steps_with<TrainedLayers<float>>(request, steps)
                               : time_steps_with<AdaptedLayers<float>>(request, steps);
}

std::unique_ptr<TextClassifier> make_text_classifier(const EncoderWeights<float>& weights, const Adapter& adapter,
                                                     WeightFormat format) {
  AdaptedLayers<float> layers;
  layers.format = format;
  return make_text_classifier_with<AdaptedLayers<float>>(weights, adapter, layers);
}

}  // namespace examples::sentence_encoder
