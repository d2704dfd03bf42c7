// SPDX-License-Identifier: MIT
// Convolution with a frozen weight and a low-rank term in one pass, and its adjoints, block by block.
//
// A block is a panel of panel_width output positions: its unfolding (fan_in lines) is the packed operand that the tiles
// of kernels/tile.inc read. The weight's rows are the other operand, so that outputs come in the order of channels and
// nothing is transposed. Positions are numbered over all samples, so small images share panels. Results depend neither
// on the number of workers nor, for one sample, on the others.
#pragma once

#include <algorithm>
#include <utility>

#include "lora/core/workspace.hpp"
#include "lora/kernels/panel.hpp"
#include "lora/kernels/unfold.hpp"

namespace lora::kernels {

/// The shape shared by all passes over one batch.
struct ConvShape {
  ImageWalk walk;
  Index samples = 0;
  Index groups = 1;
  Index group_inputs = 1;
  Index group_outputs = 1;
  Index group_rank = 0;

  [[nodiscard]] Index fan_in() const noexcept { return group_inputs * walk.taps(); }
  [[nodiscard]] Index outputs() const noexcept { return groups * group_outputs; }
  [[nodiscard]] Index rank() const noexcept { return groups * group_rank; }
  [[nodiscard]] Index positions() const noexcept { return samples * walk.output_size(); }
  /// The walk that reads an output image element by element.
  [[nodiscard]] ImageWalk output_walk() const noexcept { return ImageWalk::pointwise(walk.output_size()); }
};

/// Y = factors (.) (W drop(X) + s*B U) + W (X - drop(X)) + bias with U = A drop(X), where X means its unfolding;
/// without `factors` this is Y = W X + s*B U + bias. The rows of A, B and W of all groups follow one another; each
/// group sees its own input channels.
template <class Scalar>
struct ConvCall {
  ConvShape shape;
  MatrixView<const Scalar> x;  ///< samples x (groups * group_inputs * input_size)
  DropoutMask<Scalar> mask;
  MatrixView<const Scalar> weight;  ///< outputs x fan_in, rows contiguous
  MatrixView<const Scalar> a;       ///< rank x fan_in
  MatrixView<const Scalar> b;       ///< outputs x group_rank
  Scalar scale = 1;
  const Scalar* bias = nullptr;     ///< outputs, or null
  const Scalar* factors = nullptr;  ///< outputs, or null
  MatrixView<Scalar> u;             ///< rank x positions; null if U is not kept
  MatrixView<Scalar> z;             ///< like y, or null: what `factors` multiplies
  MatrixView<Scalar> y;             ///< samples x (outputs * output_size)
};

namespace detail {

/// Calls body(sample, position in the sample, column, length) for positions [begin, end).
template <class Body>
void for_each_sample(Index size, Index begin, Index end, const Body& body) {
  for (Index p = begin; p < end;) {
    const Index length = std::min(size - p % size, end - p);
    body(p / size, p % size, p - begin, length);
    p += length;
  }
}

/// out (left.rows x panel.end - begin) = left * panel + extra * lines. `panel` and `lines` have rows of `width`.
/// `scratch` has (1 + extra.cols) * panel_width scalars.
template <class Scalar>
void multiply_block(const MatrixView<const Scalar>& left, const Scalar* panel, Index width,
                    const MatrixView<const Scalar>& extra, const Scalar* lines, const MatrixView<Scalar>& out, Isa isa,
                    Scalar* scratch) {
  const PanelCall<Scalar> call{
      {out.cols, left.cols},       left, nullptr, extra, {lines, extra.cols, out.cols, width, 1}, out,
      multiply_kernel<Scalar>(isa)};
  multiply_panel(call, 0, PackedPanel<Scalar>{panel, width}, 0, left.rows, scratch);
}

/// One worker's scratch in convolve().
template <class Scalar>
struct ConvScratch {
  Scalar* plain;    // the unfolding
  Scalar* dropped;  // the unfolding of drop(X); without dropout `plain` itself
  Scalar* lines;    // U of one group, then a line of ones
  Scalar* result;   // outputs of a block
  Scalar* rest;     // W (X - drop(X))
  Scalar* gather;

