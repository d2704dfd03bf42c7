// SPDX-License-Identifier: MIT
// Frozen weights of fewer bits: the blocks of a number format, decoded within the products.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/floating_point.hpp"
#include "lora/core/shape.hpp"
#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/format/formats.hpp"
#include "lora/kernels/bf16_product.hpp"
#include "lora/kernels/block_product.hpp"
#include "lora/kernels/int8_product.hpp"
#include "lora/weight/compute.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

namespace detail {

/// How a weight of this format is stored for merging; scalars for formats that cannot be merged into.
template <class Format>
inline constexpr WeightStorage half_storage = WeightStorage::scalars;
template <>
inline constexpr WeightStorage half_storage<formats::F16> = WeightStorage::f16;
template <>
inline constexpr WeightStorage half_storage<formats::BF16> = WeightStorage::bf16;

}  // namespace detail

/// Models ReadableWeight with the blocks of `Format`, one of those in lora/format/. Products have, bit for bit, the
/// result of PackedWeight<float> over the decoded values, for any batch, instruction set and number of workers. Another
/// `Compute` than the default multiplies with fewer bits too: faster, and within its stated error.
///
/// The blocks are laid out anew for the kernels, in as many bytes (out_features is padded to a multiple of 16), or read
/// in place. in_features is a multiple of the format's block size.
///
/// Weights of F16 and BF16 also model MergeableWeight, unless they are read in place: a merged weight is rounded once,
/// to 16 bits. Copying them copies the memory. Other formats cannot be merged into: layers over them serve adapters
/// unmerged (see requantize.hpp for the alternatives), and copies share the blocks, which never change.
///
/// A moved-from weight is empty (0 x 0). The const functions are safe to call from many threads at once, each with its
/// own workspace.
template <formats::NumberFormat Format_, Compute compute_ = Compute::exact>
class QuantizedWeight {
 public:
  /// The format of the blocks.
  using Format = Format_;
  using Scalar = float;
  /// The arithmetic of product().
  static constexpr Compute compute = compute_;
  static_assert(compute != Compute::int8 || kernels::zero_code<Format> >= 0,
                "Compute::int8 needs a format of integer codes: Q8_0, Q5_0 or Q4_0");

  /// How merging finds the elements; a format of several numbers in a block has no elements to be merged into.
  static constexpr WeightStorage storage = detail::half_storage<Format>;
  /// Formats of 16 bits, which can be updated in place.
  static constexpr bool can_be_merged_into = storage != WeightStorage::scalars;

  QuantizedWeight() = default;
  QuantizedWeight(const QuantizedWeight& other)
      : stored_(other.stored_), isa_(other.isa_), bytes_(other.bytes_), owner_(other.owner_) {
    if (can_be_merged_into && stored_.chunks != nullptr) std::copy_n(other.stored_.chunks, layout_bytes(), reserve());
  }
  QuantizedWeight(QuantizedWeight&& other) noexcept
      : stored_(std::exchange(other.stored_, {})),
        isa_(other.isa_),
        bytes_(std::exchange(other.bytes_, 0)),
        owner_(std::move(other.owner_)) {}
  QuantizedWeight& operator=(QuantizedWeight other) noexcept {
    std::swap(stored_, other.stored_);
    std::swap(isa_, other.isa_);
    std::swap(bytes_, other.bytes_);
    std::swap(owner_, other.owner_);
    return *this;
  }
  ~QuantizedWeight() = default;

  /// Lays out `blocks`: the rows of W one after the other, as a GGUF file holds them.
  /// @throws ShapeError when in_features is no multiple of the block size, or the number of bytes is another;
  /// std::bad_alloc
  [[nodiscard]] static QuantizedWeight from_blocks(std::span<const std::uint8_t> blocks, Index out_features,
                                                   Index in_features) {
    QuantizedWeight weight = shaped("QuantizedWeight::from_blocks", blocks.size(), out_features, in_features);
    const kernels::BlockLayout<Format> layout = weight.stored_.layout;
    if (blocks.empty()) return weight;  // however many outputs a weight without inputs has
    std::uint8_t* const chunks = weight.reserve();
    weight.stored_.rows = blocks.data();
    for (Index b = 0; b < layout.panels.panels(); ++b) {
      for (Index c = 0; c < layout.blocks(); ++c) {
        weight.stored_.pack(b, c, chunks + layout.offset(b) + c * layout.chunk_bytes(b));
      }
    }
    weight.stored_.rows = nullptr;
    return weight;
  }

  /// Reads the blocks where they are, for instance in a mapped file: nothing is copied, and products take longer.
  /// `owner` keeps the memory alive, or is null if the caller does. @throws ShapeError
  [[nodiscard]] static QuantizedWeight in_place(std::span<const std::uint8_t> blocks, Index out_features,
                                                Index in_features, const std::shared_ptr<const void>& owner = nullptr) {
    QuantizedWeight weight = shaped("QuantizedWeight::in_place", blocks.size(), out_features, in_features);
    weight.stored_.rows = blocks.data();
    weight.owner_ = owner;
    return weight;
  }

