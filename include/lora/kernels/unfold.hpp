// SPDX-License-Identifier: MIT
// Unfolding: images become lines, each with what one tap of the kernel sees (im2col); and its adjoint, folding
// (col2im).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "lora/core/view.hpp"
#include "lora/kernels/dropout_mask.hpp"
#include "lora/kernels/kernel_table.hpp"

namespace lora::kernels {

/// How a kernel walks over an image, in three dimensions; if there are fewer, they come last, after dimensions of
/// extent 1. With tap k, output position q sees input element q * stride + k * dilation - padding, or zero outside the
/// image.
struct ImageWalk {
  using Extents = std::array<Index, 3>;
  Extents input{1, 1, 1};
  Extents output{1, 1, 1};
  Extents kernel{1, 1, 1};
  Extents stride{1, 1, 1};
  Extents padding{0, 0, 0};
  Extents dilation{1, 1, 1};

  [[nodiscard]] static constexpr Index product(const Extents& e) noexcept { return e[0] * e[1] * e[2]; }
  [[nodiscard]] constexpr Index input_size() const noexcept { return product(input); }
  [[nodiscard]] constexpr Index output_size() const noexcept { return product(output); }
  [[nodiscard]] constexpr Index taps() const noexcept { return product(kernel); }

  /// The walk of one tap over images of `size` elements: every position sees its own element.
  [[nodiscard]] static constexpr ImageWalk pointwise(Index size) noexcept {
    ImageWalk walk;
    walk.input[2] = walk.output[2] = size;
    return walk;
  }

  /// The same walk with the longest runs of positions it allows.
  [[nodiscard]] constexpr ImageWalk simplified() const noexcept {
    const ImageWalk plain;
    const bool own = kernel == plain.kernel && stride == plain.stride && padding == plain.padding;
    return own ? pointwise(input_size()) : *this;
  }
};

/// A run of positions [column, column + length) of a block, which see elements first, first + step, ... of one sample.
struct ImageSpan {
  Index column = 0;
  Index length = 0;
  Index sample = 0;
  Index first = 0;
  Index step = 1;
};

/// Calls body(span) for the positions [begin, end) whose tap falls inside the image, in order. Positions are numbered
/// over all samples. `line` is channel * taps + tap, and elements are counted from the sample's first channel.
template <class Body>
void for_each_span(const ImageWalk& walk, Index line, Index begin, Index end, const Body& body) {
  const Index taps = walk.taps();
  const Index tap = line % taps;
  const std::array<Index, 3> k{tap / (walk.kernel[1] * walk.kernel[2]), tap / walk.kernel[2] % walk.kernel[1],
                               tap % walk.kernel[2]};
  const auto seen = [&](std::size_t d, Index q) {
    return q * walk.stride[d] + k[d] * walk.dilation[d] - walk.padding[d];
  };
  const Index channel = line / taps * walk.input_size();
  const Index width = walk.output[2];
  const Index step = walk.stride[2];
  for (Index p = begin; p < end;) {
    const Index row = p / width;
    const Index q = p % width;
    const Index length = std::min(width - q, end - p);
    const Index height = row / walk.output[1];
    const Index at_depth = seen(0, height % walk.output[0]);
    const Index at_height = seen(1, row % walk.output[1]);
    if (at_depth >= 0 && at_depth < walk.input[0] && at_height >= 0 && at_height < walk.input[1]) {
      const Index at = seen(2, q);
      const Index skipped = at < 0 ? (-at + step - 1) / step : 0;
      const Index stop = at < walk.input[2] ? std::min(length, (walk.input[2] - at + step - 1) / step) : 0;
      if (skipped < stop) {
        body(ImageSpan{p - begin + skipped, stop - skipped, height / walk.output[0],
                       channel + (at_depth * walk.input[1] + at_height) * walk.input[2] + at + skipped * step, step});
      }
    }
    p += length;
  }
}

/// A block of an unfolding: lines [first_line, first_line + lines) at positions [begin, end).
struct UnfoldBlock {
  Index first_line = 0;
  Index lines = 0;
  Index begin = 0;
  Index end = 0;
};

/// target (lines x stride) = what each line's tap sees at each position; zeros outside the image and, up to `stride`,
/// after the last position. `images` is N x (channels * input_size), of any strides; if `mask` is active, dropped
/// elements read as zero and kept ones are multiplied by its scale. No allocation; no aliasing.
template <class Scalar>
void unfold(const ImageWalk& walk, const MatrixView<const Scalar>& images, const DropoutMask<Scalar>& mask,
            const UnfoldBlock& block, Scalar* target, Index stride, Isa isa = active_isa()) {
  const RunKernel<Scalar> keep = kernel_table<Scalar>(isa).keep_run;
  for (Index l = 0; l < block.lines; ++l, target += stride) {
    std::fill(target, target + stride, Scalar(0));
    for_each_span(walk, block.first_line + l, block.begin, block.end, [&](const ImageSpan& span) {
      const Index step = span.step * images.col_stride;
      const Scalar* source = &images(span.sample, span.first);
      Scalar* const out = target + span.column;
      if (step == 1) {
        if (mask.active()) return keep(source, span.length, mask.row(span.sample), span.first, mask.scale, out);
        std::copy(source, source + span.length, out);
        return;
      }
      for (Index i = 0; i < span.length; ++i) {
        out[i] = mask.keeps(span.sample, span.first + i * span.step) ? source[i * step] * mask.scale : Scalar(0);
      }
    });
  }
}

/// The adjoint of unfold: adds source (lines x stride) to the elements it was, or would be, unfolded from. Elements
/// dropped by a mask receive nothing; kept ones receive the contribution times its scale. No allocation; no aliasing.
///
/// Taps are visited in reverse, so that an element receives its contributions in the order of positions: a sum over
/// consecutive blocks has the same bits however positions are cut into blocks.
template <class Scalar>
void add_folded(const ImageWalk& walk, const Scalar* source, Index stride, const UnfoldBlock& block,
                const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& images, Isa isa = active_isa()) {
  const RunKernel<Scalar> add = kernel_table<Scalar>(isa).add_run[mask.active() ? 1 : 0];
  for (Index l = block.lines; l-- > 0;) {
    const Scalar* const line = source + l * stride;
    for_each_span(walk, block.first_line + l, block.begin, block.end, [&](const ImageSpan& span) {
      const Index step = span.step * images.col_stride;
      Scalar* const out = &images(span.sample, span.first);
      const Scalar* const in = line + span.column;
      if (step == 1) {
        const std::uint8_t* const row = mask.active() ? mask.row(span.sample) : nullptr;
        return add(in, span.length, row, span.first, mask.scale, out);
      }
      for (Index i = 0; i < span.length; ++i) {
        if (mask.keeps(span.sample, span.first + i * span.step)) out[i * step] += in[i] * mask.scale;
      }
    });
  }
}

}  // namespace lora::kernels
