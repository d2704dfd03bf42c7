// SPDX-License-Identifier: MIT
// DoRA's norms, without the dense sum W0 + s*B*A.
#pragma once

#include <cstdint>

#include "lora/core/executor.hpp"
#include "lora/core/workspace.hpp"
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/panel.hpp"

namespace lora::kernels {

/// The norm of every row of W0 + s*B*A, from quantities that do not grow with in_features:
///   |W0_j + s B_j A|^2 = |W0_j|^2 + 2 s B_j (W0 A^T)_j + s^2 B_j (A A^T) B_j^T.
///
/// `squared_norms`: |W0_j|^2, d numbers. `projected`: (W0 A^T)^T, r x d, rows contiguous. `gram`: A A^T, r x r. `b`:
/// d x r. `norms`: d numbers, may be `squared_norms` itself. Sums in double, so squares of norms near 1e20 do not
/// overflow. If W0_j and s B_j A cancel, the norm is only as exact as the three terms, and never below 0. `cancels[j]`
/// is then 1, that is, if the square is less than a twentieth of |W0_j|^2 + s^2 sum over p of (B_jp |A_p|)^2, and
/// otherwise 0. `cancels`: d bytes, or null.
///
/// d r^2 / 2 multiplications; allocates only to grow the workspace. Results are independent of the other rows, of the
/// number of workers and, except for `Isa::portable`, of the instruction set.
/// Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv 2402.09353, section 4.
template <class Scalar>
void adapted_row_norms(const double* squared_norms, const MatrixView<const Scalar>& projected,
                       const MatrixView<const Scalar>& gram, const MatrixView<const Scalar>& b, Scalar scale,
                       double* norms, std::uint8_t* cancels, Workspace& workspace, Isa isa = active_isa()) {
  const RowNormsCall<Scalar> call{squared_norms, projected, gram, b, static_cast<double>(scale), norms, cancels};
  const auto kernel = kernel_table<Scalar>(isa).row_norms;
  const auto scratch = worker_scratch<double>(workspace, gram.rows * norm_block);
  parallel_ranges(workspace.executor(), b.rows, 2 * norm_block,
                  [&](Index begin, Index end, int worker) { kernel(call, begin, end, &scratch(worker, 0)); });
}

}  // namespace lora::kernels
