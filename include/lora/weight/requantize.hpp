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

/// How much of an update a weight of fewer bits has taken up. W and W' are the decoded values before and after; norms
/// are those of Frobenius.
struct RequantizationReport {
  double update_norm = 0;  ///< |delta|
  double error_norm = 0;   ///< |W' - W - delta|
  /// <W' - W, delta> / <delta, delta>: 1 if all of the update arrived, 0 if none did, or delta is 0.
  double survived = 0;
  std::int64_t blocks = 0;
  std::int64_t changed_blocks = 0;
};

template <formats::EncodableFormat Format>
struct Requantized {
  QuantizedWeight<Format> weight;
  RequantizationReport report;
};

namespace detail {

/// Encodes w + delta row by row, and sums up what a RequantizationReport says.
template <class Format>
class Requantizer {
 public:
  explicit Requantizer(Index inputs) : inputs_(inputs), after_(static_cast<std::size_t>(inputs)) {}

  /// `blocks` are those of the row, and are replaced where delta is not 0: encoding decoded values need not give their
  /// blocks back. False if a value is not finite afterwards.
  [[nodiscard]] bool encode(const float* before, const float* delta, std::uint8_t* blocks) {
    for (Index q = 0; q < inputs_; q += Format::block_size) {
      ++report_.blocks;
      if (std::any_of(delta + q, delta + q + Format::block_size, [](float value) { return value != 0.0F; })) {
        encode_block(before + q, delta + q, blocks + formats::row_bytes<Format>(q));
      }
    }
    formats::decode_row<Format>(blocks, inputs_, after_.data());
    bool finite = true;
    for (Index q = 0; q < inputs_; ++q) {
      const float after = after_[static_cast<std::size_t>(q)];
      finite = finite && is_finite(delta[q]) && (is_finite(after) || !is_finite(before[q]));
      add(static_cast<double>(after) - static_cast<double>(before[q]), static_cast<double>(delta[q]));
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
  void encode_block(const float* before, const float* delta, std::uint8_t* block) {
    std::uint8_t encoded[Format::block_bytes];
    float sum[Format::block_size];
    for (Index i = 0; i < Format::block_size; ++i) sum[i] = before[i] + delta[i];
    Format::encode(sum, encoded);
    if (std::equal(encoded, encoded + Format::block_bytes, block)) return;
    ++report_.changed_blocks;
    std::copy(encoded, encoded + Format::block_bytes, block);
  }

  void add(double change, double delta) noexcept {
    const double error = change - delta;
    delta_squared_ += delta * delta;
    error_squared_ += error * error;
    change_times_delta_ += change * delta;
  }

  Index inputs_;
  std::vector<float> after_;
  RequantizationReport report_;
  double delta_squared_ = 0;
  double error_squared_ = 0;
  double change_times_delta_ = 0;
};

}  // namespace detail

/// W + s*B*A encoded in the format of `weight`, and how much of the update survived it. An update much smaller than the
/// steps of the format is lost: serve such an adapter unmerged. Blocks that the update does not touch are kept. The
/// given weight is unchanged, so whoever keeps it can go back to it exactly.
/// @throws ShapeError when the factors do not fit; StateError when an element of the update is not finite, or the sum
/// has no finite encoding; std::bad_alloc
template <formats::EncodableFormat Format>
[[nodiscard]] Requantized<Format> requantize(const QuantizedWeight<Format>& weight,
                                             const LowRankUpdate<float>& update) {
  const DefaultFloatingPoint environment;
  const Index outputs = weight.out_features();
  const Index inputs = weight.in_features();
  check_shape("requantize", "A", update.a, update.b.cols, inputs);
  check_shape("requantize", "B", update.b, outputs, update.a.rows);
  const auto row_bytes = static_cast<std::size_t>(formats::row_bytes<Format>(inputs));
  std::vector<std::uint8_t> blocks(row_bytes * static_cast<std::size_t>(outputs));
  weight.write_blocks(blocks);
  const DeltaSource<float> source(update, true);
  std::vector<float> delta(static_cast<std::size_t>(inputs));
  detail::Requantizer<Format> requantizer(inputs);
  for_each_row<float>(weight, [&](Index i, const float* row) {
    source.evaluate(i, 1, 0, inputs, delta.data());
    if (requantizer.encode(row, delta.data(), blocks.data() + row_bytes * static_cast<std::size_t>(i))) return;
    throw StateError("requantize", "W + s*B*A", "numbers within the range of " + std::string(Format::name),
                     "another in row " + std::to_string(i));
  });
  return {QuantizedWeight<Format>::from_blocks(blocks, outputs, inputs), requantizer.report()};
}

}  // namespace lora
