// All that is instantiated for DoRA, whose queries, keys and values share one pair of factors.
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/method_run_impl.hpp"
#include "sentence_encoder/text_classifier_impl.hpp"

namespace examples::sentence_encoder {

template RunResult run_method_with<StackedAdaptedLayers<float>>(const RunRequest&);
template StepTimes time_steps_with<StackedAdaptedLayers<float>>(const RunRequest&, int);
template std::unique_ptr<TextClassifier> make_text_classifier_with<StackedAdaptedLayers<float>>(
    const EncoderWeights<float>&, const Adapter&);

}  // namespace examples::sentence_encoder
