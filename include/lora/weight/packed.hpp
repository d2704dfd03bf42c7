// SPDX-License-Identifier: MIT
// A frozen weight laid out once for the product kernels: the default kind.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/packed_product.hpp"
#include "lora/kernels/panel.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// Models MergeableWeight with one copy of W (out_features x in_features), packed in panels (kernels/panel.hpp) that
/// serve both products. The copy takes as many bytes as W, plus at most 63 bytes per input if out_features is not a
/// multiple of 64 bytes.
///
/// Each element of a product is one chain of fused multiply-adds. For Y the chain starts at the bias and adds the
/// inputs in order, then the rank; for dX it starts at zero and adds the outputs in order, then the rank. So a row's
/// result depends neither on the other rows of the batch nor on the number of workers; among instruction sets only
/// `Isa::portable` may round differently.
/// (With Isa::portable multiplies and adds are fused only if the compiler does so.)
///
/// Copying copies the memory; a moved-from weight is empty (0 x 0). The const functions are safe to call from many
/// threads at once, each with its own workspace.
template <RealScalar Scalar_>
class PackedWeight {
 public:
  using Scalar = Scalar_;

  PackedWeight() = default;

  /// Packs a copy of `weight` (out_features x in_features, any strides).
  /// @throws std::bad_alloc; ConfigError if this machine does not run `isa`.
  explicit PackedWeight(const MatrixView<const Scalar>& weight, Isa isa = active_isa())
      : layout_{weight.rows, weight.cols}, isa_(isa) {
    if (!isa_supported(isa)) {
      throw ConfigError("PackedWeight", "isa", "an instruction set this machine runs", std::string(isa_name(isa)));
    }
    Scalar* const panels = reserve();
    for (Index b = 0; b < layout_.panels(); ++b) kernels::pack_panel(isa_, weight, b, panels + layout_.offset(b));
  }

  PackedWeight(const PackedWeight& other) : layout_(other.layout_), isa_(other.isa_) {
    std::copy(other.panels_, other.panels_ + layout_.size(), reserve());
  }
  PackedWeight(PackedWeight&& other) noexcept
      : layout_(std::exchange(other.layout_, {})),
        isa_(other.isa_),
        storage_(std::move(other.storage_)),
        panels_(std::exchange(other.panels_, nullptr)) {}
  PackedWeight& operator=(const PackedWeight& other) { return *this = PackedWeight(other); }
  PackedWeight& operator=(PackedWeight&& other) noexcept {
    PackedWeight taken(std::move(other));
    std::swap(layout_, taken.layout_);
    std::swap(isa_, taken.isa_);
    std::swap(storage_, taken.storage_);
    std::swap(panels_, taken.panels_);
    return *this;
  }
  ~PackedWeight() = default;

  [[nodiscard]] Index out_features() const noexcept { return layout_.outputs; }
  [[nodiscard]] Index in_features() const noexcept { return layout_.inputs; }
  /// The instruction set of its products.
  [[nodiscard]] Isa isa() const noexcept { return isa_; }
  /// Memory of the packed copy.
  [[nodiscard]] std::size_t bytes() const noexcept { return storage_.bytes(); }

  /// Y (N x out_features) = X (N x in_features) W^T + bias + U F. X of any strides is read in place.
  void product(const MatrixView<const Scalar>& x, const Scalar* bias, const LowRankTerm<Scalar>& term,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    const kernels::PanelCall<Scalar> call{
        layout_, x, bias, term.down, term.up, y, kernels::multiply_kernel<Scalar>(isa_)};
    kernels::packed_product(call, static_cast<const Scalar*>(panels_), workspace);
  }

  /// dX (N x in_features) = dY (N x out_features) W + V F.
  void product_transposed(const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    const kernels::PanelCall<Scalar> call{{layout_.inputs, layout_.outputs},     dy, nullptr, term.down, term.up, dx,
                                          kernels::multiply_kernel<Scalar>(isa_)};
    kernels::packed_product_transposed(call, layout_, static_cast<const Scalar*>(panels_), isa_, workspace);
  }

  /// See ReadableWeight: outputs of one panel lie side by side, so columns of W are read faster than rows.
  /// @throws ShapeError
  void read(Index first_output, Index first_input, const MatrixView<Scalar>& out) const {
    detail::check_block("PackedWeight::read", out_features(), in_features(), first_output, first_input, out.rows,
                        out.cols);
    if (out.cols == 0) return;
    for (Index done = 0; done < out.rows;) {
      const Index b = (first_output + done) / kernels::panel_width<Scalar>;
      const Index within = first_output + done - layout_.first_output(b);
      const Index count = std::min(layout_.columns(b) - within, out.rows - done);
      const Scalar* const panel = panels_ + layout_.offset(b) + first_input * layout_.width(b) + within;
      copy_elements({panel, count, out.cols, 1, layout_.width(b)}, out.middle_rows(done, count));
      done += count;
    }
  }

  /// Always true: the copy is this object's own.
  [[nodiscard]] bool writable() const noexcept { return true; }

  [[nodiscard]] Index tile_count() const noexcept { return layout_.panels() * tiles_per_panel(); }
  [[nodiscard]] WeightTile<Scalar> tile(Index t) noexcept { return make_tile(panels_, t); }
  [[nodiscard]] WeightTile<const Scalar> tile(Index t) const noexcept {
    return make_tile(static_cast<const Scalar*>(panels_), t);
  }

 private:
  static constexpr Index lines_per_tile = max_tile_size / kernels::panel_width<Scalar>;

  [[nodiscard]] Index tiles_per_panel() const noexcept { return kernels::ceil_div(layout_.inputs, lines_per_tile); }

  template <class Element>
  [[nodiscard]] WeightTile<Element> make_tile(Element* panels, Index t) const noexcept {
    const Index b = t / tiles_per_panel();
    const Index q = t % tiles_per_panel() * lines_per_tile;
    const Index width = layout_.width(b);
    return {.data = panels + layout_.offset(b) + q * width,
            .lines = std::min(lines_per_tile, layout_.inputs - q),
            .length = layout_.columns(b),
            .line_stride = width,
            .first_line = q,
            .first_position = layout_.first_output(b),
            .lines_are_outputs = false};
  }

  Scalar* reserve() { return panels_ = storage_.template reserve<Scalar>(static_cast<std::size_t>(layout_.size())); }

  kernels::PanelLayout<Scalar> layout_;
  Isa isa_ = Isa::portable;
  AlignedBuffer storage_;
  Scalar* panels_ = nullptr;
};

#if defined(LORA_COMPILED)
extern template class PackedWeight<float>;
extern template class PackedWeight<double>;
#endif

}  // namespace lora
