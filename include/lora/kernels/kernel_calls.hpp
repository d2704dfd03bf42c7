// SPDX-License-Identifier: MIT
// The arguments of an instruction set's kernels. Plain data, so that this header needs no vector code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "lora/core/view.hpp"
#include "lora/kernels/dropout_mask.hpp"

namespace lora::kernels {

/// Width of a panel: three AVX-512 registers, six of AVX2, twelve of 16 bytes.
template <class Scalar>
inline constexpr Index panel_width = static_cast<Index>(3 * 64 / sizeof(Scalar));

/// Narrower panels have a multiple of this width: one AVX-512 register.
template <class Scalar>
inline constexpr Index width_unit = static_cast<Index>(64 / sizeof(Scalar));

/// Rows of the tallest tile of any instruction set.
inline constexpr Index tallest_tile = 8;

/// Rows of a block whose sums `add_outer` forms before it adds them to G.
inline constexpr Index outer_block = 256;

/// Terms of an inner product: row i's factor p is left[i * left_row + p * left_step]; it multiplies row p of `right`.
template <class Scalar>
struct ProductTerms {
  const Scalar* left = nullptr;
  Index left_row = 0;
  Index left_step = 0;
  const Scalar* right = nullptr;  ///< depth rows of `width` scalars
  Index depth = 0;
  Index right_row = 0;  ///< stride of the rows of `right`; 0 if they are contiguous

  [[nodiscard]] Index right_distance(Index width) const noexcept { return right_row != 0 ? right_row : width; }
};

/// What the next product reads: runs of memory, run_stride bytes apart, one for every `run_terms` terms of this
/// product. The tiles prefetch the runs in slices: at term p of a run, the tile whose first row is i prefetches address
/// + run * run_stride + i * row + p * step. A prefetch beyond the end of an array is harmless, so these are numbers and
/// not pointers.
struct Prefetch {
  std::uintptr_t address = 0;
  std::uintptr_t run_stride = 0;
  std::uintptr_t run_terms = std::numeric_limits<std::uintptr_t>::max();
  std::uintptr_t row = 0;
  std::uintptr_t step = 0;

  /// Spreads runs of `bytes`, one for every `terms` terms, over the tiles of `samples` rows, with prefetches at most
  /// one cache line apart.
  void spread(std::uintptr_t bytes, Index terms, Index samples) noexcept {
    const auto rows = static_cast<std::uintptr_t>(samples);
    const auto hints = rows * static_cast<std::uintptr_t>(std::max<Index>(terms, 1));
    row = (bytes + rows - 1) / rows;
    step = std::min<std::uintptr_t>(64, (bytes * tallest_tile + hints - 1) / hints);
  }
};

/// out (rows x columns) = start + terms + extra, where start is `out` itself (`accumulate`), or `initial`, or zero.
/// With `panels` > 1 the product takes that many whole, contiguous panels; their columns in `out`, in `initial` and in
/// the rows of `extra` are contiguous too, and width and columns are panel_width. Every element is one chain of fused
/// multiply-adds in the order of the terms, so it depends neither on the position of its row nor on how the product is
/// split into rows, columns or calls.
template <class Scalar>
struct PanelProduct {
  Index rows = 0;
  Index width = 0;    ///< of `right` and `initial`; a multiple of width_unit
  Index columns = 0;  ///< columns of `out`, at most `width`
  Index panels = 1;
  ProductTerms<Scalar> terms;
  ProductTerms<Scalar> extra;       ///< depth 0 for none
  const Scalar* initial = nullptr;  ///< `width` scalars, or null for zero
  bool accumulate = false;
  Scalar* out = nullptr;
  Index out_stride = 0;
  Prefetch prefetch;
};

/// U = scale * drop(X) F^T for X and F with contiguous rows; `scale` includes the mask's factor.
template <class Scalar>
struct DownCall {
  MatrixView<const Scalar> x;
  DropoutMask<Scalar> mask;
  MatrixView<const Scalar> f;
  Scalar scale;
  MatrixView<Scalar> u;
};

/// Y += drop(U F) for F and Y with contiguous rows.
template <class Scalar>
struct UpCall {
  MatrixView<const Scalar> u;
  MatrixView<const Scalar> f;
  DropoutMask<Scalar> mask;
  MatrixView<Scalar> y;
};

/// G += scale * V^T drop(X) for X and G with contiguous rows; `scale` includes the mask's factor.
template <class Scalar>
struct OuterCall {
  MatrixView<const Scalar> v;
  MatrixView<const Scalar> x;
  DropoutMask<Scalar> mask;
  Scalar scale;
  MatrixView<Scalar> g;
};

enum class UpdateStep : std::uint8_t {
  apply,    ///< weights <- weights + delta, codes and originals written
  restore,  ///< undo `apply`, reading codes and originals
  verify,   ///< write nothing; after `apply`, check that every delta, and every sum of a finite weight, is finite
};

/// The result of an exact update.
struct ExactUpdate {
  bool applied = false;  ///< false: some delta or result was not finite
  Index exceptions = 0;  ///< number of elements with `exceptional_code`
};

/// Weights (`lines` runs of `length` scalars, `line_stride` apart) and their update coefficients * factor, with the
/// shapes of DeltaKernel.
template <class Scalar>
struct UpdateTile {
  const Scalar* coefficients = nullptr;
  const Scalar* factor = nullptr;
  Index factor_stride = 0;
  Index rank = 0;
  Scalar* weights = nullptr;
  Index line_stride = 0;
  Index lines = 0;
  Index length = 0;
};

/// One pass over rows x columns: z and y have contiguous rows, factors and bias have one scalar per column.
template <class Scalar>
struct ColumnPass {
  const Scalar* z = nullptr;
  Index z_row = 0;
  const Scalar* factors = nullptr;
  const Scalar* bias = nullptr;  ///< or null
  Scalar* y = nullptr;
  Index y_row = 0;
  Index rows = 0;
  Index columns = 0;
};

/// Adds to sums (columns), for each column, dy(i, j) * z(i, j), or dy(i, j), row by row in order.
template <class Scalar>
struct ColumnSum {
  const Scalar* dy = nullptr;
  Index dy_row = 0;
  const Scalar* z = nullptr;
  Index z_row = 0;
  Index rows = 0;
  Index columns = 0;
  Scalar* sums = nullptr;
};

/// See adapted_row_norms().
template <class Scalar>
struct RowNormsCall {
  const double* squared_norms = nullptr;
  MatrixView<const Scalar> projected;  ///< r x d, rows contiguous
  MatrixView<const Scalar> gram;       ///< r x r
  MatrixView<const Scalar> b;          ///< d x r
  double scale = 1;
  double* norms = nullptr;
  std::uint8_t* cancels = nullptr;
};

/// Columns that the row norms' kernel processes at a time; its scratch is rank times as many doubles.
inline constexpr Index norm_block = 32;

}  // namespace lora::kernels