  /// Encodes `weight` (out_features x in_features, any strides) by the format's rule, whatever the caller's
  /// floating-point environment.
  /// @throws ShapeError as from_blocks; ConfigError when a value is not finite, or its block has no finite scale
  [[nodiscard]] static QuantizedWeight quantize(
      const MatrixView<const float>& weight) requires formats::EncodableFormat<Format> {
    require_blocks("QuantizedWeight::quantize", weight.cols);
    const DefaultFloatingPoint environment;
    const auto row_bytes = static_cast<std::size_t>(formats::row_bytes<Format>(weight.cols));
    std::vector<std::uint8_t> blocks(row_bytes * static_cast<std::size_t>(weight.rows));
    std::vector<float> row(static_cast<std::size_t>(weight.cols));
    for (Index i = 0; i < weight.rows; ++i) {
      std::uint8_t* const target = blocks.data() + row_bytes * static_cast<std::size_t>(i);
      for (Index q = 0; q < weight.cols; ++q) row[static_cast<std::size_t>(q)] = weight(i, q);
      formats::encode_row<Format>(row.data(), weight.cols, target);
      formats::decode_row<Format>(target, weight.cols, row.data());
      require_finite(weight, i, row);
    }
    return from_blocks(blocks, weight.rows, weight.cols);
  }

  [[nodiscard]] Index out_features() const noexcept { return stored_.layout.panels.outputs; }
  [[nodiscard]] Index in_features() const noexcept { return stored_.layout.panels.inputs; }
  /// Memory of the blocks; 0 if they are read in place.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

  /// Y (N x out_features) = X (N x in_features) W^T + bias + U F; see FrozenWeight.
  void product(const MatrixView<const float>& x, const float* bias, const LowRankTerm<float>& term,
               const MatrixView<float>& y, Workspace& workspace) const {
    const kernels::PanelCall<float> call{
        stored_.layout.panels, x, bias, term.down, term.up, y, kernels::multiply_kernel<float>(isa_)};
    if constexpr (compute == Compute::bf16) {
      kernels::bf16_product(call, stored_, isa_, workspace);
    } else if constexpr (compute == Compute::int8) {
      kernels::int8_product(call, stored_, isa_, workspace);
    } else {
      kernels::block_product(call, stored_, isa_, workspace);
    }
  }

  /// dX (N x in_features) = dY (N x out_features) W + V F; see FrozenWeight.
  void product_transposed(const MatrixView<const float>& dy, const LowRankTerm<float>& term,
                          const MatrixView<float>& dx, Workspace& workspace) const {
    const kernels::PanelCall<float> call{{in_features(), out_features()},      dy, nullptr, term.down, term.up, dx,
                                         kernels::multiply_kernel<float>(isa_)};
    kernels::block_product_transposed(call, stored_, isa_, workspace);
  }

  /// Decodes a block; see ReadableWeight. Columns of W are read faster than rows. @throws ShapeError
  void read(Index first_output, Index first_input, const MatrixView<float>& out) const {
    detail::check_block("QuantizedWeight::read", out_features(), in_features(), first_output, first_input, out.rows,
                        out.cols);
    if (out.rows == 0) return;
    constexpr Index group = kernels::block_group<Format>();
    constexpr Index most = std::max<Index>(group, 32);
    const kernels::PanelLayout<float>& panels = stored_.layout.panels;
    const Index last_panel = (first_output + out.rows - 1) / kernels::panel_width<float>;
    for (Index b = first_output / kernels::panel_width<float>; b <= last_panel; ++b) {
      const Index begin = std::max(first_output, panels.first_output(b));
      const Index end = std::min(first_output + out.rows, panels.first_output(b) + panels.columns(b));
      for (Index q = first_input / group * group; q < first_input + out.cols;) {
        const Index count = std::min(most, kernels::round_up(first_input + out.cols, group) - q);
        float lines[most * kernels::panel_width<float>];
        stored_.decode(isa_, b, q, count, lines);
        const Index left = std::max(first_input, q);
        const Index right = std::min(first_input + out.cols, q + count);
        const float* const source = lines + (left - q) * panels.width(b) + begin - panels.first_output(b);
        copy_elements<float>(
            {source, end - begin, right - left, 1, panels.width(b)},
            out.middle_rows(begin - first_output, end - begin).middle_cols(left - first_input, right - left));
        q += count;
      }
    }
  }

  /// The blocks, row after row, as from_blocks takes them. @throws ShapeError unless `blocks` has their size
  void write_blocks(std::span<std::uint8_t> blocks) const {
    const kernels::BlockLayout<Format>& layout = stored_.layout;
    check_size("QuantizedWeight::write_blocks", blocks.size(), out_features(), in_features());
    if (stored_.rows != nullptr) {
      std::copy_n(stored_.rows, blocks.size(), blocks.begin());
      return;
    }
    for (Index b = 0; b < layout.panels.panels(); ++b) {
      for (Index c = 0; c < layout.blocks(); ++c) {
        kernels::unpack_chunk<Format>(stored_.chunks + layout.offset(b) + c * layout.chunk_bytes(b),
                                      layout.panels.width(b), layout.panels.columns(b),
                                      blocks.data() + layout.offset(b) + c * Format::block_bytes, layout.row_bytes());
      }
    }
  }