  [[nodiscard]] static Index size(const ConvCall<Scalar>& call) {
    const ConvShape& s = call.shape;
    const Index unfoldings = call.mask.active() ? 2 : 1;
    const Index results = call.factors != nullptr && call.mask.active() ? 2 : 1;
    return (unfoldings * s.fan_in() + 3 + 2 * s.group_rank + results * s.group_outputs) * panel_width<Scalar>;
  }

  ConvScratch(const ConvCall<Scalar>& call, Scalar* memory) : plain(memory) {
    const ConvShape& s = call.shape;
    const auto take = [&](Index count) { return std::exchange(memory, memory + count * panel_width<Scalar>); };
    take(s.fan_in());
    dropped = call.mask.active() ? take(s.fan_in()) : plain;
    lines = take(s.group_rank + 1);
    gather = take(s.group_rank + 2);
    result = take(s.group_outputs);
    rest = memory;
  }
};

/// The pass over one panel of positions and outputs [first, last), which belong to group `g`.
template <class Scalar>
class ConvBlock {
 public:
  ConvBlock(const ConvCall<Scalar>& call, const MatrixView<const Scalar>& up, Scalar* memory)
      : call_(call), shape_(call.shape), up_(up), scratch_(call, memory), isa_(active_isa()) {}

  void run(Index g, Index begin, Index end, Index first, Index last) {
    begin_ = begin;
    end_ = end;
    width_ = round_up(end - begin, width_unit<Scalar>);
    unfold_input(g);
    project(g, first == g * shape_.group_outputs);
    if (call_.factors != nullptr) {
      scaled_outputs(first, last);
    } else {
      plain_outputs(first, last);
    }
  }

 private:
  [[nodiscard]] Index columns() const noexcept { return end_ - begin_; }
  [[nodiscard]] Index size() const noexcept { return shape_.walk.output_size(); }
  [[nodiscard]] bool in_one_sample() const noexcept { return begin_ / size() == (end_ - 1) / size(); }

  void unfold_input(Index g) {
    const UnfoldBlock block{g * shape_.fan_in(), shape_.fan_in(), begin_, end_};
    if (call_.mask.active()) unfold(shape_.walk, call_.x, call_.mask, block, scratch_.dropped, width_);
    if (!call_.mask.active() || call_.factors == nullptr) {
      unfold(shape_.walk, call_.x, DropoutMask<Scalar>{}, block, scratch_.plain, width_);
    } else {
      unfold(shape_.walk, call_.x, DropoutMask<Scalar>{}, block, scratch_.plain, width_);
      for (Index i = 0; i < shape_.fan_in() * width_; ++i) scratch_.plain[i] -= scratch_.dropped[i];
    }
  }

  void project(Index g, bool keep) {
    const Index rank = shape_.group_rank;
    if (up_.cols > rank) std::fill(scratch_.lines + rank * width_, scratch_.lines + (rank + 1) * width_, Scalar(1));
    if (rank == 0) return;
    const MatrixView<Scalar> u{scratch_.lines, rank, width_, width_, 1};
    multiply_block<Scalar>(call_.a.middle_rows(g * rank, rank), scratch_.dropped, width_, {}, nullptr, u, isa_,
                           scratch_.gather);
    if (!keep || call_.u.data == nullptr) return;
    for (Index p = 0; p < rank; ++p) std::copy(&u(p, 0), &u(p, 0) + columns(), &call_.u(g * rank + p, begin_));
  }

  void plain_outputs(Index first, Index last) {
    const bool direct = in_one_sample();
    const MatrixView<Scalar> out = direct ? MatrixView<Scalar>{&at(call_.y, first), last - first, columns(), size(), 1}
                                          : block_of(scratch_.result, last - first);
    multiply(first, last, scratch_.plain, up_, out);
    if (!direct) write(first, last, call_.y, [&](Index o, Index j) { return out(o - first, j); });
  }

