// Which kind of layers a method, or an adapter in a file, needs.
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/method_run.hpp"
#include "sentence_encoder/text_classifier.hpp"

namespace examples::sentence_encoder {

extern template RunResult run_method_with<AdaptedLayers<float>>(const RunRequest&);
extern template RunResult run_method_with<StackedAdaptedLayers<float>>(const RunRequest&);
extern template RunResult run_method_with<TrainedLayers<float>>(const RunRequest&);
extern template StepTimes time_steps_with<AdaptedLayers<float>>(const RunRequest&, int);
extern template StepTimes time_steps_with<StackedAdaptedLayers<float>>(const RunRequest&, int);
extern template StepTimes time_steps_with<TrainedLayers<float>>(const RunRequest&, int);
extern template std::unique_ptr<TextClassifier> make_text_classifier_with<AdaptedLayers<float>>(
    const EncoderWeights<float>&, const Adapter&);
extern template std::unique_ptr<TextClassifier> make_text_classifier_with<StackedAdaptedLayers<float>>(
    const EncoderWeights<float>&, const Adapter&);

RunResult run_method(const RunRequest& request) {
  switch (request.method.kind) {
    case MethodKind::full:
      return run_method_with<TrainedLayers<float>>(request);
    case MethodKind::dora:
      return run_method_with<StackedAdaptedLayers<float>>(request);
    default:
      return run_method_with<AdaptedLayers<float>>(request);
  }
}

StepTimes time_steps(const RunRequest& request, int steps) {
  switch (request.method.kind) {
    case MethodKind::full:
      return time_steps_with<TrainedLayers<float>>(request, steps);
    case MethodKind::dora:
      return time_steps_with<StackedAdaptedLayers<float>>(request, steps);
    default:
      return time_steps_with<AdaptedLayers<float>>(request, steps);
  }
}

std::unique_ptr<TextClassifier> make_text_classifier(const EncoderWeights<float>& weights, const Adapter& adapter) {
  return adapter.config.lora.use_dora ? make_text_classifier_with<StackedAdaptedLayers<float>>(weights, adapter)
                                      : make_text_classifier_with<AdaptedLayers<float>>(weights, adapter);
}

}  // namespace examples::sentence_encoder
