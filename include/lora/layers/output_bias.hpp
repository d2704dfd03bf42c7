// SPDX-License-Identifier: MIT
// The bias of a layer's output: the layer's own or one that an adapter trains, and the biases of B.
#pragma once

#include <algorithm>
#include <span>

#include "lora/layers/adapter_set.hpp"
#include "lora/layers/factor_pass.hpp"

namespace lora {

/// A view of a layer's own bias and of its adapters. An adapter takes part if it is among `working` or merged: merging
/// writes only the weight, so its biases are added here. `working` holds positions of adapters.
template <RealScalar Scalar>
class OutputBias {
 public:
  OutputBias(const OutputBlocks& blocks, const AdapterSet<Scalar>& adapters, const RowVector<Scalar>& own) noexcept
      : blocks_(blocks), adapters_(adapters), own_(own) {}

  /// Without the biases of B: that of the adapter that trains the layer's bias, if it takes part, or the layer's own.
  [[nodiscard]] const RowVector<Scalar>& trained(std::span<const Index> working) const noexcept {
    for (const Index i : adapters_.with_bias()) {
      if (adapters_[i].bias.size() > 0 && takes_part(working, i)) return adapters_[i].bias;
    }
    return own_;
  }

  /// trained() and the s * lora_bias of all that take part, in `memory` of one scalar per output; if no lora_bias takes
  /// part, the values of trained() themselves, or null without bias.
  [[nodiscard]] const Scalar* sum(std::span<const Index> working, Scalar* memory) const noexcept {
    const RowVector<Scalar>& first = trained(working);
    const Scalar* result = first.size() > 0 ? first.data() : nullptr;
    for (const Index i : adapters_.with_bias()) {
      const LoraAdapter<Scalar>& adapter = adapters_[i];
      if (adapter.lora_bias.size() == 0 || !takes_part(working, i)) continue;
      if (result != memory) {
        result != nullptr ? std::copy_n(result, blocks_.outputs, memory)
                          : std::fill_n(memory, blocks_.outputs, Scalar(0));
        result = memory;
      }
      blocks_.for_each(
          [&](Index adapted, Index output) { memory[output] += adapter.scaling() * adapter.lora_bias[adapted]; });
    }
    return result;
  }

  /// sum() as a vector of its own; empty without bias. @throws std::bad_alloc
  [[nodiscard]] RowVector<Scalar> copy(std::span<const Index> working) const {
    RowVector<Scalar> values(blocks_.outputs);
    const Scalar* const result = sum(working, values.data());
    if (result == nullptr) return {};
    if (result != values.data()) std::copy_n(result, values.size(), values.data());
    return values;
  }

 private:
  [[nodiscard]] bool takes_part(std::span<const Index> working, Index i) const noexcept {
    return adapters_[i].merged() || std::find(working.begin(), working.end(), i) != working.end();
  }

  const OutputBlocks& blocks_;
  const AdapterSet<Scalar>& adapters_;
  const RowVector<Scalar>& own_;
};

}  // namespace lora