  void scaled_outputs(Index first, Index last) {
    const MatrixView<Scalar> z = block_of(scratch_.result, last - first);
    const MatrixView<Scalar> rest = block_of(scratch_.rest, last - first);
    multiply(first, last, scratch_.dropped, up_, z);
    if (call_.mask.active()) multiply(first, last, scratch_.plain, {}, rest);
    if (call_.z.data != nullptr) write(first, last, call_.z, [&](Index o, Index j) { return z(o - first, j); });
    write(first, last, call_.y, [&](Index o, Index j) {
      const Scalar base = call_.mask.active() ? rest(o - first, j) : Scalar(0);
      return base + (call_.factors[o] * z(o - first, j) + (call_.bias != nullptr ? call_.bias[o] : Scalar(0)));
    });
  }

  void multiply(Index first, Index last, const Scalar* panel, const MatrixView<const Scalar>& up,
                const MatrixView<Scalar>& out) {
    const auto extra = up.cols > 0 ? up.middle_rows(first, last - first) : up;
    multiply_block<Scalar>(call_.weight.middle_rows(first, last - first), panel, width_, extra, scratch_.lines, out,
                           isa_, scratch_.gather);
  }

  [[nodiscard]] MatrixView<Scalar> block_of(Scalar* memory, Index rows) const noexcept {
    return {memory, rows, columns(), width_, 1};
  }
  // The element of the block's first position in output channel `o`.
  [[nodiscard]] Scalar& at(const MatrixView<Scalar>& images, Index o) const noexcept {
    return images(begin_ / size(), o * size() + begin_ % size());
  }

  template <class Value>
  void write(Index first, Index last, const MatrixView<Scalar>& images, const Value& value) const {
    for_each_sample(size(), begin_, end_, [&](Index sample, Index position, Index column, Index length) {
      for (Index o = first; o < last; ++o) {
        Scalar* const target = &images(sample, o * size() + position);
        for (Index j = 0; j < length; ++j) target[j] = value(o, column + j);
      }
    });
  }

