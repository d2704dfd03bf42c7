// SPDX-License-Identifier: MIT
// What takes the place of merging for weights in blocks of fewer bits: decoding them, or encoding the sum anew.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/floating_point.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/types.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/quantized.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// The values of any readable weight as one that can be merged into. Products have the same bits as before. Holds the
/// values twice while it works. @throws std::bad_alloc
template <ReadableWeight Weight>
[[nodiscard]] PackedWeight<typename Weight::Scalar> dequantized(const Weight& weight) {
  Matrix<typename Weight::Scalar> values(weight.out_features(), weight.in_features());
  read_back(weight, view_of(values));
  return PackedWeight<typename Weight::Scalar>(view_of(std::as_const(values)));
}

/// How much of an update a weight of fewer bits has taken up. W and W' are the decoded values before and after, and
/// delta is what should have been added: s*B*A, or f (.) (W + s*B*A) - W with factors. Norms are those of Frobenius.
struct RequantizationReport {
  double update_norm = 0;  ///< |delta|
  double error_norm = 0;   ///< |W' - W - delta|
  /// <W' - W, delta> / <delta, delta>: 1 if all of the update arrived, 0 if none did, or delta is 0.
  double survived = 0;
  std::int64_t blocks = 0;          ///< of the weight
  std::int64_t changed_blocks = 0;  ///< that were encoded anew
};

/// A weight with an update encoded into it, and what of the update arrived.
template <formats::EncodableFormat Format>
struct Requantized {
  QuantizedWeight<Format> weight;  ///< the new weight
  RequantizationReport report;     ///< what arrived
};

namespace detail {

/// Encodes rows of f (w + delta), and sums up what a RequantizationReport says.
template <class Format>
class Requantizer {
 public:
  explicit Requantizer(Index inputs)
      : inputs_(inputs),
        sum_(static_cast<std::size_t>(inputs)),
        change_(static_cast<std::size_t>(inputs)),
        after_(static_cast<std::size_t>(inputs)) {}

  /// `factor` is f, or null for none. `blocks` are those of the row, and are replaced where something changes: encoding
  /// decoded values need not give their blocks back. False if a value is not finite afterwards.
  [[nodiscard]] bool encode(const float* before, const float* delta, const float* factor, std::uint8_t* blocks) {
    factor == nullptr ? add(before, delta) : add_and_multiply(before, delta, static_cast<double>(*factor));
    for (Index q = 0; q < inputs_; q += Format::block_size) {
      ++report_.blocks;
      const double* const change = change_.data() + q;
      if (std::any_of(change, change + Format::block_size, [](double value) { return value != 0.0; })) {
        encode_block(sum_.data() + q, blocks + formats::row_bytes<Format>(q));
      }
    }
    formats::decode_row<Format>(blocks, inputs_, after_.data());
    bool finite = true;
    for (Index q = 0; q < inputs_; ++q) {
      const auto at = static_cast<std::size_t>(q);
      finite = finite && is_finite(change_[at]) && (is_finite(after_[at]) || !is_finite(before[q]));
      count(static_cast<double>(after_[at]) - static_cast<double>(before[q]), change_[at]);
    }
    return finite;
  }

  [[nodiscard]] RequantizationReport report() const noexcept {
    RequantizationReport report = report_;
    report.update_norm = std::sqrt(delta_squared_);
    report.error_norm = std::sqrt(error_squared_);
    if (delta_squared_ > 0) report.survived = change_times_delta_ / delta_squared_;
    return report;
  }

 private:
  void add(const float* before, const float* delta) noexcept {
    for (std::size_t q = 0; q < sum_.size(); ++q) {
      sum_[q] = before[q] + delta[q];
      change_[q] = static_cast<double>(delta[q]);
    }
  }
  void add_and_multiply(const float* before, const float* delta, double factor) noexcept {
    for (std::size_t q = 0; q < sum_.size(); ++q) {
      const auto w = static_cast<double>(before[q]);
      const double sum = factor * (w + static_cast<double>(delta[q]));
      sum_[q] = static_cast<float>(sum);
      change_[q] = sum - w;
    }
  }

  void encode_block(const float* sum, std::uint8_t* block) {
    std::uint8_t encoded[Format::block_bytes];
    Format::encode(sum, encoded);
    if (std::equal(encoded, encoded + Format::block_bytes, block)) return;
    ++report_.changed_blocks;
    std::copy(encoded, encoded + Format::block_bytes, block);
  }

  void count(double change, double delta) noexcept {
    const double error = change - delta;
    delta_squared_ += delta * delta;
    error_squared_ += error * error;
    change_times_delta_ += change * delta;
  }

  Index inputs_;
  std::vector<float> sum_;      // what should be encoded
  std::vector<double> change_;  // what is added to the weight
  std::vector<float> after_;    // what is stored
  RequantizationReport report_;
  double delta_squared_ = 0;
  double error_squared_ = 0;
  double change_times_delta_ = 0;
};

}  // namespace detail

/// f (.) (W + s*B*A) encoded in the format of `weight`, and how much of the change survived it. Row j is multiplied by
/// output_factors[j], if there are any: dora_factors() (adapter/dora.hpp) are those of an adapter with DoRA. A change
/// much smaller than the steps of the format is lost: serve such an adapter unmerged. Blocks that do not change are
/// kept. The given weight is unchanged, so whoever keeps it can go back to it exactly.
/// @throws ShapeError when the factors do not fit, or the number of output_factors is neither 0 nor out_features;
/// StateError when an element of the change is not finite, or the sum has no finite encoding; std::bad_alloc
template <formats::EncodableFormat Format>
[[nodiscard]] Requantized<Format> requantize(const QuantizedWeight<Format>& weight, const LowRankUpdate<float>& update,
                                             std::span<const float> output_factors = {}) {
  const DefaultFloatingPoint environment;
  const Index outputs = weight.out_features();
  const Index inputs = weight.in_features();
  check_shape("requantize", "A", update.a, update.b.cols, inputs);
  check_shape("requantize", "B", update.b, outputs, update.a.rows);
  if (!output_factors.empty() && static_cast<Index>(output_factors.size()) != outputs) {
    throw ShapeError("requantize", "output_factors", std::to_string(outputs) + " numbers",
                     std::to_string(output_factors.size()));
  }
  const auto row_bytes = static_cast<std::size_t>(formats::row_bytes<Format>(inputs));
  std::vector<std::uint8_t> blocks(row_bytes * static_cast<std::size_t>(outputs));
  weight.write_blocks(blocks);
  const DeltaSource<float> source(update, true);
  std::vector<float> delta(static_cast<std::size_t>(inputs));
  detail::Requantizer<Format> requantizer(inputs);
  for_each_row<float>(weight, [&](Index i, const float* row) {
    source.evaluate(i, 1, 0, inputs, delta.data());
    const auto at = static_cast<std::size_t>(i);
    const float* const factor = output_factors.empty() ? nullptr : output_factors.data() + at;
    if (requantizer.encode(row, delta.data(), factor, blocks.data() + row_bytes * at)) return;
    throw StateError("requantize", factor == nullptr ? "W + s*B*A" : "f*(W + s*B*A)",
                     "numbers within the range of " + std::string(Format::name), "another in row " + std::to_string(i));
  });
  return {QuantizedWeight<Format>::from_blocks(blocks, outputs, inputs), requantizer.report()};
}

}  // namespace lora
