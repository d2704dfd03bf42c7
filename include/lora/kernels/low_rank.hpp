// Products with the thin factors of an adapter. r is small: loops run along in_features or out_features, never along r.
//
// All of them: no allocation, outputs alias nothing, and the result depends neither on the number of workers nor, for a
// row of U or Y, on the other rows. Inputs whose rows are contiguous take the fast path; any other strides are correct.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lora/core/executor.hpp"
#include "lora/core/view.hpp"
#include "lora/kernels/dropout_mask.hpp"
#include "lora/kernels/tile.hpp"
#include "lora/kernels/transpose.hpp"

namespace lora::kernels {

template <class Scalar>
struct DownCall {
  MatrixView<const Scalar> x;
  DropoutMask<Scalar> mask;
  MatrixView<const Scalar> f;
  Scalar scale;  ///< the mask's factor included
  MatrixView<Scalar> u;
};

template <class Scalar>
struct UpCall {
  MatrixView<const Scalar> u;
  MatrixView<const Scalar> f;
  DropoutMask<Scalar> mask;
  MatrixView<Scalar> y;
};

template <class Scalar>
struct OuterCall {
  MatrixView<const Scalar> v;
  MatrixView<const Scalar> x;
  DropoutMask<Scalar> mask;
  Scalar scale;  ///< the mask's factor included
  MatrixView<Scalar> g;
};

}  // namespace lora::kernels

#define LORA_KERNEL_SOURCE "lora/kernels/low_rank.inc"
#include "lora/kernels/for_each_isa.inc"

namespace lora::kernels {

/// A kernel that works on a range of rows or columns of its call.
template <class Call>
using RangeKernel = void (*)(const Call&, Index begin, Index end);

template <class Scalar>
[[nodiscard]] RangeKernel<DownCall<Scalar>> project_down_kernel(Isa isa, bool masked) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return masked ? &avx512::project_down<Scalar, true> : &avx512::project_down<Scalar, false>;
  if (isa == Isa::avx2) return masked ? &avx2::project_down<Scalar, true> : &avx2::project_down<Scalar, false>;
#endif
  return masked ? &portable::project_down<Scalar, true> : &portable::project_down<Scalar, false>;
}

template <class Scalar>
[[nodiscard]] RangeKernel<UpCall<Scalar>> project_up_kernel(Isa isa) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return &avx512::project_up<Scalar>;
  if (isa == Isa::avx2) return &avx2::project_up<Scalar>;
#endif
  return &portable::project_up<Scalar>;
}

template <class Scalar>
[[nodiscard]] RangeKernel<OuterCall<Scalar>> outer_kernel(Isa isa, bool masked) noexcept {
#if LORA_X86_KERNELS
  if (isa == Isa::avx512) return masked ? &avx512::add_outer<Scalar, true> : &avx512::add_outer<Scalar, false>;
  if (isa == Isa::avx2) return masked ? &avx2::add_outer<Scalar, true> : &avx2::add_outer<Scalar, false>;
#endif
  return masked ? &portable::add_outer<Scalar, true> : &portable::add_outer<Scalar, false>;
}

/// As project_down_kernel, for X of any strides.
template <class Scalar>
void project_down_strided(const DownCall<Scalar>& call, Index begin, Index end) {
  for (Index i = begin; i < end; ++i) {
    for (Index p = 0; p < call.f.rows; ++p) {
      Scalar sum = 0;
      for (Index j = 0; j < call.x.cols; ++j) sum += (call.mask.keeps(i, j) ? call.x(i, j) : Scalar(0)) * call.f(p, j);
      call.u(i, p) = sum * call.scale;
    }
  }
}

/// As outer_kernel, for X of any strides.
template <class Scalar>
void add_outer_strided(const OuterCall<Scalar>& call, Index begin, Index end) {
  for (Index p = 0; p < call.g.rows; ++p) {
    for (Index j = begin; j < end; ++j) {
      Scalar sum = 0;
      for (Index i = 0; i < call.x.rows; ++i) sum += call.v(i, p) * (call.mask.keeps(i, j) ? call.x(i, j) : Scalar(0));
      call.g(p, j) += call.scale * sum;
    }
  }
}

/// target (r x m, contiguous rows) = scale * B^T, with B (m x r) of any strides.
template <class Scalar>
void transpose_scaled(const MatrixView<const Scalar>& b, Scalar scale, Scalar* target, Isa isa = active_isa()) {
  pack_transposed(isa, b, b.rows, target);
  for (Index i = 0; i < b.rows * b.cols; ++i) target[i] *= scale;
}

/// U (N x r) = scale * drop(X) (N x k) * F^T, with F (r x k) of contiguous rows. U has contiguous rows.
template <class Scalar>
void project_down(const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask, const MatrixView<const Scalar>& f,
                  Scalar scale, const MatrixView<Scalar>& u, Executor& executor, Isa isa = active_isa()) {
  const DownCall<Scalar> call{x, mask, f, scale * mask.scale, u};
  const auto kernel = x.row_major() ? project_down_kernel<Scalar>(isa, mask.active()) : &project_down_strided<Scalar>;
  parallel_ranges(executor, x.rows, 4, [&](Index begin, Index end, int /*worker*/) { kernel(call, begin, end); });
}

/// Y (N x m) += drop(U (N x r) * F), with F (r x m); rows of F and Y are contiguous.
template <class Scalar>
void add_project_up(const MatrixView<const Scalar>& u, const MatrixView<const Scalar>& f,
                    const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& y, Executor& executor,
                    Isa isa = active_isa()) {
  const UpCall<Scalar> call{u, f, mask, y};
  const auto kernel = project_up_kernel<Scalar>(isa);
  parallel_ranges(executor, y.rows, tallest_tile,
                  [&](Index begin, Index end, int /*worker*/) { kernel(call, begin, end); });
}

/// G (r x m) += scale * V^T * drop(X), with V (N x r) and X (N x m). Rows of G are contiguous.
/// Each element sums over N in order, in blocks of 256.
template <class Scalar>
void add_outer(const MatrixView<const Scalar>& v, const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask,
               Scalar scale, const MatrixView<Scalar>& g, Executor& executor, Isa isa = active_isa()) {
  const OuterCall<Scalar> call{v, x, mask, scale * mask.scale, g};
  const auto kernel = x.row_major() ? outer_kernel<Scalar>(isa, mask.active()) : &add_outer_strided<Scalar>;
  parallel_ranges(executor, g.cols, panel_width<Scalar>,
                  [&](Index begin, Index end, int /*worker*/) { kernel(call, begin, end); });
}

}  // namespace lora::kernels
