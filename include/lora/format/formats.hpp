// SPDX-License-Identifier: MIT
// All number formats of frozen weights.
#pragma once

#include "lora/format/bf16.hpp"
#include "lora/format/f16.hpp"
#include "lora/format/fp4.hpp"
#include "lora/format/iq4_nl.hpp"
#include "lora/format/iq4_xs.hpp"
#include "lora/format/mxfp4.hpp"
#include "lora/format/nf4.hpp"
#include "lora/format/number_format.hpp"
#include "lora/format/q2_k.hpp"
#include "lora/format/q3_k.hpp"
#include "lora/format/q4_0.hpp"
#include "lora/format/q4_1.hpp"
#include "lora/format/q4_k.hpp"
#include "lora/format/q5_0.hpp"
#include "lora/format/q5_1.hpp"
#include "lora/format/q5_k.hpp"
#include "lora/format/q6_k.hpp"
#include "lora/format/q8_0.hpp"
