// SPDX-License-Identifier: MIT
// A plain matrix is no frozen weight: it is wrapped in one.
// expect: FrozenWeight
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Layer = lora::LoraLinear<float, lora::Matrix<float>>;
#else
using Layer = lora::LoraLinear<float, lora::PackedWeight<float>>;
#endif

lora::Index features(const Layer& layer) { return layer.in_features(); }
