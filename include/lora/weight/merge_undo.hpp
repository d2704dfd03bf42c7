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
#include "lora/core/floating_point.hpp"
#include "lora/core/large_page_bytes.hpp"
#include "lora/core/shape.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/tile_pieces.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// What is kept while an update is merged into a weight, in order to take it out again.
///
/// For each element of the weight, one signed byte: the distance, in units of last place, between the weight and
/// (merged - delta), or merged * (1 / f_j) - delta when outputs are scaled. Weights whose distance does not fit a byte
/// are kept whole in a list; if the list would exceed a twentieth of the weight's size, a plain copy is kept instead.
/// The factors are copied, so the caller may change A, B and f.
template <RealScalar Scalar>
class MergeUndo {
 public:
  /// W <- f (.) (W + s*B*A): row j is multiplied by output_factors[j], if there are any.
  ///   merged(j, i) = round(round(W(j, i) + delta(j, i)) * f_j)
  /// `output_factors`: out_features scalars or none. @throws ShapeError when their number is neither 0 nor
  /// out_features, or the factors do not fit the weight's shape; StateError naming `operation` when the weight is not
  /// mergeable, when a factor or an element of the update is not finite, or when merging makes a finite element of W
  /// non-finite; std::bad_alloc. After an exception W is unchanged, bit for bit. Allocates what `bytes()` and
  /// `factor_bytes()` report.
  /// Merging and undoing round to nearest and keep denormals, whatever the caller's floating-point environment. Source
  /// of f: Liu et al., "DoRA", arXiv 2402.09353, equation 5, with f_j = m_j / |W_j + s*B_j*A|.
  static MergeUndo merge(std::string_view operation, WeightRef<Scalar> weight, const LowRankUpdate<Scalar>& update,
                         std::span<const Scalar> output_factors = {}) {
    const DefaultFloatingPoint environment;
    weight.require_mergeable(operation);
    if (update.a.rows > 0 || update.b.cols > 0) {
      check_shape(operation, "A", update.a, update.b.cols, weight.in_features());
      check_shape(operation, "B", update.b, weight.out_features(), update.a.rows);
    }
    MergeUndo undo;
    undo.keep_factors(operation, weight.out_features(), output_factors);
    if ((update.a.rows == 0 && output_factors.empty()) || weight.tile_count() == 0) return undo;
    undo.delta_ = DeltaSource<Scalar>(update, weight.const_tile(0).lines_are_outputs);
    const Index size = weight.out_features() * weight.in_features();
    undo.codes_ = LargePageBytes(static_cast<std::size_t>(size));
    Transaction transaction{undo, weight};
    const Outcome outcome = undo.apply(weight, size / 20, transaction.done);
    if (outcome == Outcome::complete) {
      undo.exceptions_.shrink_to_fit();
      transaction.commit();
      return undo;
    }
    transaction.roll_back();
    if (outcome == Outcome::not_finite) undo.refuse(operation);
    undo.release_codes();
    undo.merge_with_copy(operation, weight);
    return undo;
  }

  /// Undoes merge(): restores W bit for bit. `weight` is the one given to merge(), or one moved or copied from it. No
  /// allocation.
  void unmerge(WeightRef<Scalar> weight) const noexcept {
    if (empty()) return;
    const DefaultFloatingPoint environment;
    restore(weight, weight.out_features() * weight.in_features());
  }

  /// Merges the same update again, after unmerge(): the weight gets the bits that merge() gave it. No allocation.
  void merge_again(WeightRef<Scalar> weight) noexcept {
    if (empty()) return;
    const DefaultFloatingPoint environment;
    std::array<Scalar, piece_size> scratch;
    std::int8_t* codes = codes_.data();
    for (TilePieces<Scalar> pieces(weight); pieces.next();) {
      const WeightTile<Scalar>& piece = pieces.piece();
      if (copy_.empty()) {
        apply_piece(piece, codes, scratch.data());
        codes += piece.lines * piece.length;
      } else {
        add_piece(piece, scratch.data());
      }
    }
  }

  /// Writes W as it was before merge() to `out` (out_features x in_features, any strides), while `weight` stays merged.
  /// @throws ShapeError; StateError when the weight is not readable. No allocation.
  void read_unmerged(WeightRef<Scalar> weight, const MatrixView<Scalar>& out) const {
    Cursor cursor;
    read_unmerged(weight, {this, 1}, {&cursor, 1}, out);
  }

