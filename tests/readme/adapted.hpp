// SPDX-License-Identifier: MIT
// The names of quickstart.hpp, and a layer over them.
#pragma once

#include "quickstart.hpp"

inline lora::LoraLinear<float> layer(W0, bias, {.rank = 8, .alpha = 16}, /*seed=*/42);
