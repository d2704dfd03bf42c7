// SPDX-License-Identifier: MIT
// All that is instantiated for full fine-tuning.
#include "sentence_encoder/linear_kinds.hpp"
#include "sentence_encoder/method_run_impl.hpp"

namespace examples::sentence_encoder {

template RunResult run_method_with<TrainedLayers<float>>(const RunRequest&);
template StepTimes time_steps_with<TrainedLayers<float>>(const RunRequest&, int);

}  // namespace examples::sentence_encoder