  /// The position of a walk over the pieces.
  struct Cursor {
    Index element = 0;
    std::size_t exception = 0;
  };

  /// W as it was before several merges, given as `undos` in the order of merging. `cursors`: one default-constructed
  /// cursor for each. Otherwise as above.
  static void read_unmerged(WeightRef<Scalar> weight, std::span<const MergeUndo> undos, std::span<Cursor> cursors,
                            const MatrixView<Scalar>& out) {
    bool any = false;
    for (const MergeUndo& undo : undos) any = any || !undo.empty();
    if (!any) return read_back(weight, out);
    check_shape("MergeUndo::read_unmerged", "out", out, weight.out_features(), weight.in_features());
    const DefaultFloatingPoint environment;
    std::array<Scalar, piece_size> values;
    TilePieces<const Scalar> pieces(weight);
    while (pieces.next()) {
      const WeightTile<const Scalar>& merged = pieces.piece();
      const WeightTile<Scalar> piece{.data = values.data(),
                                     .lines = merged.lines,
                                     .length = merged.length,
                                     .line_stride = merged.length,
                                     .first_line = merged.first_line,
                                     .first_position = merged.first_position,
                                     .lines_are_outputs = merged.lines_are_outputs};
      for (Index l = 0; l < piece.lines; ++l) {
        const Scalar* const line = merged.data + l * merged.line_stride;
        std::copy(line, line + piece.length, piece.data + l * piece.length);
      }
      for (std::size_t i = undos.size(); i-- > 0;) {
        if (!undos[i].empty()) undos[i].restore_piece(piece, cursors[i]);
      }
      const MatrixView<const Scalar> restored{piece.data, piece.lines, piece.length};
      const MatrixView<Scalar> whole = piece.lines_are_outputs ? out : out.transpose();
      copy_elements(restored,
                    whole.middle_rows(piece.first_line, piece.lines).middle_cols(piece.first_position, piece.length));
    }
  }

  /// Bytes held besides the copies of the factors.
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

  // Restores what apply() did when the scope is left early.
  struct Transaction {
    MergeUndo& undo;
    WeightRef<Scalar> weight;
    Index done = 0;
    Transaction(MergeUndo& merge_undo, const WeightRef<Scalar>& target) : undo(merge_undo), weight(target) {}
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;
    ~Transaction() { roll_back(); }
    void commit() noexcept { done = 0; }
    void roll_back() noexcept {
      if (done > 0) undo.restore(weight, done);
      done = 0;
    }
  };

  Outcome apply(const WeightRef<Scalar>& weight, Index exception_limit, Index& done) {
    std::array<Scalar, piece_size> originals;
    TilePieces<Scalar> pieces(weight);
    while (pieces.next()) {
      const WeightTile<Scalar>& piece = pieces.piece();
      reserve_exceptions(static_cast<std::size_t>(piece.lines * piece.length));
      const kernels::ExactUpdate update = apply_piece(piece, codes_.data() + done, originals.data());
      exceptions_.insert(exceptions_.end(), originals.data(), originals.data() + update.exceptions);
      done += piece.lines * piece.length;
      if (!update.applied) return Outcome::not_finite;
      if (static_cast<Index>(exceptions_.size()) > exception_limit) return Outcome::too_many_exceptions;
    }
    return Outcome::complete;
  }

  // Applies the update to all of a piece, finite or not.
  kernels::ExactUpdate apply_piece(const WeightTile<Scalar>& piece, std::int8_t* codes,
                                   Scalar* originals) const noexcept {
    if (factors_.empty()) return delta_.update(kernels::UpdateStep::apply, piece, codes, originals);
    kernels::ExactUpdate total{.applied = true};
    std::array<Scalar, piece_size> delta;
    evaluate(piece, delta.data());
    for (Index l = 0; l < piece.lines; ++l) {
      const auto line = kernels::apply_scaled(piece.data + l * piece.line_stride, delta.data() + l * piece.length,
                                              factors_of(piece, l), codes + l * piece.length, piece.length,
                                              originals + total.exceptions);
      total.applied = total.applied && line.applied;
      total.exceptions += line.exceptions;
    }
    return total;
  }

  void evaluate(const WeightTile<Scalar>& piece, Scalar* delta) const noexcept {
    delta_.evaluate(piece.first_line, piece.lines, piece.first_position, piece.length, delta);
  }

