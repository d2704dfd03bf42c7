// Products with the thin factors of an adapter. r is small: loops run along in_features or out_features, never along r.
#pragma once

#include "lora/core/executor.hpp"
#include "lora/core/view.hpp"
#include "lora/kernels/dropout_mask.hpp"

namespace lora::kernels {

/// U (N x r) = scale * drop(X) (N x k) * F^T, with F (r x k) of contiguous rows. U has contiguous rows.
/// No allocation; U aliases nothing. The result does not depend on the number of workers.
template <class Scalar>
void project_down(const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask, const MatrixView<const Scalar>& f,
                  Scalar scale, const MatrixView<Scalar>& u, Executor& executor) {
  parallel_ranges(executor, x.rows, 1, [&](Index begin, Index end, int /*worker*/) {
    for (Index i = begin; i < end; ++i) {
      for (Index p = 0; p < f.rows; ++p) {
        Scalar sum = 0;
        for (Index j = 0; j < x.cols; ++j) sum += (mask.keeps(i, j) ? x(i, j) : Scalar(0)) * f(p, j);
        u(i, p) = sum * (scale * mask.scale);
      }
    }
  });
}

/// Y (N x m) += drop(U (N x r) * F), with F (r x m); rows of F and Y are contiguous. Allocation and aliasing as above.
template <class Scalar>
void add_project_up(const MatrixView<const Scalar>& u, const MatrixView<const Scalar>& f,
                    const DropoutMask<Scalar>& mask, const MatrixView<Scalar>& y, Executor& executor) {
  parallel_ranges(executor, y.rows, 1, [&](Index begin, Index end, int /*worker*/) {
    for (Index i = begin; i < end; ++i) {
      for (Index j = 0; j < y.cols; ++j) {
        if (!mask.keeps(i, j)) continue;
        Scalar sum = 0;
        for (Index p = 0; p < f.rows; ++p) sum += u(i, p) * f(p, j);
        y(i, j) += mask.scale * sum;
      }
    }
  });
}

/// G (r x m) += scale * V^T * drop(X), with V (N x r) and X (N x m). Rows of G are contiguous.
/// Each element sums over N in order, whatever the number of workers. Allocation and aliasing as above.
template <class Scalar>
void add_outer(const MatrixView<const Scalar>& v, const MatrixView<const Scalar>& x, const DropoutMask<Scalar>& mask,
               Scalar scale, const MatrixView<Scalar>& g, Executor& executor) {
  parallel_ranges(executor, g.cols, 16, [&](Index begin, Index end, int /*worker*/) {
    for (Index p = 0; p < g.rows; ++p) {
      for (Index j = begin; j < end; ++j) {
        Scalar sum = 0;
        for (Index i = 0; i < x.rows; ++i) sum += v(i, p) * (mask.keeps(i, j) ? x(i, j) : Scalar(0));
        g(p, j) += (scale * mask.scale) * sum;
      }
    }
  });
}

}  // namespace lora::kernels
