// Adding s*B*A to a frozen weight in place, and scaling its outputs, so that undoing it restores every bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/large_page_bytes.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/tile_pieces.hpp"

namespace lora {

/// What is kept while an update is merged into a weight, and needed to take it out again.
///
/// Per weight one signed byte: the distance, in units of last place, between the weight and (merged - delta), or
/// merged * (1 / f_j) - delta where outputs are scaled. Weights for which a byte does not do are kept whole in a list;
/// when the list would pass a twentieth of the weight's size, a plain copy is kept instead. The factors are copied, so
/// nothing that happens to the caller's A, B and f matters.
template <RealScalar Scalar>
class MergeUndo {
 public:
  MergeUndo() = default;
  MergeUndo(const MergeUndo& other)
      : delta_(other.delta_),
        factors_(other.factors_),
        reciprocals_(other.reciprocals_),
        codes_(other.codes_.size()),
        exceptions_(other.exceptions_),
        copy_(other.copy_) {
    std::copy(other.codes_.data(), other.codes_.data() + codes_.size(), codes_.data());
  }
  MergeUndo(MergeUndo&&) noexcept = default;
  MergeUndo& operator=(const MergeUndo& other) { return *this = MergeUndo(other); }
  MergeUndo& operator=(MergeUndo&&) noexcept = default;
  ~MergeUndo() = default;

  /// W <- f (.) (W + s*B*A): row j is multiplied by output_factors[j], or by nothing when there are none.
  ///   merged(j, i) = round(round(W(j, i) + delta(j, i)) * f_j)
  /// `output_factors`: out_features scalars or none. @throws ShapeError when there are some, but not out_features;
  /// StateError naming `operation` when a factor, an element of the update, or a merged one where W was finite, is not
  /// finite; std::bad_alloc. Then W is as it was, bit for bit. Allocates what `bytes()` and `factor_bytes()` report.
  /// Source of f: Liu et al., "DoRA", arXiv 2402.09353, equation 5, with f_j = m_j / |W_j + s*B_j*A|.
  template <FrozenWeight Weight>
  static MergeUndo merge(std::string_view operation, Weight& weight, const LowRankUpdate<Scalar>& update,
                         std::span<const Scalar> output_factors = {}) {
    MergeUndo record;
    record.keep_factors(operation, weight.out_features(), output_factors);
    if ((update.a.rows == 0 && output_factors.empty()) || weight.tile_count() == 0) return record;
    record.delta_ = DeltaSource<Scalar>(update, weight.tile(0).lines_are_outputs);
    const Index size = weight.out_features() * weight.in_features();
    record.codes_ = LargePageBytes(static_cast<std::size_t>(size));
    Transaction<Weight> transaction{record, weight};
    const Outcome outcome = record.apply(weight, size / 20, transaction.done);
    if (outcome == Outcome::complete) {
      record.exceptions_.shrink_to_fit();
      transaction.commit();
      return record;
    }
    transaction.roll_back();
    if (outcome == Outcome::not_finite) record.refuse(operation);
    record.release_codes();
    record.merge_with_copy(operation, weight);
    return record;
  }

  /// Undoes merge(): W is again what it was, bit for bit. The weight is the one merge() was given, or one moved from
  /// it.
  template <FrozenWeight Weight>
  void unmerge(Weight& weight) const noexcept {
    if (empty()) return;
    if (copy_.empty()) {
      restore(weight, code_count());
    } else {
      write_copy(weight);
    }
  }

  /// W as it was before merge(), into `out` (out_features x in_features), while `weight` stays merged.
  template <FrozenWeight Weight>
  void read_unmerged(const Weight& weight, const MatrixView<Scalar>& out) const {
    if (empty()) return read_back(weight, out);
    Cursor cursor;
    for_each_piece(weight, [&](const WeightTile<const Scalar>& merged) {
      std::array<Scalar, piece_size> values;
      WeightTile<Scalar> piece{.data = values.data(),
                               .lines = merged.lines,
                               .length = merged.length,
                               .line_stride = merged.length,
                               .first_line = merged.first_line,
                               .first_position = merged.first_position,
                               .lines_are_outputs = merged.lines_are_outputs};
      for (Index l = 0; l < piece.lines; ++l) {
        const Scalar* line = copy_.empty() ? merged.data + l * merged.line_stride : copy_.data() + cursor.element;
        std::copy(line, line + piece.length, piece.data + l * piece.length);
        if (!copy_.empty()) cursor.element += piece.length;
      }
      if (copy_.empty()) restore_piece(piece, cursor);
      const auto target = piece.lines_are_outputs ? out : out.transpose();
      for (Index l = 0; l < piece.lines; ++l) {
        for (Index p = 0; p < piece.length; ++p) {
          target(piece.first_line + l, piece.first_position + p) = piece.data[l * piece.length + p];
        }
      }
      return true;
    });
  }

