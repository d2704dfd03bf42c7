// SPDX-License-Identifier: MIT
// Adding s*B*A to a frozen weight in place, and scaling its outputs, so that undoing it restores every bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/floating_point.hpp"
#include "lora/core/large_page_bytes.hpp"
#include "lora/core/shape.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"
#include "lora/weight/stored_elements.hpp"
#include "lora/weight/tile_pieces.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// What is kept while an update is merged into a weight, in order to take it out again.
///
/// For each element of the weight, one signed byte: the distance, in units of last place, between the weight and
/// (merged - delta), or merged * (1 / f_j) - delta when outputs are scaled. Weights whose distance does not fit a byte
/// are kept whole in a list; if the list would exceed a twentieth of the weight's size, a plain copy is kept instead.
/// For weights of 16 bits the units are those of 16 bits. The factors are copied, so the caller may change A, B and f.
template <RealScalar Scalar>
class MergeUndo {
 public:
  /// W <- f (.) (W + s*B*A): row j is multiplied by output_factors[j], if there are any.
  ///   merged(j, i) = round(round(W(j, i) + delta(j, i)) * f_j)
  /// A weight of 16 bits is rounded once, from the exact sum, or with factors from its product in double.
  /// `output_factors`: out_features scalars or none. @throws ShapeError when their number is neither 0 nor
  /// out_features, or the factors do not fit the weight's shape; StateError naming `operation` when there is something
  /// to write and the weight is not mergeable, when a factor or an element of the update is not finite, or when merging
  /// makes a finite element of W non-finite; std::bad_alloc. After an exception W is unchanged, bit for bit. Allocates
  /// what `bytes()` and `factor_bytes()` report. Merging and undoing round to nearest and keep denormals, whatever the
  /// caller's floating-point environment. Source of f: Liu et al., "DoRA", arXiv 2402.09353, equation 5, with f_j = m_j
  /// / |W_j + s*B_j*A|.
  static MergeUndo merge(std::string_view operation, WeightRef<Scalar> weight, const LowRankUpdate<Scalar>& update,
                         std::span<const Scalar> output_factors = {}) {
    const DefaultFloatingPoint environment;
    const bool writes = update.a.rows > 0 || !output_factors.empty();
    if (writes) weight.require_mergeable(operation);
    if (update.a.rows > 0 || update.b.cols > 0) {
      check_shape(operation, "A", update.a, update.b.cols, weight.in_features());
      check_shape(operation, "B", update.b, weight.out_features(), update.a.rows);
    }
    MergeUndo undo;
    undo.keep_factors(operation, weight.out_features(), output_factors);
    if (!writes || weight.tile_count() == 0) return undo;
    detail::with_elements<Scalar>(weight.storage(), [&]<class Elements>(Elements /*elements*/) {
      undo.delta_ = DeltaSource<Scalar>(update, lines_are_outputs<Elements>(weight));
      undo.template merge_elements<Elements>(operation, weight);
    });
    return undo;
  }

  /// Undoes merge(): restores W bit for bit. `weight` is the one given to merge(), or one moved or copied from it. No
  /// allocation.
  void unmerge(WeightRef<Scalar> weight) const noexcept {
    if (empty()) return;
    const DefaultFloatingPoint environment;
    detail::with_elements<Scalar>(weight.storage(), [&]<class Elements>(Elements /*elements*/) {
      restore<Elements>(weight, weight.out_features() * weight.in_features());
    });
  }

  /// Merges the same update again, after unmerge(): the weight gets the bits that merge() gave it. No allocation.
  void merge_again(WeightRef<Scalar> weight) noexcept {
    if (empty()) return;
    const DefaultFloatingPoint environment;
    detail::with_elements<Scalar>(
        weight.storage(), [&]<class Elements>(Elements /*elements*/) { merge_elements_again<Elements>(weight); });
  }

  /// Writes W as it was before merge() to `out` (out_features x in_features, any strides), while `weight` stays merged.
  /// @throws ShapeError; StateError when the weight is not readable. No allocation.
  void read_unmerged(WeightRef<Scalar> weight, const MatrixView<Scalar>& out) const {
    Cursor cursor;
    read_unmerged(weight, {this, 1}, {&cursor, 1}, out);
  }

  /// The position of a walk over the pieces.
  struct Cursor {
    Index element = 0;          ///< elements passed
    std::size_t exception = 0;  ///< exceptions passed
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
    detail::with_elements<Scalar>(weight.storage(), [&]<class Elements>(Elements /*elements*/) {
      read_unmerged_elements<Elements>(weight, undos, cursors, out);
    });
  }