  const ConvCall<Scalar>& call_;
  const ConvShape& shape_;
  MatrixView<const Scalar> up_;
  ConvScratch<Scalar> scratch_;
  Isa isa_;
  Index begin_ = 0;
  Index end_ = 0;
  Index width_ = 0;
};

/// [s*B | bias], outputs x (group_rank + 1); without the last column if the bias is null or is added after the factors.
template <class Scalar>
[[nodiscard]] ScratchMatrix<Scalar> up_factor(const ConvCall<Scalar>& call, Workspace& workspace) {
  const Index rank = call.shape.group_rank;
  const Index cols = rank + (call.bias != nullptr && call.factors == nullptr ? 1 : 0);
  auto factor = workspace.matrix<Scalar>(call.shape.outputs(), cols);
  for (Index o = 0; o < call.shape.outputs(); ++o) {
    for (Index p = 0; p < rank; ++p) factor(o, p) = call.scale * call.b(o, p);
    if (cols > rank) factor(o, rank) = call.bias[o];
  }
  return factor;
}

}  // namespace detail

/// Computes the call's Y, and U and Z if requested. Allocates only to grow the workspace: per worker 1 panel (2 with
/// dropout) of fan_in lines and as many panels of a group's outputs. No aliasing.
template <class Scalar>
void convolve(const ConvCall<Scalar>& call, Workspace& workspace) {
  const ConvShape& shape = call.shape;
  Executor& executor = workspace.executor();
  const auto up = detail::up_factor(call, workspace);
  const auto scratch = worker_scratch<Scalar>(workspace, detail::ConvScratch<Scalar>::size(call));
  const Index positions = shape.positions();
  const auto part = [&](Index begin, Index end, Index first, Index last, int worker) {
    detail::ConvBlock<Scalar> block(call, up, &scratch(worker, 0));
    for (Index p = begin; p < end; p += panel_width<Scalar>) {
      for (Index o = first; o < last;) {
        const Index g = o / shape.group_outputs;
        const Index stop = std::min(last, (g + 1) * shape.group_outputs);
        block.run(g, p, std::min(end, p + panel_width<Scalar>), o, stop);
        o = stop;
      }
    }
  };
  if (ceil_div(positions, panel_width<Scalar>) >= executor.workers()) {
    parallel_ranges(executor, positions, panel_width<Scalar>,
                    [&](Index begin, Index end, int worker) { part(begin, end, 0, shape.outputs(), worker); });
  } else {
    parallel_ranges(executor, shape.outputs(), tallest_tile,
                    [&](Index first, Index last, int worker) { part(0, positions, first, last, worker); });
  }
}

/// V (rank x positions) = (scale * factors (.) B)^T dY, per group. `factors` may be null. `dy` is samples x (outputs *
/// output_size) of any strides. Allocates only to grow the workspace.
template <class Scalar>
void project_outputs(const ConvShape& shape, const MatrixView<const Scalar>& dy, const MatrixView<const Scalar>& b,
                     Scalar scale, const Scalar* factors, const MatrixView<Scalar>& v, Workspace& workspace) {
  const Index outputs = shape.outputs();
  const Index rank = shape.group_rank;
  Executor& executor = workspace.executor();
  const auto up = workspace.matrix<Scalar>(outputs, rank);
  for (Index o = 0; o < outputs; ++o) {
    for (Index p = 0; p < rank; ++p) up(o, p) = scale * b(o, p) * (factors != nullptr ? factors[o] : Scalar(1));
  }
  const auto panels = worker_scratch<Scalar>(workspace, (shape.group_outputs + 1) * panel_width<Scalar>);
  parallel_ranges(executor, shape.positions(), panel_width<Scalar>, [&](Index begin, Index end, int worker) {
    Scalar* const panel = &panels(worker, 0);
    Scalar* const gather = panel + shape.group_outputs * panel_width<Scalar>;
    for (Index p = begin; p < end; p += panel_width<Scalar>) {
      const Index stop = std::min(end, p + panel_width<Scalar>);
      const Index width = round_up(stop - p, width_unit<Scalar>);
      for (Index g = 0; g < shape.groups; ++g) {
        const Index first = g * shape.group_outputs;
        unfold(shape.output_walk(), dy, DropoutMask<Scalar>{}, {first, shape.group_outputs, p, stop}, panel, width);
        const auto left = MatrixView<const Scalar>(up).middle_rows(first, shape.group_outputs).transpose();
        const MatrixView<Scalar> out{&v(g * rank, p), rank, stop - p, v.row_stride, 1};
        detail::multiply_block<Scalar>(left, panel, width, {}, nullptr, out, active_isa(), gather);
      }
    }
  });
}

/// What add_line_products sums: G(l, p) += scale * row_factors(l) * sum over positions of line l * lines(g, p), where
/// line l of the unfolding belongs to group g = l / group_lines and lines(g, p) is row g * group_rank + p of `lines`.
template <class Scalar>
struct LineProductCall {
  ImageWalk walk;
  Index groups = 1;
  Index group_lines = 1;
  Index group_rank = 1;
  MatrixView<const Scalar> images;
  DropoutMask<Scalar> mask;
  MatrixView<const Scalar> lines;  ///< (groups * group_rank) x positions, rows contiguous
  Scalar scale = 1;
  const Scalar* row_factors = nullptr;  ///< groups * group_lines, or null
};

/// Calls add(l, p, value) once for every line l, every p < group_rank and every block of positions, block after block.
/// Calls of `add` for different lines run concurrently. Allocates only to grow the workspace. Each worker unfolds 32
/// lines of 1024 positions at a time.
template <class Scalar, class Add>
void add_line_products(const LineProductCall<Scalar>& call, Workspace& workspace, const Add& add) {
  constexpr Index most_lines = 32;
  constexpr Index most_positions = 1024;
  Executor& executor = workspace.executor();
  const auto scratch = worker_scratch<Scalar>(workspace, most_lines * (most_positions + call.group_rank));
  const auto kernel = kernel_table<Scalar>().project_down[0];
  parallel_ranges(executor, call.groups * call.group_lines, 4, [&](Index begin, Index end, int worker) {
    Scalar* const unfolded = &scratch(worker, 0);
    Scalar* const sums = unfolded + most_lines * most_positions;
    for (Index first = begin; first < end;) {
      const Index g = first / call.group_lines;
      const Index count = std::min({most_lines, end - first, (g + 1) * call.group_lines - first});
      const MatrixView<Scalar> out{sums, count, call.group_rank, call.group_rank, 1};
      for (Index p = 0; p < call.lines.cols; p += most_positions) {
        const Index stop = std::min(call.lines.cols, p + most_positions);
        unfold(call.walk, call.images, call.mask, {first, count, p, stop}, unfolded, stop - p);
        const auto lines = call.lines.middle_rows(g * call.group_rank, call.group_rank).middle_cols(p, stop - p);
        kernel(DownCall<Scalar>{{unfolded, count, stop - p, stop - p, 1}, {}, lines, call.scale, out}, 0, count);
        for (Index l = 0; l < count; ++l) {
          const Scalar factor = call.row_factors != nullptr ? call.row_factors[first + l] : Scalar(1);
          for (Index q = 0; q < call.group_rank; ++q) add(first + l, q, factor * out(l, q));
        }
      }
      first += count;
    }
  });
}

/// dX = W^T (weight_factors (.) dY) + drop'(W^T (dropped_factors (.) dY) + A^T V), folded. Null `dropped_factors` mean
/// that this term is missing; they are null without a mask.
template <class Scalar>
struct ConvAdjointCall {
  ConvShape shape;
  MatrixView<const Scalar> dy;      ///< samples x (outputs * output_size), of any strides
  MatrixView<const Scalar> v;       ///< rank x positions, rows contiguous
  MatrixView<const Scalar> weight;  ///< outputs x fan_in
  MatrixView<const Scalar> a;       ///< rank x fan_in
  DropoutMask<Scalar> mask;
  const Scalar* weight_factors = nullptr;   ///< outputs, or null for ones
  const Scalar* dropped_factors = nullptr;  ///< outputs, or null for zeros
  MatrixView<Scalar> dx;                    ///< samples x (groups * group_inputs * input_size), rows contiguous
};

namespace detail {

/// Computes dX of some channels of one group, for some of the samples.
template <class Scalar>
class ConvAdjointBlock {
 public:
  static constexpr Index most_lines = 256;

