// SPDX-License-Identifier: MIT
// What product kernels are compared with: the naive product in double, with the error bound of a dot product.
#pragma once

#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "lora/core/view.hpp"
#include "lora/kernels/isa.hpp"
#include "lora/kernels/reference.hpp"

namespace lora::testing {

/// The instruction sets this machine runs.
inline std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : all_isas) {
    if (isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

/// How a test array lies in memory.
enum class Storage : std::uint8_t { row_major, column_major, strided };

/// An array on the heap that is not one scalar larger than it must be, so that a sanitizer sees a read past its end.
template <class Scalar>
class ExactArray {
 public:
  ExactArray(Index rows, Index cols, Storage storage, std::uint32_t seed) {
    view_.rows = rows;
    view_.cols = cols;
    view_.row_stride = storage == Storage::row_major ? cols : storage == Storage::column_major ? 1 : 2 * cols + 3;
    view_.col_stride = storage == Storage::row_major ? 1 : storage == Storage::column_major ? rows : 2;
    size_ = rows > 0 && cols > 0 ? (rows - 1) * view_.row_stride + (cols - 1) * view_.col_stride + 1 : 0;
    memory_ = std::make_unique<Scalar[]>(static_cast<std::size_t>(size_));
    for (Index i = 0; i < size_; ++i) {
      seed = seed * 1664525U + 1013904223U;
      memory_[static_cast<std::size_t>(i)] =
          static_cast<Scalar>(static_cast<std::int32_t>(seed)) / Scalar(2147483648.0);
    }
    view_.data = memory_.get();
  }

  [[nodiscard]] MatrixView<Scalar> view() const { return view_; }
  [[nodiscard]] MatrixView<const Scalar> input() const { return view_; }

 private:
  std::unique_ptr<Scalar[]> memory_;
  Index size_ = 0;
  MatrixView<Scalar> view_;
};

/// Sum and sum of magnitudes of products, collected in double.
class Oracle {
 public:
  Oracle(Index rows, Index cols) : value_(Matrix<double>::Zero(rows, cols)), magnitude_(value_) {}

  template <class Scalar>
  void add_row(const Scalar* row) {
    for (Index i = 0; i < value_.rows(); ++i) {
      for (Index j = 0; j < value_.cols(); ++j) {
        value_(i, j) += static_cast<double>(row[j]);
        magnitude_(i, j) += std::abs(static_cast<double>(row[j]));
      }
    }
    ++terms_;
  }

  template <class Scalar>
  void add_array(const MatrixView<const Scalar>& array) {
    value_ += array.map().template cast<double>();
    magnitude_ += array.map().template cast<double>().cwiseAbs();
    ++terms_;
  }

  template <class Scalar>
  void add_product(double scale, const MatrixView<const Scalar>& a, const MatrixView<const Scalar>& b) {
    reference::add_product(scale, a, b, view_of(value_));
    const Matrix<double> absolute_a = a.map().template cast<double>().cwiseAbs();
    const Matrix<double> absolute_b = b.map().template cast<double>().cwiseAbs();
    reference::add_product(std::abs(scale), view_of(absolute_a), view_of(absolute_b), view_of(magnitude_));
    terms_ += a.cols + 1;  // one more rounding for the scale
  }

  /// |got - exact| <= n u / (1 - n u) * sum |terms| for any order of n operations with unit round-off u (Higham,
  /// Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. 3.5), each term rounding at most twice.
  template <class Scalar>
  void expect_near(const MatrixView<Scalar>& got, const std::string& what) const {
    expect_near(got, what, [](Index, Index) { return true; });
  }

  /// The same for the elements that `compared` selects.
  template <class Scalar, class Compared>
  void expect_near(const MatrixView<Scalar>& got, const std::string& what, const Compared& compared) const {
    const double n_u = static_cast<double>(2 * terms_ + 2) * std::numeric_limits<Scalar>::epsilon() / 2;
    const double factor = n_u / (1 - n_u);
    ASSERT_EQ(got.rows, value_.rows()) << what;
    ASSERT_EQ(got.cols, value_.cols()) << what;
    for (Index i = 0; i < got.rows; ++i) {
      for (Index j = 0; j < got.cols; ++j) {
        if (!compared(i, j)) continue;
        const double error = std::abs(static_cast<double>(got(i, j)) - value_(i, j));
        ASSERT_LE(error, factor * magnitude_(i, j)) << what << " at (" << i << ", " << j << ")";
      }
    }
  }

 private:
  Matrix<double> value_;
  Matrix<double> magnitude_;
  Index terms_ = 0;
};

}  // namespace lora::testing
