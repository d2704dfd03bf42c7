// SPDX-License-Identifier: MIT
// A layer of floats fills no array of doubles.
// expect: the output's scalar type is not the layer's
#include "lora/layers/rows.hpp"

#ifdef LORA_SHOULD_FAIL
using Output = lora::Matrix<double>;
#else
using Output = lora::Matrix<float>;
#endif

lora::Index rows_of(Output& y) { return lora::output_rows<float>({"Layer", "call"}, "y", y, 2, 3).rows; }