  [[nodiscard]] static Index channels_of(const ConvShape& shape) noexcept {
    return std::clamp<Index>(most_lines / shape.walk.taps(), 1, shape.group_inputs);
  }
  [[nodiscard]] static Index scratch(const ConvAdjointCall<Scalar>& call) noexcept {
    const ConvShape& s = call.shape;
    const Index lines = channels_of(s) * s.walk.taps();
    const Index weights = call.dropped_factors != nullptr ? 2 : 1;
    return weights * lines * s.group_outputs + (s.group_outputs + lines + 2 * s.group_rank + 1) * panel_width<Scalar>;
  }

  ConvAdjointBlock(const ConvAdjointCall<Scalar>& call, Scalar* memory)
      : call_(call), shape_(call.shape), isa_(active_isa()) {
    const Index lines = channels_of(shape_) * shape_.walk.taps();
    const auto take = [&](Index count) { return std::exchange(memory, memory + count); };
    panel_ = take(shape_.group_outputs * panel_width<Scalar>);
    result_ = take(lines * panel_width<Scalar>);
    v_ = take(shape_.group_rank * panel_width<Scalar>);
    gather_ = take((shape_.group_rank + 1) * panel_width<Scalar>);
    weight_ = take(lines * shape_.group_outputs);
    dropped_weight_ = memory;
  }

  /// Channels [first, first + count) of the whole input, all in one group, for samples [begin, end).
  void run(Index first, Index count, Index begin, Index end) {
    group_ = first / shape_.group_inputs;
    first_line_ = first * shape_.walk.taps();
    lines_ = count * shape_.walk.taps();
    transpose_weight(call_.weight_factors, weight_);
    if (call_.dropped_factors != nullptr) transpose_weight(call_.dropped_factors, dropped_weight_);
    const Index size = shape_.walk.input_size();
    for (Index n = begin; n < end; ++n) {
      Scalar* const plane = call_.dx.data + n * call_.dx.row_stride + first * size;
      std::fill(plane, plane + count * size, Scalar(0));
    }
    begin_ = begin * shape_.walk.output_size();
    end_ = end * shape_.walk.output_size();
    const bool masked = call_.mask.active();
    fold_all(weight_, shape_.group_outputs, masked ? 0 : shape_.group_rank, {});
    if (masked) {
      const Index outputs = call_.dropped_factors != nullptr ? shape_.group_outputs : 0;
      fold_all(dropped_weight_, outputs, shape_.group_rank, call_.mask);
    }
  }

