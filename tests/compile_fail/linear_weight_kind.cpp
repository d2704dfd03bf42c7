// SPDX-License-Identifier: MIT
// A layer of floats cannot stand on a weight of doubles.
// expect: the weight's scalar type is not the layer's
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Layer = lora::LoraLinear<float, lora::PackedWeight<double>>;
#else
using Layer = lora::LoraLinear<float, lora::PackedWeight<float>>;
#endif

lora::Index features(const Layer& layer) { return layer.in_features(); }
