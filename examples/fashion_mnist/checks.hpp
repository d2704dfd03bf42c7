// SPDX-License-Identifier: MIT
// What must hold of a trained adapter: merging, unmerging, saving and loading change nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "common/checkpoint.hpp"
#include "common/softmax_loss.hpp"
#include "common/text_table.hpp"
#include "fashion_mnist/adapter_file.hpp"
#include "fashion_mnist/tolerance.hpp"

namespace examples {

struct Check {
  std::string claim;
  bool passed = false;
  std::string evidence;
};

/// Equal in every bit, so -0 differs from 0 and a NaN equals itself.
[[nodiscard]] inline bool same_bits(const lora::Matrix<float>& a, const lora::Matrix<float>& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0);
}

namespace detail {

[[nodiscard]] inline std::string scientific_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1e", value);
  return text;
}

/// Rows of two sets of logits that predict different classes.
[[nodiscard]] inline Index disagreements(const lora::Matrix<float>& a, const lora::Matrix<float>& b) {
  Index count = 0;
  for (Index i = 0; i < a.rows(); ++i) count += predicted_class(a, i) != predicted_class(b, i) ? 1 : 0;
  return count;
}

/// Whether every layer's weight, read with `weight`, is the base network's.
template <class ReadWeight>
[[nodiscard]] bool holds_base(const LoraNetwork& network, const DenseNetwork& base, const ReadWeight& read_weight) {
  for (std::size_t l = 0; l < network.layers().size(); ++l) {
    if (!same_bits(read_weight(network.layers()[l]), base.layers()[l].weight())) return false;
  }
  return true;
}

[[nodiscard]] inline std::vector<Check> compare_merged(const lora::Matrix<float>& unmerged,
                                                       const lora::Matrix<float>& merged,
                                                       const lora::Matrix<float>& bound) {
  const lora::Matrix<float> difference = (merged - unmerged).cwiseAbs();
  const auto outside = ((difference.array() <= bound.array()) == false).count();
  const Index different = disagreements(unmerged, merged);
  return {{"The merged network answers the same within rounding", outside == 0,
           "largest difference of a logit " + scientific_text(difference.maxCoeff()) + ", smallest tolerance " +
               scientific_text(bound.minCoeff()) + ", " + grouped_text(outside) + " of " +
               grouped_text(difference.size()) + " outside theirs"},
          {"The merged network predicts the same classes", different == 0,
           grouped_text(unmerged.rows() - different) + " of " + grouped_text(unmerged.rows()) + " test images"}};
}

}  // namespace detail

/// Merges and unmerges the network, which is unmerged before and after.
[[nodiscard]] inline std::vector<Check> check_merging(LoraNetwork& network, const DenseNetwork& base,
                                                      const ImageSet& test) {
  const lora::Matrix<float> unmerged = logits_of(network, test);
  const lora::Matrix<float> bound = merge_tolerance(network, test);
  std::size_t record_bytes = 0;
  std::size_t weight_bytes = 0;
  for (auto& layer : network.layers()) {
    layer.eval();
    record_bytes += layer.merge_bytes();
    weight_bytes += layer.frozen_weight().bytes();
  }
  auto checks = detail::compare_merged(unmerged, logits_of(network, test), bound);
  for (auto& layer : network.layers()) layer.train();
  checks.push_back({"Unmerging restores W0 bit for bit",
                    detail::holds_base(network, base, [](const auto& layer) { return layer.weight(); }),
                    std::to_string(network.layers().size()) + " layers compared; while merged, " +
                        grouped_text(static_cast<long long>(record_bytes)) + " bytes remembered beside " +
                        grouped_text(static_cast<long long>(weight_bytes)) + " of weights"});
  checks.push_back({"The unmerged network answers as before, bit for bit",
                    same_bits(unmerged, logits_of(network, test)), grouped_text(unmerged.size()) + " logits compared"});
  return checks;
}

/// Saves the adapter and loads it, with the base network's file, into a new network.
/// @throws lora::IoError, lora::FormatError
[[nodiscard]] inline Check check_reloading(const LoraNetwork& network, const ImageSet& test,
                                           const std::filesystem::path& base_path,
                                           const std::filesystem::path& adapter_path) {
  save_adapter(network, adapter_path);
  const LoraNetwork loaded = load_adapter(load_network(base_path), adapter_path);
  const lora::Matrix<float> logits = logits_of(network, test);
  const bool same = same_bits(logits, logits_of(loaded, test));
  return {"The saved adapter, loaded into a new network, answers the same bit for bit", same,
          grouped_text(logits.size()) + " logits compared; " + adapter_path.filename().string() + " has " +
              grouped_text(static_cast<long long>(std::filesystem::file_size(adapter_path))) + " bytes, " +
              base_path.filename().string() + " " +
              grouped_text(static_cast<long long>(std::filesystem::file_size(base_path)))};
}

}  // namespace examples
