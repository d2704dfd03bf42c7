// SPDX-License-Identifier: MIT
// A layer takes no raw pointer: nothing says how many rows stand there.
// expect: this type is no input of a layer
#include "lora/layers/linear.hpp"

#ifdef LORA_SHOULD_FAIL
using Input = const float*;
#else
using Input = Eigen::Map<const lora::Matrix<float>>;
#endif

lora::Index answers(const lora::LoraLinear<float>& layer, const Input& x) { return layer.infer(x).rows(); }
