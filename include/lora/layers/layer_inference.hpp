// SPDX-License-Identifier: MIT
// Inference of a layer: with the same adapters for all rows, or with the adapter that each row chooses.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/workspace.hpp"
#include "lora/layers/adapter_passes.hpp"
#include "lora/layers/operation.hpp"
#include "lora/layers/output_bias.hpp"
#include "lora/layers/row_groups.hpp"

namespace lora {

/// The choice of a row for the frozen layer alone.
inline constexpr Index base_row = -1;

/// The adapters that the samples of batches choose, by position: as many samples as there are choices, each of the same
/// number of consecutive rows. Without choices, rows do not choose.
class SampleChoices {
 public:
  [[nodiscard]] bool empty() const noexcept { return choices_.empty(); }
  void swap(std::vector<Index>& choices) noexcept { choices_.swap(choices); }
  void clear() noexcept { choices_.clear(); }

  /// Follows the removal of an adapter from its layer: the frozen layer answers for the samples that chose it.
  void erase(Index gone) noexcept {
    for (Index& choice : choices_) choice = choice == gone ? base_row : choice - (choice > gone ? 1 : 0);
  }

  /// The choice of each of `rows` rows. @throws ShapeError unless `rows` is a multiple of the number of samples.
  [[nodiscard]] ScratchMatrix<Index> of_rows(const Operation& operation, Index rows, Workspace& workspace) const {
    const auto samples = static_cast<Index>(choices_.size());
    if (rows % samples != 0) {
      throw ShapeError(operation.text(), "x", "a multiple of " + std::to_string(samples) + " rows, one for each name",
                       std::to_string(rows));
    }
    auto result = workspace.row<Index>(rows);
    for (Index i = 0; i < rows; ++i) result.data[i] = choices_[static_cast<std::size_t>(i / (rows / samples))];
    return result;
  }

 private:
  std::vector<Index> choices_;
};

/// A view of a layer's parts; const functions are reentrant and allocate only to grow the workspace.
template <class Kind>
class LayerInference {
 public:
  using Scalar = typename Kind::Scalar;
  using Passes = typename Kind::Passes;
  using Batch = typename Passes::Batch;

  /// All outlive this object.
  LayerInference(const Kind& kind, const WeightRef<Scalar>& weight, const AdapterSet<Scalar>& adapters,
                 const OutputBias<Scalar>& bias, std::span<const double> squared_norms) noexcept
      : kind_(kind),
        weight_(weight),
        passes_(kind.passes(weight)),
        adapters_(adapters),
        bias_(bias),
        squared_norms_(squared_norms) {}

  /// Y with the adapters at these positions, and with what is merged.
  void infer(const Batch& x, std::span<const Index> working, const MatrixView<Scalar>& y, Workspace& workspace) const;

  /// Y where every row has the adapter at the position it chooses, or the frozen layer alone; while adapters are
  /// disabled, all rows have the latter. Pre: nothing is merged. @throws ShapeError, ConfigError
  void infer_by_row(const Operation& operation, const Batch& x, std::span<const Index> choices,
                    const MatrixView<Scalar>& y, Workspace& workspace) const;

 private:
  void infer_groups(const Batch& x, const RowGroups& groups, const MatrixView<Scalar>& y, Workspace& workspace) const;
  // Whether the rows that chose this can share a product with W with others, and then add their low-rank terms.
  [[nodiscard]] bool shares_product(Index choice) const noexcept;
  [[nodiscard]] AdapterPasses<Kind, Passes> passes(std::span<const Index> working) const noexcept {
    return {kind_, passes_, weight_, adapters_, working, squared_norms_};
  }

  const Kind& kind_;
  WeightRef<Scalar> weight_;
  Passes passes_;
  const AdapterSet<Scalar>& adapters_;
  OutputBias<Scalar> bias_;
  std::span<const double> squared_norms_;
};

template <class Kind>
void LayerInference<Kind>::infer(const Batch& x, std::span<const Index> working, const MatrixView<Scalar>& y,
                                 Workspace& workspace) const {
  const auto bias = workspace.row<Scalar>(kind_.blocks().outputs);
  passes(working).infer(x, bias_.sum(working, bias.data), y, workspace);
}

template <class Kind>
void LayerInference<Kind>::infer_by_row(const Operation& operation, const Batch& x, std::span<const Index> choices,
                                        const MatrixView<Scalar>& y, Workspace& workspace) const {
  const Index rows = Passes::shape(x).rows;
  if (static_cast<Index>(choices.size()) != rows) {
    throw ShapeError(operation.text(), "choices", std::to_string(rows) + " elements, one a row",
                     std::to_string(choices.size()));
  }
  const auto memory = workspace.row<Index>(rows + RowGroups::scratch(rows, adapters_.size()));
  for (Index i = 0; i < rows; ++i) {
    const Index choice = choices[static_cast<std::size_t>(i)];
    if (choice < base_row || choice >= adapters_.size()) {
      throw ConfigError(operation.text(), "choices", "positions from -1 to " + std::to_string(adapters_.size() - 1),
                        std::to_string(choice));
    }
    memory.data[i] = adapters_.enabled() ? choice : base_row;
  }
  const RowGroups groups({memory.data, static_cast<std::size_t>(rows)}, adapters_.size(), memory.data + rows);
  if (groups.sorted()) return infer_groups(x, groups, y, workspace);
  const auto sorted_y = workspace.matrix<Scalar>(y.rows, y.cols);
  Passes::with_gathered(x, groups, workspace,
                        [&](const Batch& sorted) { infer_groups(sorted, groups, sorted_y, workspace); });
  groups.template scatter<Scalar>(MatrixView<const Scalar>(sorted_y), y);
}

// Groups side by side that can share a product do. Low-rank terms continue where the product ended: a row has the bits
// that infer() gives with its adapter alone.
template <class Kind>
void LayerInference<Kind>::infer_groups(const Batch& x, const RowGroups& groups, const MatrixView<Scalar>& y,
                                        Workspace& workspace) const {
  const auto rows_of = [&](Index first, Index end) {
    const Index begin = groups.begin(first);
    const Index rows = groups.end(end - 1) - begin;
    return std::pair(Passes::middle_rows(x, begin, rows), y.middle_rows(begin, rows));
  };
  for (Index g = 0; g < groups.groups();) {
    Index end = g;
    while (end < groups.groups() && shares_product(groups.choice(end))) ++end;
    const bool shared = end > g;
    if (shared) {
      const auto& [part, out] = rows_of(g, end);
      infer(part, {}, out, workspace);
    }
    for (end = std::max(end, g + 1); g < end; ++g) {
      const Index choice = groups.choice(g);
      if (shared && choice == base_row) continue;
      const auto& [part, out] = rows_of(g, g + 1);
      const std::span<const Index> alone(&choice, choice == base_row ? 0 : 1);
      shared ? passes(alone).add_terms(part, out, workspace) : infer(part, alone, out, workspace);
    }
  }
}

template <class Kind>
bool LayerInference<Kind>::shares_product(Index choice) const noexcept {
  if (!Passes::adds_terms || choice == base_row) return Passes::adds_terms;
  const LoraAdapter<Scalar>& adapter = adapters_[choice];
  return !adapter.uses_dora() && adapter.lora_bias.size() == 0 && adapter.bias.size() == 0;
}

}  // namespace lora
