// SPDX-License-Identifier: MIT
// Merging is in place, exact, atomic, and small: for every kind of weight, with and without a factor for each output
// (W <- f (.) (W + s*B*A), as DoRA asks for), alone and stacked.
#include <array>
#include <cfenv>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "lora/weight/merge_stack.hpp"
#include "lora/weight/merge_undo.hpp"
#include "support/allocation_counter.hpp"
#include "support/bits.hpp"
#include "support/held_bytes.hpp"
#include "support/random_matrix.hpp"
#include "weight/weight_kinds.hpp"

namespace lora {
namespace merge_test {
namespace {

using testing::for_each_kind;
using testing::HeldWeight;
using testing::random_matrix;
using testing::same_bits;

template <class Number>
using Factors = std::vector<Number>;

/// A weight of 70 x 90 and an update of it.
template <class Number>
struct Case {
  Matrix<Number> w = random_matrix<Number>(70, 90, 1);
  Matrix<Number> a = random_matrix<Number>(4, 90, 2);
  Matrix<Number> b = random_matrix<Number>(70, 4, 3);
  [[nodiscard]] LowRankUpdate<Number> update(double scale) const {
    return {view_of(a), view_of(b), static_cast<Number>(scale)};
  }
};

/// Usual for DoRA: within a few percent of 1.
template <class Number>
Factors<Number> near_one(Index count) {
  const auto spread = testing::random_vector<Number>(count, 11, 0.05);
  Factors<Number> factors;
  for (const Number x : spread) factors.push_back(Number(1) + x);
  return factors;
}

template <class Number>
Factors<Number> odd_factors(Index count) {
  using Limits = std::numeric_limits<Number>;
  const Factors<Number> odd = {Number(0),
                               Number(-0.0),
                               Number(-1),
                               Number(1),
                               Number(-0.3),
                               Number(1e-30),
                               Number(1e20),
                               Number(3),
                               Limits::denorm_min(),
                               Limits::min(),
                               Limits::min() / 3,
                               Limits::max() / 1000,
                               -Limits::max() / 1000};
  Factors<Number> factors;
  for (Index j = 0; j < count; ++j) factors.push_back(odd[static_cast<std::size_t>(j) % odd.size()]);
  return factors;
}

/// round(round(w + delta) * f), or round(w + delta) without factors, as `held` rounds.
template <class Number>
Matrix<Number> expected_sum(const HeldWeight<Number>& held, const Matrix<Number>& w,
                            const LowRankUpdate<Number>& update, const Factors<Number>& factors = {}) {
  Matrix<Number> merged = held.stored(w);
  const bool adds = update.a.rows > 0;
  if (!adds && factors.empty()) return merged;
  Matrix<Number> delta = Matrix<Number>::Zero(w.rows(), w.cols());
  if (adds) write_delta(update, view_of(delta));
  for (Index i = 0; i < w.rows(); ++i) {
    const Number* const factor = factors.empty() ? nullptr : &factors[static_cast<std::size_t>(i)];
    for (Index j = 0; j < w.cols(); ++j) merged(i, j) = held.merged(merged(i, j), delta(i, j), factor);
  }
  return merged;
}

/// The bits that are expected after merging; reading back and unmerging give those of w; no kind differs.
template <class Number>
void expect_exact(const Matrix<Number>& w, const LowRankUpdate<Number>& update, const Factors<Number>& factors = {}) {
  for_each_kind(w, [&](HeldWeight<Number>& held) {
    const Matrix<Number> start = held.values();
    const Matrix<Number> expected = expected_sum(held, w, update, factors);
    const auto undo = MergeUndo<Number>::merge("test", held.weight(), update, factors);
    const Matrix<Number> merged = held.values();
    for (Index i = 0; i < w.size(); ++i) {
      if (std::isnan(expected.data()[i])) {
        ASSERT_TRUE(std::isnan(merged.data()[i])) << i;
      } else {
        ASSERT_EQ(testing::bits_of(merged.data()[i]), testing::bits_of(expected.data()[i])) << i;
      }
    }
    Matrix<Number> unmerged(w.rows(), w.cols());
    undo.read_unmerged(held.const_weight(), view_of(unmerged));
    EXPECT_TRUE(same_bits(unmerged, start));
    EXPECT_TRUE(same_bits(held.values(), merged));
    undo.unmerge(held.weight());
    EXPECT_TRUE(same_bits(held.values(), start));
  });
}

template <class Number>
class ExactMerge : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ExactMerge, Scalars);

TYPED_TEST(ExactMerge, RestoresEveryBitWhateverTheSizeOfTheUpdate) {
  const Case<TypeParam> c;
  for (const double scale : {0.0, 1e-30, 1e-9, 1e-3, 1.0, 10.0, 1e3, 1e6, 1e12, 1e30}) {
    SCOPED_TRACE(scale);
    expect_exact(c.w, c.update(scale));
    expect_exact(c.w, c.update(scale), near_one<TypeParam>(70));
  }
}

// Sizes whose rows the copies of the factors pad, and lines longer than a piece or a tile.
TYPED_TEST(ExactMerge, RestoresEveryBitOfSizesThatArePaddedOrCut) {
  for (const auto& [d, k, r] : {std::array<Index, 3>{128, 256, 16}, {5, 9001, 2}, {20001, 2, 1}, {1, 1, 1}}) {
    const auto a = random_matrix<TypeParam>(r, k, 2);
    const auto b = random_matrix<TypeParam>(d, r, 3);
    for (const double scale : {0.1, 1e6}) {
      const LowRankUpdate<TypeParam> update{view_of(a), view_of(b), static_cast<TypeParam>(scale)};
      expect_exact(random_matrix<TypeParam>(d, k, 1), update);
      expect_exact(random_matrix<TypeParam>(d, k, 1), update, near_one<TypeParam>(d));
    }
  }
}

TYPED_TEST(ExactMerge, RestoresDenormalsZerosOfBothSignsAndWhatIsNotFinite) {
  using Limits = std::numeric_limits<TypeParam>;
  const std::vector<TypeParam> odd = {TypeParam(0),          TypeParam(-0.0),     Limits::denorm_min(),
                                      -Limits::denorm_min(), Limits::min(),       Limits::min() / 3,
                                      Limits::infinity(),    -Limits::infinity(), Limits::quiet_NaN(),
                                      Limits::epsilon() / 7, Limits::max() / 4};
  Case<TypeParam> c;
  for (const Index step : {3, 100}) {  // as a copy, and as exceptions
    for (Index i = 0; i < c.w.size(); i += step) {
      c.w.data()[i] = odd[static_cast<std::size_t>(i / step) % (odd.size() - 1)];
    }
    for (const double scale :
         {0.0, 1.0, static_cast<double>(Limits::denorm_min() * 100), static_cast<double>(Limits::min()), 1e6}) {
      expect_exact(c.w, c.update(scale));
      if (scale < 1e6) expect_exact(c.w, c.update(scale), near_one<TypeParam>(70));
      if (scale < 1e6) expect_exact(c.w, c.update(scale), odd_factors<TypeParam>(70));
    }
  }
  c.w(3, 3) = Limits::max() / 4;
  expect_exact(c.w, c.update(1.0));
}

TYPED_TEST(ExactMerge, RestoresEveryBitWhateverTheOutputFactors) {
  const Case<TypeParam> c;
  for (const double scale : {0.0, 1e-3, 1.0}) {
    expect_exact(c.w, c.update(scale), odd_factors<TypeParam>(70));
    for (const TypeParam factor : odd_factors<TypeParam>(13)) {
      SCOPED_TRACE(factor);
      expect_exact(c.w, c.update(scale), Factors<TypeParam>(70, factor));
      auto one_odd = near_one<TypeParam>(70);  // few enough exceptions for a list
      one_odd[42] = factor;
      expect_exact(c.w, c.update(scale), one_odd);
    }
  }
}

TYPED_TEST(ExactMerge, OutputFactorsAloneNeedNoUpdateAndFactorsOfOneAreNone) {
  const Case<TypeParam> c;
  const Matrix<TypeParam> a(0, 90);
  const Matrix<TypeParam> b(70, 0);
  const LowRankUpdate<TypeParam> nothing{view_of(a), view_of(b), TypeParam(1)};
  expect_exact(c.w, nothing);
  expect_exact(c.w, nothing, near_one<TypeParam>(70));
  expect_exact(c.w, nothing, odd_factors<TypeParam>(70));
  for_each_kind(c.w, [&](HeldWeight<TypeParam>& held) {
    (void)MergeUndo<TypeParam>::merge("test", held.weight(), c.update(0.5), Factors<TypeParam>(70, TypeParam(1)));
    EXPECT_TRUE(same_bits(held.values(), expected_sum(held, c.w, c.update(0.5))));
  });
}

TYPED_TEST(ExactMerge, CyclesCopiesAndForgottenFactorsDoNoHarm) {
  for_each_kind(random_matrix<TypeParam>(20, 30, 1), [&](HeldWeight<TypeParam>& held) {
    const Matrix<TypeParam> w = held.values();
    auto a = random_matrix<TypeParam>(3, 30, 2);
    for (int cycle = 0; cycle < 5; ++cycle) {
      auto b = random_matrix<TypeParam>(20, 3, 3);
      auto factors = cycle < 2 ? Factors<TypeParam>() : near_one<TypeParam>(20);
      auto first =
          MergeUndo<TypeParam>::merge("test", held.weight(), {view_of(a), view_of(b), TypeParam(0.2)}, factors);
      factors.assign(20, TypeParam(9));
      a *= 2;
      b.resize(0, 0);
      const MergeUndo<TypeParam> copy = first;
      const MergeUndo<TypeParam> moved = std::move(first);
      (cycle % 2 == 0 ? copy : moved).unmerge(held.weight());
      ASSERT_TRUE(same_bits(held.values(), w)) << cycle;
    }
  });
}

// What a thread's floating-point environment can be: rounding, and denormals flushed as results or as operands.
struct Environment {
  int rounding = FE_TONEAREST;
  bool flush = false;
};

class EnvironmentScope {
 public:
  explicit EnvironmentScope(const Environment& environment) {
    std::fegetenv(&former_);
    std::fesetround(environment.rounding);
#if defined(__SSE2__)
    if (environment.flush) _mm_setcsr(_mm_getcsr() | 0x8040U);
#endif
  }
  EnvironmentScope(const EnvironmentScope&) = delete;
  EnvironmentScope& operator=(const EnvironmentScope&) = delete;
  ~EnvironmentScope() { std::fesetenv(&former_); }