  /// Bytes held beyond the copies of the factors.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return codes_.size() + (exceptions_.capacity() + copy_.capacity()) * sizeof(Scalar);
  }
  /// Bytes of the copies of the factors: A, B, and f with its reciprocals.
  [[nodiscard]] std::size_t factor_bytes() const noexcept {
    return delta_.bytes() + (factors_.size() + reciprocals_.size()) * sizeof(Scalar);
  }

 private:
  static constexpr auto piece_size = static_cast<std::size_t>(max_piece_size);
  enum class Outcome : std::uint8_t { complete, not_finite, too_many_exceptions };

  struct Cursor {
    Index element = 0;
    std::size_t exception = 0;
  };

  // Restores what apply() did when the scope is left early.
  template <class Weight>
  struct Transaction {
    MergeUndo& record;
    Weight& weight;
    Index done = 0;
    Transaction(MergeUndo& merge_undo, Weight& target) : record(merge_undo), weight(target) {}
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;
    ~Transaction() { roll_back(); }
    void commit() noexcept { done = 0; }
    void roll_back() noexcept {
      if (done > 0) record.restore(weight, done);
      done = 0;
    }
  };

  template <class Weight>
  Outcome apply(Weight& weight, Index exception_limit, Index& done) {
    Outcome outcome = Outcome::complete;
    std::array<Scalar, piece_size> originals;
    for_each_piece(weight, [&](const WeightTile<Scalar>& piece) {
      reserve_exceptions(static_cast<std::size_t>(piece.lines * piece.length));
      const auto update = factors_.empty()
                              ? delta_.update(kernels::UpdateStep::apply, piece, codes_.data() + done, originals.data())
                              : apply_scaled(piece, codes_.data() + done, originals.data());
      exceptions_.insert(exceptions_.end(), originals.data(), originals.data() + update.exceptions);
      done += piece.lines * piece.length;
      if (static_cast<Index>(exceptions_.size()) > exception_limit) outcome = Outcome::too_many_exceptions;
      if (!update.applied) outcome = Outcome::not_finite;
      return outcome == Outcome::complete;
    });
    return outcome;
  }

  // Applies all of a piece, finite or not, as the fused kernel does.
  kernels::ExactUpdate apply_scaled(const WeightTile<Scalar>& piece, std::int8_t* codes,
                                    Scalar* originals) const noexcept {
    kernels::ExactUpdate total{.applied = true};
    for_each_line(piece, [&](Index l, Scalar* weights, const Scalar* delta) {
      const auto line = kernels::apply_scaled(weights, delta, factors_of(piece, l), codes + l * piece.length,
                                              piece.length, originals + total.exceptions);
      total.applied = total.applied && line.applied;
      total.exceptions += line.exceptions;
    });
    return total;
  }

  // Calls body(l, weights, delta) for each line l of a piece.
  template <class Body>
  void for_each_line(const WeightTile<Scalar>& piece, const Body& body) const {
    std::array<Scalar, piece_size> delta;
    delta_.evaluate(piece.first_line, piece.lines, piece.first_position, piece.length, delta.data());
    for (Index l = 0; l < piece.lines; ++l) {
      body(l, piece.data + l * piece.line_stride, delta.data() + l * piece.length);
    }
  }

  [[nodiscard]] kernels::RunFactors<Scalar> factors_of(const WeightTile<Scalar>& piece, Index line) const noexcept {
    const Index first = piece.lines_are_outputs ? piece.first_line + line : piece.first_position;
    return {factors_.data() + first, reciprocals_.data() + first, piece.lines_are_outputs ? 0 : 1};
  }

  // Room for `more` exceptions, so that nothing throws between writing a line and keeping its originals.
  void reserve_exceptions(std::size_t more) {
    const std::size_t wanted = exceptions_.size() + more;
    if (wanted > exceptions_.capacity()) exceptions_.reserve(wanted + wanted / 8);
  }

  template <class Weight>
  void restore(Weight& weight, Index count) const noexcept {
    Cursor cursor;
    for_each_piece(weight, [&](const WeightTile<Scalar>& piece) {
      restore_piece(piece, cursor);
      return cursor.element < count;
    });
  }