 private:
  // Transposes the lines' part of W: lines x group_outputs.
  void transpose_weight(const Scalar* factors, Scalar* target) const {
    const Index first_output = group_ * shape_.group_outputs;
    const auto part = call_.weight.middle_rows(first_output, shape_.group_outputs).middle_cols(column(), lines_);
    pack_transposed(isa_, part, shape_.group_outputs, target);
    if (factors == nullptr) return;
    for (Index l = 0; l < lines_; ++l, target += shape_.group_outputs)
      for (Index o = 0; o < shape_.group_outputs; ++o) target[o] *= factors[first_output + o];
  }

  // One term after the other, so that an element is summed in one order however positions are cut into panels.
  void fold_all(const Scalar* weight, Index outputs, Index rank, const DropoutMask<Scalar>& mask) {
    const MatrixView<const Scalar> left{weight, lines_, outputs, outputs, 1};
    const MatrixView<const Scalar> extra =
        rank > 0 ? call_.a.middle_rows(group_ * rank, rank).middle_cols(column(), lines_).transpose()
                 : MatrixView<const Scalar>{};
    for (Index p = begin_; p < end_; p += panel_width<Scalar>) {
      const UnfoldBlock block{first_line_, lines_, p, std::min(end_, p + panel_width<Scalar>)};
      const Index columns = block.end - p;
      const Index width = round_up(columns, width_unit<Scalar>);
      unfold(shape_.output_walk(), call_.dy, DropoutMask<Scalar>{},
             {group_ * shape_.group_outputs, outputs, p, block.end}, panel_, width);
      copy_lines(rank, p, columns, width);
      const MatrixView<Scalar> out{result_, lines_, columns, width, 1};
      multiply_block<Scalar>(left, panel_, width, extra, v_, out, isa_, gather_);
      add_folded(shape_.walk, static_cast<const Scalar*>(result_), width, block, mask, call_.dx);
    }
  }

  void copy_lines(Index rank, Index begin, Index columns, Index width) {
    for (Index p = 0; p < rank; ++p) {
      const Scalar* const line = &call_.v(group_ * rank + p, begin);
      std::copy(line, line + columns, v_ + p * width);
      std::fill(v_ + p * width + columns, v_ + (p + 1) * width, Scalar(0));
    }
  }

  [[nodiscard]] Index column() const noexcept { return first_line_ - group_ * shape_.fan_in(); }

  const ConvAdjointCall<Scalar>& call_;
  const ConvShape& shape_;
  Isa isa_;
  Scalar* panel_;
  Scalar* result_;
  Scalar* v_;
  Scalar* gather_;
  Scalar* weight_;
  Scalar* dropped_weight_;
  Index group_ = 0;
  Index first_line_ = 0;
  Index lines_ = 0;
  Index begin_ = 0;
  Index end_ = 0;
};

}  // namespace detail

/// Computes the call's dX. Allocates only to grow the workspace: per worker a part of W^T of about 256 lines, a panel
/// of as many lines, and a panel of a group's outputs. No aliasing.
template <class Scalar>
void convolve_adjoint(const ConvAdjointCall<Scalar>& call, Workspace& workspace) {
  using Block = detail::ConvAdjointBlock<Scalar>;
  const ConvShape& shape = call.shape;
  Executor& executor = workspace.executor();
  const auto scratch = worker_scratch<Scalar>(workspace, Block::scratch(call));
  const Index channels = Block::channels_of(shape);
  const Index parts = ceil_div(shape.group_inputs, channels);
  parallel_ranges(executor, shape.groups * parts * shape.samples, 1, [&](Index begin, Index end, int worker) {
    Block block(call, &scratch(worker, 0));
    for (Index item = begin; item < end;) {
      const Index sample = item % shape.samples;
      const Index count = std::min(shape.samples - sample, end - item);
      const Index part = item / shape.samples;
      const Index inside = part % parts * channels;
      block.run(part / parts * shape.group_inputs + inside, std::min(channels, shape.group_inputs - inside), sample,
                sample + count);
      item += count;
    }
  });
}

}  // namespace lora::kernels
