// SPDX-License-Identifier: MIT
// Changes the adapter of a playing LSTM of NeuralAmpModelerCore. The audio thread neither waits nor allocates, and the
// model's state goes on.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "lora/lora.hpp"
#include "neural_amp/lstm_access.hpp"

namespace hosts {

/// Two sets of weights: the one in the model's cells plays, and into the other an adapter is merged in place. To
/// change, the audio thread exchanges their pointers between two blocks.
///
/// One thread controls (add, select); one plays, and calls between_blocks() before every block.
class LiveAdapters {
  using Weight = lora::DenseWeight<float>;

 public:
  using Layer = lora::LoraLinear<float, Weight>;

  /// `model` outlives this object. Nothing else changes its weights meanwhile.
  explicit LiveAdapters(nam::lstm::LSTM& model) : model_(model) {
    spare_.reserve(model._layers.size());  // a layer views each matrix: none may move
    for (auto& cell : model._layers) {
      Eigen::MatrixXf& w = nam_access::weight_of(cell);
      spare_.push_back(w);
      layers_[playing_].emplace_back(Weight(lora::view_of(w)), lora::LoraConfig{.rank = 0}, 0);
      layers_[1 - playing_].emplace_back(Weight(lora::view_of(spare_.back())), lora::LoraConfig{.rank = 0}, 0);
    }
  }

  /// Adds an adapter of every cell, with the values of the first active one of `trained`. Control thread.
  template <class Layers>
  void add(std::string_view name, const Layers& trained) {
    for (auto& side : layers_) {
      for (std::size_t l = 0; l < side.size(); ++l) {
        side[l].add_adapter(name, trained[l].config(), trained[l].seed());
        side[l].set_factors(name, trained[l].lora_A(), trained[l].lora_B());
      }
    }
  }

  /// Offers the weights with that adapter merged, or the model's own without a name, to the audio thread, which takes
  /// them before its next block. Returns false, and does nothing, while the last offer is not taken. Control thread.
  [[nodiscard]] bool select(std::optional<std::string_view> name) {
    if (offered_.load(std::memory_order_acquire)) return false;
    auto& idle = layers_[1 - playing_];
    for (Layer& layer : idle) {
      layer.unmerge();
      if (name) layer.merge({*name});
    }
    playing_ = 1 - playing_;
    offered_.store(true, std::memory_order_release);
    return true;
  }

  /// Takes what select() offered, if anything, and returns whether it did. No allocation, no lock. Audio thread.
  bool between_blocks() noexcept {
    if (!offered_.load(std::memory_order_acquire)) return false;
    for (std::size_t l = 0; l < spare_.size(); ++l) nam_access::weight_of(model_._layers[l]).swap(spare_[l]);
    offered_.store(false, std::memory_order_release);
    return true;
  }

 private:
  nam::lstm::LSTM& model_;
  std::vector<Eigen::MatrixXf> spare_;
  std::array<std::vector<Layer>, 2> layers_;  // over the two sets, whichever of them plays
  std::size_t playing_ = 0;                   // of the control thread: the set that plays once the offer is taken
  std::atomic<bool> offered_{false};
};

}  // namespace hosts
