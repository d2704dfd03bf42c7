// Adding s*B*A to a frozen weight in place, so that taking it away again restores every bit.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/kernels/exact_update.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/low_rank_update.hpp"

namespace lora {

/// What is kept while an update is merged into a weight, and needed to take it out again.
///
/// Per weight one signed byte: the distance, in units of last place, between the weight and (merged - delta). Weights
/// for which a byte does not do are kept whole in a list; when the list would pass a twentieth of the weight's size, a
/// plain copy is kept instead. The factors are copied, so nothing that happens to the caller's A and B matters.
template <RealScalar Scalar>
class MergeRecord {
 public:
  MergeRecord() = default;
  MergeRecord(const MergeRecord& other)
      : delta_(other.delta_), code_count_(other.code_count_), exceptions_(other.exceptions_), copy_(other.copy_) {
    if (code_count_ == 0) return;
    codes_ = std::make_unique_for_overwrite<std::int8_t[]>(static_cast<std::size_t>(code_count_));
    std::copy(other.codes_.get(), other.codes_.get() + code_count_, codes_.get());
  }
  MergeRecord(MergeRecord&&) noexcept = default;
  MergeRecord& operator=(MergeRecord other) noexcept {
    std::swap(delta_, other.delta_);
    std::swap(codes_, other.codes_);
    std::swap(code_count_, other.code_count_);
    std::swap(exceptions_, other.exceptions_);
    std::swap(copy_, other.copy_);
    return *this;
  }
  ~MergeRecord() = default;

  /// W <- W + s*B*A. @throws StateError naming `operation` when an element of the update, or of the sum where W was
  /// finite, is not finite; std::bad_alloc. Then W is as it was, bit for bit. Allocates what `bytes()` reports.
  template <FrozenWeight Weight>
  static MergeRecord merge(std::string_view operation, Weight& weight, const LowRankUpdate<Scalar>& update) {
    MergeRecord record;
    if (update.a.rows == 0 || weight.tile_count() == 0) return record;
    record.delta_ = DeltaSource<Scalar>(update, weight.tile(0).lines_are_outputs);
    const Index size = weight.out_features() * weight.in_features();
    record.codes_ = std::make_unique_for_overwrite<std::int8_t[]>(static_cast<std::size_t>(size));
    record.code_count_ = size;
    Transaction<Weight> transaction{record, weight};
    const Outcome outcome = record.apply(weight, size / 20, transaction.done);
    if (outcome == Outcome::complete) {
      record.exceptions_.shrink_to_fit();
      transaction.commit();
      return record;
    }
    transaction.roll_back();
    if (outcome == Outcome::not_finite) refuse(operation);
    record.release_codes();
    record.merge_with_copy(operation, weight);
    return record;
  }

  /// Undoes merge(): W is again what it was, bit for bit. The weight is the one merge() was given, or one moved from
  /// it.
  template <FrozenWeight Weight>
  void unmerge(Weight& weight) const noexcept {
    if (delta_.empty()) return;
    if (copy_.empty()) {
      restore(weight, code_count_);
    } else {
      write_copy(weight);
    }
  }

  /// W as it was before merge(), into `out` (out_features x in_features), while `weight` stays merged.
  template <FrozenWeight Weight>
  void read_unmerged(const Weight& weight, const MatrixView<Scalar>& out) const {
    if (delta_.empty()) return read_back(weight, out);
    Cursor cursor;
    for_each_run(weight, [&](const Run<const Scalar>& run, const Scalar* delta) {
      std::array<Scalar, piece_size> values;
      std::copy(run.data, run.data + run.length, values.begin());
      if (copy_.empty()) {
        restore_run(values.data(), delta, run.length, cursor);
      } else {
        std::copy(copy_.data() + cursor.element, copy_.data() + cursor.element + run.length, values.begin());
        cursor.element += run.length;
      }
      const auto target = run.lines_are_outputs ? out : out.transpose();
      for (Index e = 0; e < run.length; ++e) {
        target(run.first_line + e / run.line_length, run.first_position + e % run.line_length) =
            values[static_cast<std::size_t>(e)];
      }
      return true;
    });
  }

  /// Bytes held beyond the copies of the factors.
  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(code_count_) + (exceptions_.capacity() + copy_.capacity()) * sizeof(Scalar);
  }
  /// Bytes of the copies of the factors.
  [[nodiscard]] std::size_t factor_bytes() const noexcept { return delta_.bytes(); }

 private:
  static constexpr std::size_t piece_size = 4096;
  enum class Outcome : std::uint8_t { complete, not_finite, too_many_exceptions };

  // Contiguous scalars: whole lines, or a part of one.
  template <class T>
  struct Run {
    T* data;
    Index length;
    Index line_length;
    Index first_line;
    Index first_position;
    bool lines_are_outputs;
  };

  struct Cursor {
    Index element = 0;
    std::size_t exception = 0;
  };

  // Restores what apply() did when the scope is left early.
  template <class Weight>
  struct Transaction {
    MergeRecord& record;
    Weight& weight;
    Index done = 0;
    Transaction(MergeRecord& merge_record, Weight& target) : record(merge_record), weight(target) {}
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;
    ~Transaction() { roll_back(); }
    void commit() noexcept { done = 0; }
    void roll_back() noexcept {
      if (done > 0) record.restore(weight, done);
      done = 0;
    }
  };