  /// Bytes held besides the copies of the factors.
  [[nodiscard]] std::size_t bytes() const noexcept { return codes_.size() + scalars_.bytes() + halves_.bytes(); }
  /// Bytes of the copies of the factors: A, B, and f with its reciprocals.
  [[nodiscard]] std::size_t factor_bytes() const noexcept {
    return delta_.bytes() + (factors_.size() + reciprocals_.size()) * sizeof(Scalar);
  }

 private:
  static constexpr auto piece_size = static_cast<std::size_t>(max_piece_size);
  enum class Outcome : std::uint8_t { complete, not_finite, too_many_exceptions };

  template <class Elements>
  using ElementOf = typename Elements::Element;
  template <class Elements>
  using PieceOf = WeightTile<ElementOf<Elements>>;
  template <class Elements>
  using PiecesOf = TilePieces<ElementOf<Elements>, Scalar>;
  template <class Elements>
  using ConstPiecesOf = TilePieces<const ElementOf<Elements>, Scalar>;

  // Elements as they were: those whose code does not fit a byte, in order, or all of them.
  template <class Element>
  struct Originals {
    std::vector<Element> exceptions;
    std::vector<Element> copy;

    [[nodiscard]] std::size_t bytes() const noexcept {
      return (exceptions.capacity() + copy.capacity()) * sizeof(Element);
    }
    // Makes room for `more` exceptions, so that nothing throws between writing a line and keeping its elements.
    void reserve_exceptions(std::size_t more) {
      const std::size_t wanted = exceptions.size() + more;
      if (wanted > exceptions.capacity()) exceptions.reserve(wanted + wanted / 8);
    }
  };

