// SPDX-License-Identifier: MIT
// The arithmetic of a product with a weight of fewer bits.
#pragma once

#include <cstdint>

namespace lora {

/// How a QuantizedWeight multiplies. Gradients (dX) are computed in float in every case, over the decoded weights.
enum class Compute : std::uint8_t {
  /// In float, over the decoded weights. The default.
  exact,
  /// Activations x and decoded weights w are rounded to bf16 (8 bits; what is denormal becomes zero), and summed in
  /// float. With K inputs, an output differs from the exact one by at most
  ///   (2^-8 + 2^-17 + K 2^-23) * sum |x w| + 2^-126 * sum (|x| + |w|),
  /// and by about half of it over weights of BF16; the last part is of denormal numbers. Numbers beyond bf16's range, a
  /// little below float's, become infinite. Twice as fast with AVX512_BF16, slower elsewhere.
  bf16,
  /// Activations are rounded to 8 bits per block of 32 inputs: x is near d q, where q is an integer, |q| <= 127 and
  /// d = max |x| of the block / 127. Products with the codes of the weights are summed exactly in integers within a
  /// block, and times both scales in float. An output differs from the exact one by at most
  ///   sum over blocks of (d / 2) * sum of |w|, + (2^-20 + B 2^-23) * sum |x w| + B 2^-130 for B blocks,
  /// the last part where products of scales are denormal.
  /// A block with a number that is not finite gives NaN; one whose numbers are all below 2^-118 counts as zeros, which
  /// adds at most 2^-118 * sum of |w|. For Q8_0, Q5_0 and Q4_0. Fast with AVX512_VNNI, slower elsewhere.
  int8,
};

}  // namespace lora
