// SPDX-License-Identifier: MIT
// Products with a weight in a number format: panels are decoded part by part into scratch, and multiplied by the same
// tiles as a packed weight. So a product has the bits of a packed weight of the decoded values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/block_kernels.hpp"
#include "lora/kernels/packed_product.hpp"

namespace lora::kernels {

/// Inputs of a panel that are decoded at a time; a multiple of every block size up to this.
inline constexpr Index decoded_inputs = 512;

/// A weight's blocks, laid out as chunks or row after row.
template <class Format>
struct StoredBlocks {
  BlockLayout<Format> layout;
  const std::uint8_t* chunks = nullptr;
  const std::uint8_t* rows = nullptr;  ///< instead of chunks

  /// Decodes inputs [first, first + count) of panel `b` to `out`, count lines of the panel's width. `first` and `count`
  /// are multiples of block_group<Format>.
  void decode(Isa isa, Index b, Index first, Index count, float* out) const noexcept {
    const auto kernel = block_kernels<Format>(isa).decode;
    const Index width = layout.panels.width(b);
    if (rows == nullptr) return kernel(chunks + layout.offset(b), width, first, count, out);
    for (Index q = first; q < first + count;) {
      const Index within = q % Format::block_size;
      const Index part = std::min(Format::block_size - within, first + count - q);
      std::uint8_t chunk[Format::block_bytes * panel_width<float>];
      pack(b, q / Format::block_size, chunk);
      kernel(chunk, width, within, part, out + (q - first) * width);
      q += part;
    }
  }

  /// Points a row at panels from `b` on, which are laid out.
  void place_row(Index b, BlockRow& row) const noexcept {
    row.chunks = chunks + layout.offset(b);
    row.panel_bytes = row.width * layout.row_bytes();
    row.blocks = layout.blocks();
  }

  /// The product of a row with panels from `b` on; see BlockRow.
  void multiply_row(Isa isa, Index b, BlockRow row) const noexcept {
    const auto kernel = block_kernels<Format>(isa).multiply_row;
    if (rows == nullptr || layout.blocks() == 0) {
      place_row(b, row);
      return kernel(row);
    }
    constexpr Index together = Format::block_size >= 256 ? 1 : most_row_panels;  // as many as kernels take
    std::uint8_t chunk[together * Format::block_bytes * panel_width<float>];
    row.chunks = chunk;
    row.panel_bytes = layout.chunk_bytes(b);
    row.blocks = 1;
    for (Index c = 0; c < layout.blocks(); ++c, row.x += Format::block_size * row.x_step) {
      for (Index a = 0; a < row.panels; ++a) pack(b + a, c, chunk + a * row.panel_bytes);
      kernel(row);
      row.accumulate = true;
    }
  }

  /// Calls body(chunks, first, count) over chunks [c, c + count) of panel `b`; `first` counts from c. Blocks in rows
  /// are packed one at a time.
  template <class Body>
  void for_chunks(Index b, Index c, Index count, const Body& body) const {
    if (rows == nullptr) return body(chunks + layout.offset(b) + c * layout.chunk_bytes(b), 0, count);
    for (Index k = 0; k < count; ++k) {
      std::uint8_t chunk[Format::block_bytes * panel_width<float>];
      pack(b, c + k, chunk);
      body(chunk, k, 1);
    }
  }

  /// Block `c` of the outputs of panel `b`, from rows.
  void pack(Index b, Index c, std::uint8_t* chunk) const noexcept {
    const std::uint8_t* const source = rows + layout.offset(b) + c * Format::block_bytes;
    pack_chunk<Format>(source, layout.row_bytes(), layout.panels.columns(b), layout.panels.width(b), chunk);
  }
};

/// A panel of W as `multiply_panel` reads it.
template <class Format>
struct DecodedPanel {
  const StoredBlocks<Format>& stored;
  Index b = 0;
  Isa isa = Isa::portable;
  float* scratch = nullptr;  ///< decoded_inputs lines, or a block if that is longer

  [[nodiscard]] static constexpr Index block(Index inputs) noexcept {
    return round_up(even_block(inputs, decoded_inputs), Format::block_size);
  }
  [[nodiscard]] const float* rows(Index q, Index depth) const noexcept {
    stored.decode(isa, b, q, depth, scratch);
    return scratch;
  }
  /// Decoding reads in order, which the hardware prefetches.
  [[nodiscard]] Prefetch next(Index /*q*/, Index /*depth*/, Index /*samples*/) const noexcept {
    Prefetch nothing;
    nothing.address = reinterpret_cast<std::uintptr_t>(scratch);
    return nothing;
  }
};

/// A panel of W^T: some inputs of all outputs.
template <class Format>
struct TransposedBlocks {
  static constexpr Index group = block_group<Format>();
  /// Lines that are decoded to have those of a panel: groups do not begin where panels do.
  static constexpr Index lines = round_up(panel_width<float> + 2 * (group - 1), group);

  const StoredBlocks<Format>& stored;
  Index first_input = 0;
  Index inputs = 0;
  Index width = 0;
  Isa isa = Isa::portable;
  float* decoded = nullptr;  ///< `lines` lines of panel_width
  float* scratch = nullptr;  ///< decoded_inputs lines of panel_width