  // Restores what apply() did when the scope is left early.
  template <class Elements>
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
      if (done > 0) undo.template restore<Elements>(weight, done);
      done = 0;
    }
  };

  template <class Elements>
  [[nodiscard]] static bool lines_are_outputs(const WeightRef<Scalar>& weight) {
    return weight.template const_tile<ElementOf<Elements>>(0).lines_are_outputs;
  }

  template <class Elements>
  [[nodiscard]] auto& originals() noexcept {
    if constexpr (std::is_same_v<ElementOf<Elements>, Scalar>) {
      return scalars_;
    } else {
      return halves_;
    }
  }
  template <class Elements>
  [[nodiscard]] const auto& originals() const noexcept {
    return const_cast<MergeUndo*>(this)->originals<Elements>();
  }

  template <class Elements>
  void merge_elements(std::string_view operation, const WeightRef<Scalar>& weight) {
    const Index size = weight.out_features() * weight.in_features();
    codes_ = LargePageBytes(static_cast<std::size_t>(size));
    Transaction<Elements> transaction{*this, weight};
    const Outcome outcome = apply<Elements>(weight, size / 20, transaction.done);
    if (outcome == Outcome::complete) {
      originals<Elements>().exceptions.shrink_to_fit();
      transaction.commit();
      return;
    }
    transaction.roll_back();
    if (outcome == Outcome::not_finite) refuse(operation);
    release_codes<Elements>();
    merge_with_copy<Elements>(operation, weight);
  }

  template <class Elements>
  Outcome apply(const WeightRef<Scalar>& weight, Index exception_limit, Index& done) {
    std::array<ElementOf<Elements>, piece_size> former;
    auto& kept = originals<Elements>();
    PiecesOf<Elements> pieces(weight);
    while (pieces.next()) {
      const PieceOf<Elements>& piece = pieces.piece();
      kept.reserve_exceptions(static_cast<std::size_t>(piece.lines * piece.length));
      const kernels::ExactUpdate update = apply_piece<Elements>(piece, codes_.data() + done, former.data());
      kept.exceptions.insert(kept.exceptions.end(), former.data(), former.data() + update.exceptions);
      done += piece.lines * piece.length;
      if (!update.applied) return Outcome::not_finite;
      if (static_cast<Index>(kept.exceptions.size()) > exception_limit) return Outcome::too_many_exceptions;
    }
    return Outcome::complete;
  }

  // Applies the update to all of a piece, finite or not.
  template <class Elements>
  kernels::ExactUpdate apply_piece(const PieceOf<Elements>& piece, std::int8_t* codes,
                                   ElementOf<Elements>* former) const noexcept {
    if constexpr (Elements::fuses_update) {
      if (factors_.empty()) return delta_.update(kernels::UpdateStep::apply, piece, codes, former);
    }
    kernels::ExactUpdate total{.applied = true};
    std::array<Scalar, piece_size> delta;
    evaluate(piece, delta.data());
    for (Index l = 0; l < piece.lines; ++l) {
      const auto line =
          Elements::apply(piece.data + l * piece.line_stride, delta.data() + l * piece.length, factors_of(piece, l),
                          codes + l * piece.length, piece.length, former + total.exceptions);
      total.applied = total.applied && line.applied;
      total.exceptions += line.exceptions;
    }
    return total;
  }

  template <class Element>
  void evaluate(const WeightTile<Element>& piece, Scalar* delta) const noexcept {
    delta_.evaluate(piece.first_line, piece.lines, piece.first_position, piece.length, delta);
  }

  template <class Element>
  [[nodiscard]] kernels::RunFactors<Scalar> factors_of(const WeightTile<Element>& piece, Index line) const noexcept {
    static constexpr Scalar one = 1;
    if (factors_.empty()) return {&one, &one, 0};
    const Index first = piece.lines_are_outputs ? piece.first_line + line : piece.first_position;
    return {factors_.data() + first, reciprocals_.data() + first, piece.lines_are_outputs ? 0 : 1};
  }

  template <class Elements>
  void restore(const WeightRef<Scalar>& weight, Index count) const noexcept {
    Cursor cursor;
    PiecesOf<Elements> pieces(weight);
    while (cursor.element < count && pieces.next()) restore_piece<Elements>(pieces.piece(), cursor);
  }

  // Undoes merging on a piece. The cursor is at the piece, and is moved past it.
  template <class Elements>
  void restore_piece(const PieceOf<Elements>& piece, Cursor& cursor) const noexcept {
    const auto& kept = originals<Elements>();
    const Index start = cursor.element;
    cursor.element += piece.lines * piece.length;
    if (!kept.copy.empty()) {
      const auto* source = kept.copy.data() + start;
      for (Index l = 0; l < piece.lines; ++l, source += piece.length) {
        std::copy(source, source + piece.length, piece.data + l * piece.line_stride);
      }
      return;
    }
    const Index taken =
        restore_codes<Elements>(piece, codes_.data() + start, kept.exceptions.data() + cursor.exception);
    cursor.exception += static_cast<std::size_t>(taken);
  }

  // Returns how many of the exceptions, which start at `former`, the piece has.
  template <class Elements>
  Index restore_codes(const PieceOf<Elements>& piece, std::int8_t* codes,
                      const ElementOf<Elements>* former) const noexcept {
    if constexpr (Elements::fuses_update) {
      auto* const read_only = const_cast<Scalar*>(former);  // this step only reads them
      if (factors_.empty()) return delta_.update(kernels::UpdateStep::restore, piece, codes, read_only).exceptions;
    }
    std::array<Scalar, piece_size> delta;
    evaluate(piece, delta.data());
    Index taken = 0;
    for (Index l = 0; l < piece.lines; ++l) {
      taken += Elements::restore(piece.data + l * piece.line_stride, delta.data() + l * piece.length,
                                 factors_of(piece, l), codes + l * piece.length, piece.length, former + taken);
    }
    return taken;
  }

  template <class Elements>
  void merge_elements_again(const WeightRef<Scalar>& weight) noexcept {
    std::array<ElementOf<Elements>, piece_size> former;
    std::array<Scalar, piece_size> delta;
    std::int8_t* codes = codes_.data();
    const bool copied = !originals<Elements>().copy.empty();
    for (PiecesOf<Elements> pieces(weight); pieces.next();) {
      const PieceOf<Elements>& piece = pieces.piece();
      if (copied) {
        add_piece<Elements>(piece, delta.data());
      } else {
        apply_piece<Elements>(piece, codes, former.data());
        codes += piece.lines * piece.length;
      }
    }
  }

  template <class Elements>
  static void read_unmerged_elements(const WeightRef<Scalar>& weight, std::span<const MergeUndo> undos,
                                     std::span<Cursor> cursors, const MatrixView<Scalar>& out) {
    std::array<ElementOf<Elements>, piece_size> elements;
    ConstPiecesOf<Elements> pieces(weight);
    while (pieces.next()) {
      const auto& merged = pieces.piece();
      const PieceOf<Elements> piece{.data = elements.data(),
                                    .lines = merged.lines,
                                    .length = merged.length,
                                    .line_stride = merged.length,
                                    .first_line = merged.first_line,
                                    .first_position = merged.first_position,
                                    .lines_are_outputs = merged.lines_are_outputs};
      for (Index l = 0; l < piece.lines; ++l) {
        const auto* const line = merged.data + l * merged.line_stride;
        std::copy(line, line + piece.length, piece.data + l * piece.length);
      }
      for (std::size_t i = undos.size(); i-- > 0;) {
        if (!undos[i].empty()) undos[i].template restore_piece<Elements>(piece, cursors[i]);
      }
      write_piece<Elements>(piece, out);
    }
  }

  // Writes the values of a piece to its place in `out`.
  template <class Elements>
  static void write_piece(const PieceOf<Elements>& piece, const MatrixView<Scalar>& out) noexcept {
    const MatrixView<Scalar> whole = piece.lines_are_outputs ? out : out.transpose();
    const MatrixView<Scalar> target =
        whole.middle_rows(piece.first_line, piece.lines).middle_cols(piece.first_position, piece.length);
    if constexpr (std::is_same_v<ElementOf<Elements>, Scalar>) {
      copy_elements<Scalar>({piece.data, piece.lines, piece.length}, target);
    } else {
      std::array<Scalar, piece_size> values;
      std::transform(piece.data, piece.data + piece.lines * piece.length, values.begin(), Elements::value);
      copy_elements<Scalar>({values.data(), piece.lines, piece.length}, target);
    }
  }

  // `vector = {}` would keep the memory.
  template <class Elements>
  void release_codes() noexcept {
    std::vector<ElementOf<Elements>>().swap(originals<Elements>().exceptions);
    codes_ = LargePageBytes();
  }

  // For updates much larger than the weight.
  template <class Elements>
  void merge_with_copy(std::string_view operation, const WeightRef<Scalar>& weight) {
    auto& copy = originals<Elements>().copy;
    copy.reserve(static_cast<std::size_t>(weight.out_features() * weight.in_features()));
    ConstPiecesOf<Elements> read(weight);
    while (read.next()) {
      const auto& piece = read.piece();
      for (Index l = 0; l < piece.lines; ++l) {
        const auto* line = piece.data + l * piece.line_stride;
        copy.insert(copy.end(), line, line + piece.length);
      }
    }
    bool finite = true;
    Index done = 0;
    std::array<Scalar, piece_size> delta;
    PiecesOf<Elements> pieces(weight);
    while (finite && pieces.next()) {
      finite = add_piece<Elements>(pieces.piece(), delta.data());
      done += pieces.piece().lines * pieces.piece().length;
    }
    if (finite) return;
    restore<Elements>(weight, done);
    refuse(operation);
  }

  // Applies the update to all of a piece without codes, and returns whether all stayed finite. `delta` is scratch.
  template <class Elements>
  bool add_piece(const PieceOf<Elements>& piece, Scalar* delta) const noexcept {
    evaluate(piece, delta);
    bool finite = true;
    for (Index l = 0; l < piece.lines; ++l) {
      auto* const weights = piece.data + l * piece.line_stride;
      const Scalar* const deltas = delta + l * piece.length;
      const kernels::RunFactors<Scalar> run = factors_of(piece, l);
      for (Index p = 0; p < piece.length; ++p) {
        const Scalar* const factor = factors_.empty() ? nullptr : run.factors + p * run.step;
        const auto value = Elements::merged(weights[p], deltas[p], factor);
        finite = finite && is_finite(deltas[p]) && (Elements::finite(value) || !Elements::finite(weights[p]));
        weights[p] = value;
      }
    }
    return finite;
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
      if (!is_finite(factor)) {
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
  [[nodiscard]] bool empty() const noexcept {
    return codes_.size() == 0 && scalars_.copy.empty() && halves_.copy.empty();
  }

  DeltaSource<Scalar> delta_;
  std::vector<Scalar> factors_;
  std::vector<Scalar> reciprocals_;
  LargePageBytes codes_;
  // What is kept of a weight that stores scalars, or of one that stores 16-bit numbers.
  Originals<Scalar> scalars_;
  Originals<std::uint16_t> halves_;
};

#if defined(LORA_COMPILED)
extern template class MergeUndo<float>;
extern template class MergeUndo<double>;
#endif

}  // namespace lora
