// SPDX-License-Identifier: MIT
// A layer of floats takes no batch of doubles.
// expect: the input's scalar type is not the layer's
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Input = lora::Matrix<double>;
#else
using Input = lora::Matrix<float>;
#endif

lora::Index answers(const lora::LoraLinear<float>& layer, const Input& x) { return layer.infer(x).rows(); }