  [[nodiscard]] static constexpr Index block(Index outputs) noexcept {
    return round_up(even_block(outputs, decoded_inputs - panel_width<float>), panel_width<float>);
  }
  [[nodiscard]] const float* rows(Index j, Index depth) const noexcept {
    const PanelLayout<float>& panels = stored.layout.panels;
    const Index begin = first_input / group * group;
    const Index end = round_up(first_input + inputs, group);
    float* target = scratch;
    for (Index done = 0; done < depth; done += panel_width<float>, target += panel_width<float> * width) {
      const Index b = (j + done) / panel_width<float>;
      stored.decode(isa, b, begin, end - begin, decoded);
      transpose_kernel<float>(isa)(decoded + (first_input - begin) * panels.width(b), panels.width(b), inputs,
                                   panels.columns(b), target, width, width);
    }
    return scratch;
  }
  [[nodiscard]] Prefetch next(Index /*j*/, Index /*depth*/, Index /*samples*/) const noexcept {
    Prefetch nothing;
    nothing.address = reinterpret_cast<std::uintptr_t>(scratch);
    return nothing;
  }
};

/// The sums of rows [begin, end) and panel `b`, which start at the bias; `scratch` has panel_width floats.
[[nodiscard]] inline TileSums sums_of_panel(const PanelCall<float>& call, Index b, Index begin, Index end,
                                            float* scratch) {
  PanelProduct<float> start;
  start.width = call.layout.width(b);
  gather_panel_bias(call, b, scratch, start);
  return {.rows = end - begin,
          .width = start.width,
          .columns = call.layout.columns(b),
          .initial = start.initial,
          .out = &call.y(begin, call.layout.first_output(b)),
          .out_stride = call.y.row_stride};
}

/// A single row: calls multiply(b, row) for runs of `together` whole panels and for single ones, and adds the low-rank
/// terms. The row has all but what StoredBlocks knows.
template <class Multiply>
void for_row_panels(const PanelCall<float>& call, Index together, Workspace& workspace, const Multiply& multiply) {
  const Index whole = call.layout.outputs / panel_width<float>;
  const auto scratch = worker_scratch<float>(workspace, std::max(most_row_panels * panel_width<float>, call.scratch()));
  parallel_ranges(workspace.executor(), call.layout.panels(), 2, [&](Index first, Index last, int worker) {
    float* const own = &scratch(worker, 0);
    for (Index b = first; b < last;) {
      BlockRow row{.panels = std::min(last, whole) - b >= together ? together : 1,
                   .width = call.layout.width(b),
                   .x = call.x.data,
                   .x_step = call.x.col_stride,
                   .out = &call.y(0, call.layout.first_output(b))};
      for (Index a = 0; a < row.panels; ++a) {
        PanelProduct<float> product;
        product.width = call.layout.width(b + a);
        gather_panel_bias(call, b + a, own + a * panel_width<float>, product);
        row.initial[a] = product.initial;
        row.columns += call.layout.columns(b + a);
      }
      multiply(b, row);
      for (const Index end = b + row.panels; b < end; ++b) {
        if (call.up.rows > 0) add_panel_terms(call, b, 0, 1, own);
      }
    }
  });
}

/// Y = X W^T + bias + U F. Allocates only to grow the workspace. The result of a row depends neither on the other rows
/// nor on the number of workers.
template <class Format>
void block_product(const PanelCall<float>& call, const StoredBlocks<Format>& stored, Isa isa, Workspace& workspace) {
  if (call.x.rows == 1) {
    return for_row_panels(call, block_kernels<Format>(isa).row_panels, workspace,
                          [&](Index b, const BlockRow& row) { stored.multiply_row(isa, b, row); });
  }
  const Index part = std::max(decoded_inputs, Format::block_size) * panel_width<float>;
  const auto scratch = worker_scratch<float>(workspace, part + call.scratch());
  for_each_panel(call, rows_per_packing_pass, workspace.executor(), [&](Index b, Index begin, Index end, int worker) {
    float* const own = &scratch(worker, 0);
    multiply_panel(call, b, DecodedPanel<Format>{stored, b, isa, own}, begin, end, own + part);
  });
}

/// dX = dY W + V F; `call` describes the product of dY with W^T. As above.
template <class Format>
void block_product_transposed(const PanelCall<float>& call, const StoredBlocks<Format>& stored, Isa isa,
                              Workspace& workspace) {
  using Panel = TransposedBlocks<Format>;
  constexpr Index decoded = Panel::lines * panel_width<float>;
  constexpr Index part = decoded_inputs * panel_width<float>;
  const auto scratch = worker_scratch<float>(workspace, decoded + part + call.scratch());
  for_each_panel(call, rows_per_packing_pass, workspace.executor(), [&](Index b, Index begin, Index end, int worker) {
    float* const own = &scratch(worker, 0);
    const Panel panel{stored,       call.layout.first_output(b), call.layout.columns(b), call.layout.width(b), isa, own,
                      own + decoded};
    multiply_panel(call, b, panel, begin, end, own + decoded + part);
  });
}

}  // namespace lora::kernels
