// SPDX-License-Identifier: MIT
// The distance of our numbers from the reference, relative to what rounding can explain.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>

#include "lora/core/types.hpp"

namespace lora::conformance {

/// The largest error of a case. An error is |ours - theirs| relative to the largest element of theirs, or, if sums
/// cancel, to the product of the norms behind them. The bound is that of the tensor's scalar type, or a wider one if
/// the reference used a singular value decomposition.
class Comparison {
 public:
  static constexpr double svd_bound = 1e-4;

  template <class Scalar>
  static constexpr double rounding_bound = std::numeric_limits<Scalar>::digits > 24 ? 1e-12 : 1e-5;

  template <class Scalar>
  void close(const std::string& what, const Matrix<Scalar>& ours, const Matrix<Scalar>& theirs,
             double bound = rounding_bound<Scalar>, double norms = 0) {
    require_shape(what, ours, theirs);
    const double largest = theirs.size() == 0 ? 0.0 : static_cast<double>(theirs.cwiseAbs().maxCoeff());
    const double size = std::max(largest, norms);
    const double scale = size > 0 ? size : 1.0;
    double error = 0;
    for (Index i = 0; i < ours.size(); ++i) {
      const double distance = std::abs(static_cast<double>(ours.data()[i]) - static_cast<double>(theirs.data()[i]));
      error = std::isfinite(distance) ? std::max(error, distance / scale) : std::numeric_limits<double>::infinity();
      if (!std::isfinite(error)) break;
    }
    take(what, error, bound);
  }

  /// The same for the Frobenius norms of the difference and of theirs.
  template <class Scalar>
  void close_in_norm(const std::string& what, const Matrix<Scalar>& ours, const Matrix<Scalar>& theirs, double bound) {
    require_shape(what, ours, theirs);
    const Matrix<double> wanted = theirs.template cast<double>();
    const double norm = wanted.norm();
    const double error = (ours.template cast<double>() - wanted).norm() / (norm > 0 ? norm : 1.0);
    take(what, std::isfinite(error) ? error : std::numeric_limits<double>::infinity(), bound);
  }

  void equal(const std::string& what, long long ours, long long theirs) {
    if (ours != theirs) {
      throw std::runtime_error(what + " is " + std::to_string(ours) + " and should be " + std::to_string(theirs));
    }
    take(what, 0.0, 0.0);
  }

  [[nodiscard]] bool passed() const noexcept { return compared_ > 0 && passed_; }
  [[nodiscard]] std::string text() const {
    if (compared_ == 0) return "nothing was compared";
    char numbers[96];
    std::snprintf(numbers, sizeof(numbers), "largest error %.2e <= %.0e in ", error_, bound_);
    std::string result = numbers;
    if (!passed_) result.replace(result.find("<="), 2, "> ");
    return result += what_;
  }

 private:
  static std::string shape(const auto& matrix) {
    return std::to_string(matrix.rows()) + " x " + std::to_string(matrix.cols());
  }
  static void require_shape(const std::string& what, const auto& ours, const auto& theirs) {
    if (ours.rows() == theirs.rows() && ours.cols() == theirs.cols()) return;
    throw std::runtime_error(what + " is " + shape(ours) + " and should be " + shape(theirs));
  }

  void take(const std::string& what, double error, double bound) {
    const bool within = error <= bound;
    const double share = bound > 0 ? error / bound : 0.0;
    if (++compared_ == 1 || (passed_ && !within) || (passed_ == within && share > share_)) {
      what_ = what;
      error_ = error;
      bound_ = bound;
      share_ = share;
    }
    passed_ = passed_ && within;
  }

  int compared_ = 0;
  bool passed_ = true;
  double error_ = 0;
  double bound_ = 0;
  double share_ = 0;
  std::string what_;
};

}  // namespace lora::conformance