  // Undoes apply() on a piece.
  void restore_piece(const WeightTile<Scalar>& piece, Cursor& cursor) const noexcept {
    std::int8_t* const codes = codes_.data() + cursor.element;
    auto* const originals = const_cast<Scalar*>(exceptions_.data() + cursor.exception);  // only read
    Index taken = 0;
    if (factors_.empty()) {
      taken = delta_.update(kernels::UpdateStep::restore, piece, codes, originals).exceptions;
    } else {
      for_each_line(piece, [&](Index l, Scalar* weights, const Scalar* delta) {
        taken += kernels::restore_scaled(weights, delta, factors_of(piece, l), codes + l * piece.length, piece.length,
                                         originals + taken);
      });
    }
    cursor.element += piece.lines * piece.length;
    cursor.exception += static_cast<std::size_t>(taken);
  }

  void release_codes() noexcept {
    exceptions_ = {};
    codes_ = {};
  }

  [[nodiscard]] Index code_count() const noexcept { return static_cast<Index>(codes_.size()); }

  // For updates that dwarf the weight.
  template <class Weight>
  void merge_with_copy(std::string_view operation, Weight& weight) {
    copy_.reserve(static_cast<std::size_t>(weight.out_features() * weight.in_features()));
    for_each_piece(weight, [&](const WeightTile<Scalar>& piece) {
      for (Index l = 0; l < piece.lines; ++l) {
        const Scalar* line = piece.data + l * piece.line_stride;
        copy_.insert(copy_.end(), line, line + piece.length);
      }
      return true;
    });
    bool finite = true;
    for_each_piece(weight, [&](const WeightTile<Scalar>& piece) {
      for_each_line(piece, [&](Index l, Scalar* weights, const Scalar* delta) {
        for (Index p = 0; p < piece.length; ++p) {
          const Scalar value = merged_value(piece, l, p, weights[p], delta[p]);
          finite = finite && kernels::detail::finite(delta[p]) &&
                   (kernels::detail::finite(value) || !kernels::detail::finite(weights[p]));
          weights[p] = value;
        }
      });
      return finite;
    });
    if (finite) return;
    write_copy(weight);
    refuse(operation);
  }

  [[nodiscard]] Scalar merged_value(const WeightTile<Scalar>& piece, Index line, Index position, Scalar weight,
                                    Scalar delta) const noexcept {
    if (factors_.empty()) return weight + delta;
    const auto run = factors_of(piece, line);
    return kernels::detail::rounded<Scalar>(weight + delta) * run.factors[position * run.step];
  }

  template <class Weight>
  void write_copy(Weight& weight) const noexcept {
    const Scalar* source = copy_.data();
    for_each_piece(weight, [&](const WeightTile<Scalar>& piece) {
      for (Index l = 0; l < piece.lines; ++l, source += piece.length) {
        std::copy(source, source + piece.length, piece.data + l * piece.line_stride);
      }
      return true;
    });
  }

  void keep_factors(std::string_view operation, Index out_features, std::span<const Scalar> factors) {
    if (factors.empty()) return;
    if (static_cast<Index>(factors.size()) != out_features) {
      throw ShapeError(operation, "output_factors", std::to_string(out_features) + " numbers",
                       std::to_string(factors.size()));
    }
    factors_.assign(factors.begin(), factors.end());
    reciprocals_.reserve(factors_.size());
    for (const Scalar factor : factors_) {
      if (!kernels::detail::finite(factor)) {
        throw StateError(operation, "output_factors", "finite numbers", "an infinity or NaN (the weight is unchanged)");
      }
      reciprocals_.push_back(Scalar(1) / factor);
    }
  }

  [[noreturn]] void refuse(std::string_view operation) const {
    throw StateError(operation, factors_.empty() ? "s*B*A" : "f*(W + s*B*A)",
                     "finite numbers, also after adding the weight", "an infinity or NaN (the weight is unchanged)");
  }

  // Whether nothing is merged.
  [[nodiscard]] bool empty() const noexcept { return codes_.size() == 0 && copy_.empty(); }

  DeltaSource<Scalar> delta_;
  std::vector<Scalar> factors_;
  std::vector<Scalar> reciprocals_;
  LargePageBytes codes_;
  std::vector<Scalar> exceptions_;
  std::vector<Scalar> copy_;
};

}  // namespace lora
