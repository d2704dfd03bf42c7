// What a LoRA convolution must answer, from its dense formula by the naive loops, in long double.
#pragma once

#include <cmath>
#include <cstddef>

#include "lora/layers/conv_geometry.hpp"
#include "support/linear_oracle.hpp"

namespace lora::testing {

/// All that goes into a training step of one convolution.
template <class Scalar, int Dim>
struct ConvCase {
  ConvGeometry<Dim> geometry;
  ImageExtents<Dim> extents;
  Matrix<Scalar> x, w, a, b, dy;
  RowVector<Scalar> bias, lora_bias, magnitude;  ///< empty where absent
  double scaling = 1;
  Matrix<Scalar> keep;  ///< factor on each element of the adapter's input: 0 or 1 / (1 - p); empty without dropout
};

/// Calls body(output channel, output position, weight column, input feature) for every product of a convolution.
template <int Dim, class Body>
void for_each_product(const ConvGeometry<Dim>& g, const ImageExtents<Dim>& extents, const Body& body) {
  const auto output = output_extents("oracle", g, extents);
  const auto size = [](const ImageExtents<Dim>& e) { return lora::detail::saturated_product(1, e); };
  const auto digits = [](Index index, const ImageExtents<Dim>& e) {
    ImageExtents<Dim> result{};
    for (std::size_t d = e.size(); d-- > 0; index /= e[d]) result[d] = index % e[d];
    return result;
  };
  for (Index o = 0; o < g.out_channels; ++o) {
    for (Index q = 0; q < size(output); ++q) {
      for (Index column = 0; column < g.fan_in(); ++column) {
        const auto at = digits(q, output);
        const auto tap = digits(column % g.taps(), g.kernel);
        Index element = o / g.group_outputs() * g.group_inputs() + column / g.taps();
        bool inside = true;
        for (std::size_t d = 0; d < at.size(); ++d) {
          const Index i = at[d] * g.stride[d] + tap[d] * g.dilation[d] - g.padding[d];
          inside = inside && i >= 0 && i < extents[d];
          element = element * extents[d] + i;
        }
        if (inside) body(o, q, column, element);
      }
    }
  }
}

struct ConvAnswer {
  Matrix<Wide> y, da, db, dx, dbias, dlora_bias, dmagnitude, delta, norms;
};

/// The exact answer; with `magnitudes`, the same formulas over absolute values, with the exact norms.
template <class Scalar, int Dim>
[[nodiscard]] ConvAnswer conv_answer(const ConvCase<Scalar, Dim>& c, bool magnitudes = false) {
  const auto& g = c.geometry;
  const auto wide = [&](const auto& m) { return detail::widened(m, magnitudes); };
  const Wide s = magnitudes ? std::abs(static_cast<Wide>(c.scaling)) : static_cast<Wide>(c.scaling);
  const Matrix<Wide> x = wide(c.x), w = wide(c.w), a = wide(c.a), b = wide(c.b), dy = wide(c.dy), keep = wide(c.keep);
  const Index n = x.rows(), outputs = g.out_channels;
  const Index positions = lora::detail::saturated_product(1, output_extents("oracle", g, c.extents));
  const Index group_rank = b.cols();
  const bool masked = keep.size() > 0;
  const Wide minus = magnitudes ? 1 : -1;
  const Matrix<Wide> dropped = masked ? Matrix<Wide>(x.cwiseProduct(keep)) : x;

  ConvAnswer r;
  r.delta = Matrix<Wide>::Zero(w.rows(), w.cols());
  for (Index o = 0; o < outputs; ++o)
    for (Index p = 0; p < group_rank; ++p)
      for (Index k = 0; k < w.cols(); ++k) r.delta(o, k) += s * b(o, p) * a(o / g.group_outputs() * group_rank + p, k);

  r.norms = Matrix<Wide>::Ones(1, outputs);
  Matrix<Wide> factors = Matrix<Wide>::Ones(1, outputs);
  if (c.magnitude.size() > 0) {
    r.norms = magnitudes ? conv_answer(c).norms : Matrix<Wide>((w + r.delta).rowwise().norm().transpose());
    factors = wide(c.magnitude).cwiseQuotient(r.norms);
  }

  const auto offset = [&](const RowVector<Scalar>& v, Index o) { return v.size() > 0 ? Wide(wide(v)(0, o)) : Wide(0); };
  Matrix<Wide> z = Matrix<Wide>::Zero(n, outputs * positions);
  Matrix<Wide> gradient = Matrix<Wide>::Zero(w.rows(), w.cols());  // of the update
  r.y = z;
  r.dx = Matrix<Wide>::Zero(n, x.cols());
  for (Index i = 0; i < n; ++i) {
    for (Index o = 0; o < outputs; ++o)
      for (Index q = 0; q < positions; ++q) r.y(i, o * positions + q) = offset(c.bias, o) + s * offset(c.lora_bias, o);
    for_each_product(g, c.extents, [&](Index o, Index q, Index k, Index element) {
      const Index at = o * positions + q;
      const Wide f = factors(0, o);
      const Wide seen = dropped(i, element);
      const Wide kept = masked ? keep(i, element) : Wide(1);
      z(i, at) += (w(o, k) + r.delta(o, k)) * seen;
      gradient(o, k) += f * dy(i, at) * seen;
      if (c.magnitude.size() > 0) {
        const Wide rest = masked ? x(i, element) + minus * seen : Wide(0);
        const Wide straight = masked ? w(o, k) + kept * minus * w(o, k) : Wide(0);
        r.y(i, at) += w(o, k) * rest + f * (w(o, k) + r.delta(o, k)) * seen;
        r.dx(i, element) += dy(i, at) * (straight + kept * f * (w(o, k) + r.delta(o, k)));
      } else {
        r.y(i, at) += w(o, k) * x(i, element) + r.delta(o, k) * seen;
        r.dx(i, element) += dy(i, at) * (w(o, k) + kept * r.delta(o, k));
      }
    });
  }
  r.da = Matrix<Wide>::Zero(a.rows(), a.cols());
  r.db = Matrix<Wide>::Zero(b.rows(), b.cols());
  for (Index o = 0; o < outputs; ++o) {
    for (Index p = 0; p < group_rank; ++p) {
      const Index row = o / g.group_outputs() * group_rank + p;
      for (Index k = 0; k < w.cols(); ++k) {
        r.da(row, k) += s * b(o, p) * gradient(o, k);
        r.db(o, p) += s * gradient(o, k) * a(row, k);
      }
    }
  }
  r.dbias = Matrix<Wide>::Zero(1, outputs);
  r.dmagnitude = Matrix<Wide>::Zero(1, outputs);
  for (Index i = 0; i < n; ++i) {
    for (Index o = 0; o < outputs; ++o) {
      for (Index q = 0; q < positions; ++q) {
        r.dbias(0, o) += dy(i, o * positions + q);
        r.dmagnitude(0, o) += dy(i, o * positions + q) * z(i, o * positions + q) / r.norms(0, o);
      }
    }
  }
  r.dlora_bias = s * r.dbias;
  return r;
}

}  // namespace lora::testing