  /// False for blocks that are read in place. Formats of 16 bits only, as the tiles: lines are inputs, as in
  /// PackedWeight.
  [[nodiscard]] bool writable() const noexcept requires can_be_merged_into { return stored_.rows == nullptr; }
  [[nodiscard]] Index tile_count() const noexcept requires can_be_merged_into {
    if (!writable()) return 0;
    return stored_.layout.panels.panels() * tiles_per_panel();
  }
  [[nodiscard]] WeightTile<std::uint16_t> tile(Index t) requires can_be_merged_into {
    if (!writable()) throw StateError("QuantizedWeight::tile", "weight", "blocks of its own", "blocks read in place");
    return make_tile(reinterpret_cast<std::uint16_t*>(const_cast<std::uint8_t*>(stored_.chunks)), t);
  }
  /// Pre: the blocks are not read in place.
  [[nodiscard]] WeightTile<const std::uint16_t> tile(Index t) const noexcept requires can_be_merged_into {
    return make_tile(reinterpret_cast<const std::uint16_t*>(stored_.chunks), t);
  }

 private:
  static constexpr Index lines_per_tile = max_tile_size / kernels::panel_width<float>;

  [[nodiscard]] Index tiles_per_panel() const noexcept {
    return kernels::ceil_div(stored_.layout.panels.inputs, lines_per_tile);
  }

  // A chunk of a format of one number is a line of a panel.
  template <class Element>
  [[nodiscard]] WeightTile<Element> make_tile(Element* numbers, Index t) const noexcept {
    static_assert(Format::block_size == 1 && Format::block_bytes == sizeof(Element));
    const kernels::PanelLayout<float>& panels = stored_.layout.panels;
    const Index b = t / tiles_per_panel();
    const Index q = t % tiles_per_panel() * lines_per_tile;
    const Index width = panels.width(b);
    return {.data = numbers + panels.offset(b) + q * width,
            .lines = std::min(lines_per_tile, panels.inputs - q),
            .length = panels.columns(b),
            .line_stride = width,
            .first_line = q,
            .first_position = panels.first_output(b),
            .lines_are_outputs = false};
  }

  [[nodiscard]] std::size_t layout_bytes() const noexcept { return static_cast<std::size_t>(stored_.layout.bytes()); }

  // Gives the weight memory of its own for the chunks.
  std::uint8_t* reserve() {
    auto memory = std::make_shared<AlignedBuffer>();
    auto* const chunks = memory->reserve<std::uint8_t>(layout_bytes());
    stored_.chunks = chunks;
    bytes_ = memory->bytes();
    owner_ = std::move(memory);
    return chunks;
  }

  static void require_blocks(std::string_view operation, Index in_features) {
    if (in_features % Format::block_size == 0) return;
    throw ShapeError(
        operation, "in_features",
        "a multiple of " + std::to_string(Format::block_size) + ", the block size of " + std::string(Format::name),
        std::to_string(in_features));
  }
  static void check_size(std::string_view operation, std::size_t bytes, Index out_features, Index in_features) {
    const auto rows = static_cast<std::size_t>(out_features);
    const auto row_bytes = static_cast<std::size_t>(formats::row_bytes<Format>(in_features));
    const bool fits = row_bytes == 0 ? bytes == 0 : bytes % row_bytes == 0 && bytes / row_bytes == rows;
    if (fits) return;
    throw ShapeError(operation, "blocks",
                     std::to_string(out_features) + " rows of " + std::to_string(row_bytes) + " bytes of " +
                         std::string(Format::name),
                     std::to_string(bytes) + " bytes");
  }
  static QuantizedWeight shaped(std::string_view operation, std::size_t bytes, Index out_features, Index in_features) {
    if (out_features < 0 || in_features < 0) {
      throw ShapeError(operation, "shape", "no negative number", shape_text(out_features, in_features));
    }
    require_blocks(operation, in_features);
    check_size(operation, bytes, out_features, in_features);
    QuantizedWeight weight;
    weight.stored_.layout.panels = {out_features, in_features};
    weight.isa_ = active_isa();
    return weight;
  }
  static void require_finite(const MatrixView<const float>& weight, Index i, const std::vector<float>& decoded) {
    for (Index q = 0; q < weight.cols; ++q) {
      if (is_finite(decoded[static_cast<std::size_t>(q)])) continue;
      throw ConfigError("QuantizedWeight::quantize", "weight(" + std::to_string(i) + ", " + std::to_string(q) + ")",
                        "a number within the range of " + std::string(Format::name), std::to_string(weight(i, q)));
    }
  }

  kernels::StoredBlocks<Format> stored_;
  Isa isa_ = Isa::portable;
  std::size_t bytes_ = 0;
  std::shared_ptr<const void> owner_;
};

}  // namespace lora
