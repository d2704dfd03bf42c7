// SPDX-License-Identifier: MIT
// Images as rows of numbers, in batches and in an order that a seed fixes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "common/dataset.hpp"
#include "lora/core/philox.hpp"
#include "lora/core/types.hpp"

namespace examples {

/// N images and their labels, as the network takes them.
struct Batch {
  lora::Matrix<float> x;             ///< N x image_size, in [-1, 1]
  std::vector<std::uint8_t> labels;  ///< N

  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(x.size()) * sizeof(float) + labels.size();
  }
};

/// Fills `batch` with the images that `order` names. Pixel p becomes p / 127.5 - 1.
/// Allocates only when the batch's size changes.
inline void fill_batch(const ImageSet& set, std::span<const Index> order, Batch& batch) {
  const auto rows = static_cast<Index>(order.size());
  batch.x.resize(rows, set.image_size());
  batch.labels.resize(order.size());
  for (Index i = 0; i < rows; ++i) {
    const Index source = order[static_cast<std::size_t>(i)];
    const auto image = set.image(source);
    float* row = batch.x.row(i).data();
    for (std::size_t j = 0; j < image.size(); ++j) row[j] = static_cast<float>(image[j]) / 127.5F - 1.0F;
    batch.labels[static_cast<std::size_t>(i)] = set.labels[static_cast<std::size_t>(source)];
  }
}

/// Endless batches of a set: each epoch visits the images in a new random order, and a rest smaller than a batch is
/// left out. The set must outlive this object. The order is a function of the seed on every platform.
class Batches {
 public:
  Batches(const ImageSet& set, Index batch_size, std::uint64_t seed)
      : set_(&set), batch_size_(batch_size), seed_(seed), order_(static_cast<std::size_t>(set.count())) {
    if (batch_size < 1 || batch_size > set.count()) {
      throw lora::ConfigError("Batches", "batch_size", "a number in [1, " + std::to_string(set.count()) + "]",
                              std::to_string(batch_size));
    }
    std::iota(order_.begin(), order_.end(), Index{0});
    next_ = per_epoch();
  }

  [[nodiscard]] Index per_epoch() const noexcept { return set_->count() / batch_size_; }

  /// The next batch. Valid until the next call. Allocates in the first call only.
  [[nodiscard]] const Batch& next() {
    if (next_ == per_epoch()) start_epoch();
    const auto first = static_cast<std::size_t>(next_++ * batch_size_);
    fill_batch(*set_, std::span(order_).subspan(first, static_cast<std::size_t>(batch_size_)), batch_);
    return batch_;
  }

 private:
  // Fisher and Yates. The bias of the modulus is below count / 2^64.
  void start_epoch() {
    const lora::RandomStream stream(seed_, epoch_++);
    for (std::size_t i = order_.size() - 1; i > 0; --i) {
      const auto words = stream.block(i);
      const std::uint64_t random = std::uint64_t{words[0]} << 32U | words[1];
      std::swap(order_[i], order_[random % (i + 1)]);
    }
    next_ = 0;
  }

  const ImageSet* set_;
  Index batch_size_;
  std::uint64_t seed_;
  std::uint64_t epoch_ = 0;
  Index next_ = 0;
  std::vector<Index> order_;
  Batch batch_;
};

}  // namespace examples