  // Calls body(run, delta of the run) for all of the weight, in runs of at most piece_size scalars, until it answers
  // false. Lines that follow each other without a gap make one run.
  template <class Weight, class Body>
  void for_each_run(Weight& weight, const Body& body) const {
    std::array<Scalar, piece_size> delta;
    constexpr auto room = static_cast<Index>(piece_size);
    for (Index t = 0; t < weight.tile_count(); ++t) {
      const auto tile = weight.tile(t);
      for (Index p = 0; p < tile.length; p += room) {
        const Index length = std::min(room, tile.length - p);
        const Index together = length == tile.line_stride ? room / length : 1;
        for (Index l = 0; l < tile.lines; l += together) {
          const Index lines = std::min(together, tile.lines - l);
          delta_.evaluate(tile.first_line + l, lines, tile.first_position + p, length, delta.data());
          const Run<std::remove_pointer_t<decltype(tile.data)>> run{tile.data + l * tile.line_stride + p,
                                                                    lines * length,
                                                                    length,
                                                                    tile.first_line + l,
                                                                    tile.first_position + p,
                                                                    tile.lines_are_outputs};
          if (!body(run, delta.data())) return;
        }
      }
    }
  }

  template <class Weight>
  Outcome apply(Weight& weight, Index exception_limit, Index& done) {
    Outcome outcome = Outcome::complete;
    std::array<Scalar, piece_size> originals;
    for_each_run(weight, [&](const Run<Scalar>& run, const Scalar* delta) {
      reserve_exceptions(static_cast<std::size_t>(run.length));
      const auto update = kernels::apply_exact(run.data, delta, codes_.get() + done, run.length, originals.data());
      if (!update.applied) {
        outcome = Outcome::not_finite;
        return false;
      }
      exceptions_.insert(exceptions_.end(), originals.data(), originals.data() + update.exceptions);
      done += run.length;
      if (static_cast<Index>(exceptions_.size()) <= exception_limit) return true;
      outcome = Outcome::too_many_exceptions;
      return false;
    });
    return outcome;
  }

  // Room for `more` exceptions, so that nothing throws between writing a line and keeping its originals.
  void reserve_exceptions(std::size_t more) {
    const std::size_t wanted = exceptions_.size() + more;
    if (wanted > exceptions_.capacity()) exceptions_.reserve(wanted + wanted / 8);
  }

  template <class Weight>
  void restore(Weight& weight, Index count) const noexcept {
    Cursor cursor;
    for_each_run(weight, [&](const Run<Scalar>& run, const Scalar* delta) {
      if (cursor.element >= count) return false;
      restore_run(run.data, delta, run.length, cursor);
      return true;
    });
  }

  void restore_run(Scalar* weights, const Scalar* delta, Index length, Cursor& cursor) const noexcept {
    const std::int8_t* codes = codes_.get() + cursor.element;
    kernels::restore_exact(weights, delta, codes, length, exceptions_.data() + cursor.exception);
    cursor.element += length;
    cursor.exception += static_cast<std::size_t>(std::count(codes, codes + length, kernels::exceptional_code));
  }

  void release_codes() noexcept {
    exceptions_ = {};
    codes_ = nullptr;
    code_count_ = 0;
  }

  // For updates that dwarf the weight.
  template <class Weight>
  void merge_with_copy(std::string_view operation, Weight& weight) {
    copy_.reserve(static_cast<std::size_t>(weight.out_features() * weight.in_features()));
    for (Index t = 0; t < weight.tile_count(); ++t) {
      const auto tile = weight.tile(t);
      for (Index l = 0; l < tile.lines; ++l) {
        const Scalar* line = tile.data + l * tile.line_stride;
        copy_.insert(copy_.end(), line, line + tile.length);
      }
    }
    bool finite = true;
    for_each_run(weight, [&](const Run<Scalar>& run, const Scalar* delta) {
      for (Index p = 0; p < run.length; ++p) {
        const Scalar sum = run.data[p] + delta[p];
        finite = finite && kernels::detail::finite(delta[p]) &&
                 (kernels::detail::finite(sum) || !kernels::detail::finite(run.data[p]));
        run.data[p] = sum;
      }
      return finite;
    });
    if (finite) return;
    write_copy(weight);
    refuse(operation);
  }

  template <class Weight>
  void write_copy(Weight& weight) const noexcept {
    const Scalar* source = copy_.data();
    for (Index t = 0; t < weight.tile_count(); ++t) {
      const auto tile = weight.tile(t);
      for (Index l = 0; l < tile.lines; ++l, source += tile.length) {
        std::copy(source, source + tile.length, tile.data + l * tile.line_stride);
      }
    }
  }

  [[noreturn]] static void refuse(std::string_view operation) {
    throw StateError(operation, "s*B*A", "finite numbers, also after adding the weight",
                     "an infinity or NaN (the weight is unchanged)");
  }

  DeltaSource<Scalar> delta_;
  std::unique_ptr<std::int8_t[]> codes_;
  Index code_count_ = 0;
  std::vector<Scalar> exceptions_;
  std::vector<Scalar> copy_;
};

}  // namespace lora
