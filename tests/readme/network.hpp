// SPDX-License-Identifier: MIT
// A user's own class with two layers and a head.
#pragma once

#include <iostream>

#include "lora/io.hpp"
#include "quickstart.hpp"

struct Network {
  lora::LoraLinear<float> q_proj{W0, bias, {.rank = 0}, 0};
  lora::LoraLinear<float> v_proj{W0, bias, {.rank = 0}, 0};
  lora::Trainable<float> head{lora::Matrix<float>::Zero(3, out_features), {}, {}};
};
inline Network network;
