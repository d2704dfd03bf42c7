// SPDX-License-Identifier: MIT
// What a LoRA linear layer must answer, in long double by the naive kernels, and how far rounding may carry it.
#pragma once

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "lora/core/types.hpp"
#include "lora/core/view.hpp"
#include "lora/kernels/reference.hpp"

namespace lora::testing {

using Wide = long double;

/// All that goes into a training step of one layer. W is out_features x in_features.
template <class Scalar>
struct LinearCase {
  Matrix<Scalar> x, w, a, b, dy;
  RowVector<Scalar> bias, lora_bias;  ///< empty where absent
  double scaling = 1;
  Matrix<Scalar> keep;  ///< factor on each element of the adapter's input: 0 or 1 / (1 - p); empty without dropout
};

struct LinearAnswer {
  Matrix<Wide> y, da, db, dx, dbias, dlora_bias;
};

namespace detail {

template <class Derived>
[[nodiscard]] Matrix<Wide> widened(const Eigen::MatrixBase<Derived>& m, bool magnitudes) {
  const Matrix<Wide> wide = m.template cast<Wide>();
  return magnitudes ? Matrix<Wide>(wide.cwiseAbs()) : wide;
}

[[nodiscard]] inline Matrix<Wide> product(const Matrix<Wide>& a, const Matrix<Wide>& b, Wide scale = 1) {
  Matrix<Wide> c = Matrix<Wide>::Zero(a.rows(), b.cols());
  reference::add_product<Wide>(scale, view_of(a), view_of(b), view_of(c));
  return c;
}

}  // namespace detail

/// The exact answer; with `magnitudes`, the same formulas over absolute values: the sums that rounding errors scale
/// with.
template <class Scalar>
[[nodiscard]] LinearAnswer linear_answer(const LinearCase<Scalar>& c, bool magnitudes = false) {
  using detail::product;
  const auto wide = [&](const auto& m) { return detail::widened(m, magnitudes); };
  const Wide s = magnitudes ? std::abs(static_cast<Wide>(c.scaling)) : static_cast<Wide>(c.scaling);
  const Matrix<Wide> x = wide(c.x), w = wide(c.w), a = wide(c.a), b = wide(c.b), dy = wide(c.dy), keep = wide(c.keep);
  const Matrix<Wide> dropped = keep.size() > 0 ? Matrix<Wide>(x.cwiseProduct(keep)) : x;
  const Matrix<Wide> u = product(dropped, a.transpose());
  const Matrix<Wide> v = product(dy, b, s);
  LinearAnswer answer;
  answer.y = product(x, w.transpose()) + product(u, b.transpose(), s);
  if (c.bias.size() > 0) answer.y.rowwise() += RowVector<Wide>(wide(c.bias));
  if (c.lora_bias.size() > 0) answer.y.rowwise() += RowVector<Wide>(s * wide(c.lora_bias));
  answer.da = product(v.transpose(), dropped);
  answer.db = product(dy.transpose(), u, s);
  const Matrix<Wide> through_adapter = product(v, a);
  answer.dx = product(dy, w) + (keep.size() > 0 ? Matrix<Wide>(through_adapter.cwiseProduct(keep)) : through_adapter);
  // Not colwise().sum(), which takes columns of a null pointer when there are no rows.
  answer.dbias = product(Matrix<Wide>::Ones(1, dy.rows()), dy);
  answer.dlora_bias = s * answer.dbias;
  return answer;
}

/// |got - exact| <= terms * epsilon * magnitude, element by element: the standard bound of a sum of `terms` products
/// (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
template <class Derived>
[[nodiscard]] ::testing::AssertionResult within_rounding(const Eigen::MatrixBase<Derived>& got,
                                                         const Matrix<Wide>& exact, const Matrix<Wide>& magnitude,
                                                         Index terms) {
  using Scalar = typename Derived::Scalar;
  if (got.rows() != exact.rows() || got.cols() != exact.cols()) {
    return ::testing::AssertionFailure() << "shape " << got.rows() << " x " << got.cols();
  }
  for (Index i = 0; i < got.rows(); ++i) {
    for (Index j = 0; j < got.cols(); ++j) {
      const Wide bound = static_cast<Wide>(terms) * std::numeric_limits<Scalar>::epsilon() * magnitude(i, j);
      const Wide error = std::abs(static_cast<Wide>(got(i, j)) - exact(i, j));
      if (!(error <= bound)) {
        return ::testing::AssertionFailure() << "(" << i << ", " << j << "): " << got(i, j) << " is " << error
                                             << " from the exact value, allowed " << bound;
      }
    }
  }
  return ::testing::AssertionSuccess();
}

/// The longest chains of roundings in each result of a layer of these sizes; 8 covers scaling, bias and masks.
struct ChainLengths {
  Index n, d, k, r;
  [[nodiscard]] Index y() const { return k + 2 * r + 8; }
  [[nodiscard]] Index da() const { return d + n + 8; }
  [[nodiscard]] Index db() const { return k + n + 8; }
  [[nodiscard]] Index dx() const { return d + 2 * r + 8; }
  [[nodiscard]] Index dbias() const { return n + 8; }
};

}  // namespace lora::testing
