// SPDX-License-Identifier: MIT
// A layer computes in float or double.
// expect: RealScalar
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Layer = lora::LoraLinear<int>;
#else
using Layer = lora::LoraLinear<float>;
#endif

lora::Index features(const Layer& layer) { return layer.in_features(); }