  [[nodiscard]] kernels::RunFactors<Scalar> factors_of(const WeightTile<Scalar>& piece, Index line) const noexcept {
    const Index first = piece.lines_are_outputs ? piece.first_line + line : piece.first_position;
    return {factors_.data() + first, reciprocals_.data() + first, piece.lines_are_outputs ? 0 : 1};
  }

  // Makes room for `more` exceptions, so that nothing throws between writing a line and keeping its original elements.
  void reserve_exceptions(std::size_t more) {
    const std::size_t wanted = exceptions_.size() + more;
    if (wanted > exceptions_.capacity()) exceptions_.reserve(wanted + wanted / 8);
  }

  void restore(const WeightRef<Scalar>& weight, Index count) const noexcept {
    Cursor cursor;
    TilePieces<Scalar> pieces(weight);
    while (cursor.element < count && pieces.next()) restore_piece(pieces.piece(), cursor);
  }

  // Undoes merging on a piece. The cursor is at the piece, and is moved past it.
  void restore_piece(const WeightTile<Scalar>& piece, Cursor& cursor) const noexcept {
    const Index start = cursor.element;
    cursor.element += piece.lines * piece.length;
    if (!copy_.empty()) {
      const Scalar* source = copy_.data() + start;
      for (Index l = 0; l < piece.lines; ++l, source += piece.length) {
        std::copy(source, source + piece.length, piece.data + l * piece.line_stride);
      }
      return;
    }
    std::int8_t* const codes = codes_.data() + start;
    auto* const originals = const_cast<Scalar*>(exceptions_.data() + cursor.exception);  // only read
    Index taken = 0;
    if (factors_.empty()) {
      taken = delta_.update(kernels::UpdateStep::restore, piece, codes, originals).exceptions;
    } else {
      std::array<Scalar, piece_size> delta;
      evaluate(piece, delta.data());
      for (Index l = 0; l < piece.lines; ++l) {
        taken +=
            kernels::restore_scaled(piece.data + l * piece.line_stride, delta.data() + l * piece.length,
                                    factors_of(piece, l), codes + l * piece.length, piece.length, originals + taken);
      }
    }
    cursor.exception += static_cast<std::size_t>(taken);
  }

  // `vector = {}` would keep the memory.
  void release_codes() noexcept {
    std::vector<Scalar>().swap(exceptions_);
    codes_ = LargePageBytes();
  }

  // For updates much larger than the weight.
  void merge_with_copy(std::string_view operation, const WeightRef<Scalar>& weight) {
    copy_.reserve(static_cast<std::size_t>(weight.out_features() * weight.in_features()));
    TilePieces<const Scalar> originals(weight);
    while (originals.next()) {
      const WeightTile<const Scalar>& piece = originals.piece();
      for (Index l = 0; l < piece.lines; ++l) {
        const Scalar* line = piece.data + l * piece.line_stride;
        copy_.insert(copy_.end(), line, line + piece.length);
      }
    }
    bool finite = true;
    Index done = 0;
    std::array<Scalar, piece_size> delta;
    TilePieces<Scalar> pieces(weight);
    while (finite && pieces.next()) {
      finite = add_piece(pieces.piece(), delta.data());
      done += pieces.piece().lines * pieces.piece().length;
    }
    if (finite) return;
    restore(weight, done);
    refuse(operation);
  }

  // Applies the update to all of a piece without codes, and returns whether all stayed finite. `delta` is scratch.
  bool add_piece(const WeightTile<Scalar>& piece, Scalar* delta) const noexcept {
    evaluate(piece, delta);
    bool finite = true;
    for (Index l = 0; l < piece.lines; ++l) {
      Scalar* const weights = piece.data + l * piece.line_stride;
      const Scalar* const deltas = delta + l * piece.length;
      for (Index p = 0; p < piece.length; ++p) {
        const Scalar value = merged_value(piece, l, p, weights[p], deltas[p]);
        finite = finite && kernels::detail::finite(deltas[p]) &&
                 (kernels::detail::finite(value) || !kernels::detail::finite(weights[p]));
        weights[p] = value;
      }
    }
    return finite;
  }

  [[nodiscard]] Scalar merged_value(const WeightTile<Scalar>& piece, Index line, Index position, Scalar weight,
                                    Scalar delta) const noexcept {
    if (factors_.empty()) return weight + delta;
    const auto run = factors_of(piece, line);
    return kernels::detail::rounded<Scalar>(weight + delta) * run.factors[position * run.step];
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

#if defined(LORA_COMPILED)
extern template class MergeUndo<float>;
extern template class MergeUndo<double>;
#endif

}  // namespace lora