 private:
  std::fenv_t former_{};
};

// Defect: merging under one rounding mode and unmerging under another left other bits, as did flushing denormals.
TYPED_TEST(ExactMerge, TheFloatingPointEnvironmentOfTheCallerChangesNothingAndIsKept) {
  using Limits = std::numeric_limits<TypeParam>;
  Case<TypeParam> c;
  for (Index i = 0; i < c.w.size(); i += 50) c.w.data()[i] = Limits::min() / TypeParam(1 + i);
  const std::vector<Environment> environments = {
      {}, {FE_UPWARD, false}, {FE_DOWNWARD, false}, {FE_TOWARDZERO, false}, {FE_TONEAREST, true}, {FE_UPWARD, true}};
  for (const double scale : {static_cast<double>(Limits::min()) / 8, 0.1, 1e6}) {
    const LowRankUpdate<TypeParam> update = c.update(scale);  // converts the scale in this environment
    for (const auto& factors : {Factors<TypeParam>(), near_one<TypeParam>(70)}) {
      for (std::size_t i = 0; i < environments.size(); ++i) {
        const Environment& before = environments[i];
        const Environment& after = environments[(i + 1) % environments.size()];
        for_each_kind(c.w, [&](HeldWeight<TypeParam>& held) {
          MergeUndo<TypeParam> undo;
          const Matrix<TypeParam> start = held.stored(c.w);
          const Matrix<TypeParam> expected = expected_sum(held, c.w, update, factors);
          Matrix<TypeParam> unmerged(70, 90), delta(70, 90), merged(70, 90);
          {
            const EnvironmentScope scope(before);
            undo = MergeUndo<TypeParam>::merge("test", held.weight(), update, factors);
            EXPECT_EQ(std::fegetround(), before.rounding);
#if defined(__SSE2__)
            EXPECT_EQ((_mm_getcsr() & 0x8040U) != 0, before.flush);
#endif
          }
          EXPECT_TRUE(same_bits(held.values(), expected)) << scale;
          {
            const EnvironmentScope scope(after);
            undo.read_unmerged(held.const_weight(), view_of(unmerged));
            undo.unmerge(held.weight());
            write_delta(update, view_of(delta));
          }
          EXPECT_TRUE(same_bits(unmerged, start)) << scale;
          EXPECT_TRUE(same_bits(held.values(), start)) << scale;
          write_delta(update, view_of(merged));
          EXPECT_TRUE(same_bits(delta, merged)) << scale;
        });
      }
    }
  }
}

template <class Number>
void expect_refused(const Case<Number>& c, const LowRankUpdate<Number>& update, const Factors<Number>& factors = {}) {
  for_each_kind(c.w, [&](HeldWeight<Number>& held) {
    try {
      (void)MergeUndo<Number>::merge("the operation", held.weight(), update, factors);
      ADD_FAILURE() << "merged";
    } catch (const StateError& error) {
      EXPECT_NE(std::string(error.what()).find("the operation"), std::string::npos);
    }
    EXPECT_TRUE(same_bits(held.values(), held.stored(c.w)));
  });
}

TYPED_TEST(ExactMerge, WhatIsNotFiniteIsRefusedAndNothingIsWritten) {
  using Limits = std::numeric_limits<TypeParam>;
  Case<TypeParam> c;
  for (const TypeParam bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
    for (const std::size_t row : {std::size_t{0}, std::size_t{35}, std::size_t{69}}) {
      auto broken = c;
      broken.b(static_cast<Index>(row), 2) = bad;
      expect_refused(broken, broken.update(1));
      expect_refused(broken, broken.update(0.1), near_one<TypeParam>(70));
      expect_refused(broken, broken.update(0.1), Factors<TypeParam>(70, TypeParam(0)));
      auto factors = near_one<TypeParam>(70);
      factors[row] = bad;
      expect_refused(c, c.update(0.1), factors);
    }
  }
  // The update is finite, the sum is not: as codes, and as a copy.
  const TypeParam largest = Limits::max() * TypeParam(0.997);  // finite in bfloat16 too
  c.w(69, 89) = Limits::max() / 2;
  auto factors = near_one<TypeParam>(70);
  factors[69] = TypeParam(3);
  expect_refused(c, c.update(0.1), factors);
  expect_refused(c, c.update(1e9), factors);
  factors[69] = TypeParam(-3);
  expect_refused(c, c.update(0.1), factors);
  c.w(69, 89) = largest;
  c.a.setConstant(Limits::max() / 2);
  c.b.setZero();
  c.b.col(0).setOnes();
  expect_refused(c, c.update(1));
}

TYPED_TEST(ExactMerge, ShapesAreThoseOfTheWeight) {
  const Case<TypeParam> c;
  PackedWeight<TypeParam> weight{view_of(c.w)};
  const auto refused = [&](const LowRankUpdate<TypeParam>& update, const Factors<TypeParam>& factors) {
    EXPECT_THROW((void)MergeUndo<TypeParam>::merge("test", weight, update, factors), ShapeError);
  };
  for (const std::size_t count : {std::size_t{1}, std::size_t{69}, std::size_t{71}, std::size_t{90}}) {
    refused(c.update(1), Factors<TypeParam>(count, TypeParam(1)));
  }
  refused({view_of(c.a).middle_cols(0, 89), view_of(c.b), 1}, {});
  refused({view_of(c.a).middle_rows(0, 3), view_of(c.b), 1}, {});
  refused({view_of(c.a), view_of(c.b).middle_rows(0, 69), 1}, {});
  Matrix<TypeParam> out(70, 90);
  read_back(weight, view_of(out));
  EXPECT_TRUE(same_bits(out, c.w));
  const auto undo = MergeUndo<TypeParam>::merge("test", weight, c.update(1));
  EXPECT_THROW(undo.read_unmerged(weight, view_of(out).transpose()), ShapeError);
}

TYPED_TEST(ExactMerge, AWeightThatCannotBeWrittenIsRefusedAndToldWhatToDo) {
  const Case<TypeParam> c;
  DenseWeight<TypeParam> view(view_of(c.w));
  const PackedWeight<TypeParam> packed{view_of(c.w)};
  for (const WeightRef<TypeParam> weight : {WeightRef<TypeParam>(view), WeightRef<TypeParam>(packed)}) {
    try {
      (void)MergeUndo<TypeParam>::merge("the operation", weight, c.update(1));
      ADD_FAILURE() << "merged";
    } catch (const StateError& error) {
      EXPECT_NE(std::string(error.what()).find("leave the adapter unmerged"), std::string::npos);
    }
  }
}

TYPED_TEST(ExactMerge, RunningOutOfMemoryAtAnyAllocationLeavesTheWeight) {
  if (!testing::allocations_can_fail) GTEST_SKIP() << "a sanitizer owns malloc";
  const Case<TypeParam> c;
  const std::vector<TypeParam> factors(70, TypeParam(0.9));
  for (const double scale : {1.0, 1e6, -1.0, -1e6}) {
    const std::span<const TypeParam> scaled =
        scale < 0 ? std::span<const TypeParam>(factors) : std::span<const TypeParam>();
    for_each_kind(c.w, [&](HeldWeight<TypeParam>& held) {
      int failures = 0;
      for (long successes = 0; successes < 100; ++successes) {
        bool failed = false;
        MergeUndo<TypeParam> undo;
        try {
          const testing::FailingAllocation failing(successes);
          undo = MergeUndo<TypeParam>::merge("test", held.weight(), c.update(scale), scaled);
        } catch (const std::bad_alloc&) {
          failed = true;
        }
        if (!failed) {
          undo.unmerge(held.weight());
          break;
        }
        ++failures;
        EXPECT_TRUE(same_bits(held.values(), held.stored(c.w))) << "allocation " << successes;
      }
      EXPECT_GE(failures, 3);
      EXPECT_LT(failures, 100);
    });
  }
}

/// Normal W0 and factors of rank 8; `ratio` is about |delta| / |W0|.
template <class Number>
struct UsualCase {
  Matrix<Number> w{300, 400}, a{8, 400}, b{300, 8};
  UsualCase() {
    fill_normal(view_of(w), 1.0, RandomStream(1, 1));
    fill_normal(view_of(a), 1.0, RandomStream(1, 2));
    fill_normal(view_of(b), 1.0, RandomStream(1, 3));
  }
  [[nodiscard]] LowRankUpdate<Number> update(double ratio) const {
    return {view_of(a), view_of(b), static_cast<Number>(ratio / std::sqrt(8.0))};
  }
};

TYPED_TEST(ExactMerge, HoldsAtMostThirtyPercentOfTheWeight) {
  const UsualCase<TypeParam> c;
  const double w_bytes = static_cast<double>(c.w.size()) * sizeof(TypeParam);
  auto factors = near_one<TypeParam>(300);
  for (std::size_t j = 0; j < factors.size(); j += 100) factors[j] = 0;  // some outputs switched off
  for_each_kind(c.w, [&](HeldWeight<TypeParam>& held) {
    for (const double ratio : {0.01, 0.1, 1.0}) {
      const auto undo = MergeUndo<TypeParam>::merge("test", held.weight(), c.update(ratio));
      EXPECT_LE(static_cast<double>(undo.bytes()), 0.3 * w_bytes) << ratio;
      EXPECT_EQ(undo.factor_bytes(), static_cast<std::size_t>(c.a.size() + c.b.size()) * sizeof(TypeParam));
      undo.unmerge(held.weight());
      const auto scaled = MergeUndo<TypeParam>::merge("test", held.weight(), c.update(ratio), factors);
      EXPECT_LE(static_cast<double>(scaled.bytes()), 0.3 * w_bytes) << ratio;
      scaled.unmerge(held.weight());
    }
  });
}

// Defect: the list of exceptions, and in a planted bug the codes, were kept beside the copy that takes their place.
TYPED_TEST(ExactMerge, TheBytesHeldAreThoseReportedAfterTheFallBackToo) {
  if (!testing::held_bytes_known) GTEST_SKIP() << "malloc does not tell";
  using testing::held_bytes;
  const UsualCase<TypeParam> c;
  for (const double ratio : {0.1, 1.0, 1e6}) {
    for_each_kind(c.w, [&](HeldWeight<TypeParam>& held) {
      const std::size_t before = held_bytes();
      std::size_t reported = 0;
      {
        const auto undo = MergeUndo<TypeParam>::merge("test", held.weight(), c.update(ratio));
        const auto held_now = static_cast<double>(held_bytes() - before);
        reported = undo.bytes() + undo.factor_bytes();
        EXPECT_NEAR(held_now, static_cast<double>(reported), 5 * 4096.0) << ratio;  // rounded up to pages
        if (ratio > 1) {
          EXPECT_EQ(undo.bytes(), static_cast<std::size_t>(c.w.size()) * held.element_bytes());
        }
        undo.unmerge(held.weight());
      }
      EXPECT_NEAR(static_cast<double>(held_bytes()), static_cast<double>(before), 4096.0);  // malloc keeps crumbs
    });
  }
}

TYPED_TEST(ExactMerge, UnmergingAndReadingBackAllocateNothing) {
  const Case<TypeParam> c;
  for (const double scale : {1.0, 1e6}) {
    for_each_kind(c.w, [&](HeldWeight<TypeParam>& held) {
      const auto undo = MergeUndo<TypeParam>::merge("test", held.weight(), c.update(scale));
      Matrix<TypeParam> out(70, 90);
      EXPECT_EQ(testing::allocations_of([&] {
                  undo.read_unmerged(held.const_weight(), view_of(out));
                  undo.unmerge(held.weight());
                }),
                0);
    });
  }
}

/// Four updates of a weight; number 2 dwarfs it, so that a copy is kept.
struct StackedUpdates {
  std::vector<Matrix<float>> a, b;
  StackedUpdates(Index d, Index k) {
    for (const std::uint64_t i : {0U, 1U, 2U, 3U}) {
      a.push_back(random_matrix<float>(2, k, 10 + i));
      b.push_back(random_matrix<float>(d, 2, 20 + i));
    }
    b[2] *= 1e6F;
  }
  [[nodiscard]] LowRankUpdate<float> of(std::uint64_t key) const { return {view_of(a[key]), view_of(b[key]), 0.5F}; }
  [[nodiscard]] Matrix<float> sum(const HeldWeight<float>& held, const Matrix<float>& w0,
                                  const std::vector<std::uint64_t>& keys) const {
    Matrix<float> w = w0;
    for (const std::uint64_t key : keys) w = expected_sum(held, w, of(key));
    return w;
  }
};

// Several tiles each: lines longer than a piece, odd sizes, single rows and columns.
TEST(MergeStack, AnyUpdateCanBeTakenOutAndTheBaseReadBack) {
  for (const auto& [d, k] : {std::pair<Index, Index>{7, 5}, {1, 40}, {40, 1}, {130, 300}, {3, 20000}, {20000, 3}}) {
    const StackedUpdates updates(d, k);
    for_each_kind(random_matrix<float>(d, k, 1), [&](HeldWeight<float>& held) {
      const Matrix<float> w0 = held.values();
      MergeStack<float> stack;
      for (const std::uint64_t key : {3U, 2U, 0U, 1U}) stack.push("test", held.weight(), key, updates.of(key));
      EXPECT_TRUE(same_bits(held.values(), updates.sum(held, w0, {3, 2, 0, 1})));
      for (std::size_t size = 4; size > 0; --size) {
        EXPECT_EQ(stack.size(), size);
        Matrix<float> base(w0.rows(), w0.cols()), transposed(w0.cols(), w0.rows());
        stack.read_base(held.const_weight(), view_of(base));
        stack.read_base(held.const_weight(), view_of(transposed).transpose());
        EXPECT_TRUE(same_bits(base, w0)) << size;
        EXPECT_TRUE(same_bits(transposed.transpose().eval(), w0)) << size;
        stack.truncate(held.weight(), size - 1);
      }
      EXPECT_TRUE(same_bits(held.values(), w0));

      for (const std::uint64_t key : {3U, 2U, 0U, 1U}) stack.push("test", held.weight(), key, updates.of(key));
      stack.replace(held.weight(), 1, [&] { stack.push("test", held.weight(), 0, updates.of(0)); });
      ASSERT_EQ(stack.size(), 2U);
      EXPECT_EQ(stack.key(0), 3U);
      EXPECT_EQ(stack.key(1), 0U);
      EXPECT_TRUE(stack.contains(0));
      EXPECT_FALSE(stack.contains(2));
      EXPECT_TRUE(same_bits(held.values(), updates.sum(held, w0, {3, 0})));
      EXPECT_GT(stack.bytes(), 0U);
      stack.replace(held.weight(), 0, [] {});
      EXPECT_TRUE(stack.empty());
      EXPECT_EQ(stack.bytes(), 0U);
      EXPECT_TRUE(same_bits(held.values(), w0));
      Matrix<float> base(w0.rows(), w0.cols());
      stack.read_base(held.const_weight(), view_of(base));
      EXPECT_TRUE(same_bits(base, w0));
    });
  }
}

// Updates with codes, with a plain copy, and with output factors are merged again from their records.
TEST(MergeStack, AReplacementThatFailsHalfWayLeavesAllAsItWas) {
  for (const auto& [outputs, inputs] : {std::pair<Index, Index>{7, 5}, {130, 300}, {3, 20000}}) {
    const Index d = outputs;
    const Index k = inputs;
    const StackedUpdates updates(d, k);
    const Matrix<float> factors = random_matrix<float>(1, d, 9);
    for_each_kind(random_matrix<float>(d, k, 1), [&](HeldWeight<float>& held) {
      const Matrix<float> w0 = held.values();
      MergeStack<float> stack;
      stack.push("test", held.weight(), 3, updates.of(3), {factors.data(), static_cast<std::size_t>(d)});
      for (const std::uint64_t key : {2U, 0U}) stack.push("test", held.weight(), key, updates.of(key));
      const Matrix<float> merged = held.values();
      const std::size_t bytes = stack.bytes();
      for (const std::size_t kept : {0U, 1U, 2U, 3U}) {
        EXPECT_THROW(stack.replace(held.weight(), kept,
                                   [&] {
                                     stack.push("test", held.weight(), 1, updates.of(1));
                                     throw StateError("test", "memory", "some", "none");
                                   }),
                     StateError);
        EXPECT_TRUE(same_bits(held.values(), merged)) << kept;
        ASSERT_EQ(stack.size(), 3U);
        for (const std::size_t i : {0U, 1U, 2U}) EXPECT_EQ(stack.key(i), (std::array{3U, 2U, 0U}[i]));
        EXPECT_EQ(stack.bytes(), bytes);
      }
      stack.truncate(held.weight(), 0);
      EXPECT_TRUE(same_bits(held.values(), w0));
    });
  }
}

TEST(MergeStack, ReadingTheBaseOfManyUpdatesCopiesNoWeight) {
  const StackedUpdates updates(130, 300);
  const auto w0 = random_matrix<float>(130, 300, 1);
  PackedWeight<float> weight{view_of(w0)};
  MergeStack<float> stack;
  for (const std::uint64_t key : {3U, 2U, 0U, 1U}) stack.push("test", weight, key, updates.of(key));
  Matrix<float> base(130, 300);
  EXPECT_LE(testing::allocations_of([&] { stack.read_base(weight, view_of(base)); }), 1);
  EXPECT_TRUE(same_bits(base, w0));
}

TEST(MergeStack, ARefusedUpdateChangesNothing) {
  const auto w0 = random_matrix<float>(4, 6, 1);
  StackedUpdates updates(4, 6);
  updates.a[1](0, 0) = std::numeric_limits<float>::infinity();
  for_each_kind(w0, [&](HeldWeight<float>& held) {
    MergeStack<float> stack;
    stack.push("test", held.weight(), 0, updates.of(0));
    const Matrix<float> merged = held.values();
    EXPECT_THROW(stack.push("test", held.weight(), 1, updates.of(1)), StateError);
    EXPECT_EQ(stack.size(), 1U);
    EXPECT_TRUE(same_bits(held.values(), merged));
    MergeStack<float> copy = stack;
    copy.truncate(held.weight(), 0);
    EXPECT_TRUE(same_bits(held.values(), held.stored(w0)));
  });
}

TEST(MergeStack, ForgettingKeepsTheWeightMerged) {
  const auto w0 = random_matrix<float>(4, 6, 1);
  const StackedUpdates updates(4, 6);
  for_each_kind(w0, [&](HeldWeight<float>& held) {
    MergeStack<float> stack;
    stack.push("test", held.weight(), 0, updates.of(0));
    stack.forget();
    EXPECT_TRUE(stack.empty());
    EXPECT_EQ(stack.bytes(), 0U);
    EXPECT_TRUE(same_bits(held.values(), updates.sum(held, w0, {0})));
  });
}

}  // namespace
}  // namespace merge_test
}  // namespace lora
