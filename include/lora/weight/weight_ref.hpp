// SPDX-License-Identifier: MIT
// A reference to a frozen weight of any kind: code that works on weights is compiled once, not once for each kind.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/weight/frozen_weight.hpp"

namespace lora {

/// A non-owning reference to a FrozenWeight. Converts implicitly from a weight; from one that holds another, such as
/// AnyWeight, to what its held() refers to. A const weight can be read but not merged into. Copies refer to the same
/// weight, which must outlive them. No allocation.
template <RealScalar Scalar_>
class WeightRef {
 public:
  using Scalar = Scalar_;

  /// Refers to `weight`, which may be merged into.
  template <class W>
    requires(!std::is_same_v<std::remove_cv_t<W>, WeightRef>)
  &&FrozenWeight<W> && (std::is_same_v<typename W::Scalar, Scalar>)
      // NOLINTNEXTLINE(google-explicit-constructor): converts at the call, as FunctionRef does.
      WeightRef(W& weight) noexcept {
    if constexpr (requires { weight.held(); }) {
      *this = weight.held();
    } else {
      object_ = std::addressof(weight);
      table_ = &table_of<W, true>;
    }
  }

  /// Refers to `weight`, which may only be read.
  template <class W>
    requires(!std::is_same_v<std::remove_cv_t<W>, WeightRef>)
  &&FrozenWeight<W> && (std::is_same_v<typename W::Scalar, Scalar>)
      // NOLINTNEXTLINE(google-explicit-constructor)
      WeightRef(const W& weight) noexcept {
    if constexpr (requires { weight.held(); }) {
      *this = weight.held();
    } else {
      object_ = const_cast<W*>(std::addressof(weight));
      table_ = &table_of<W, false>;
    }
  }

  [[nodiscard]] Index out_features() const noexcept { return table_->out_features(object_); }
  [[nodiscard]] Index in_features() const noexcept { return table_->in_features(object_); }
  [[nodiscard]] std::size_t bytes() const noexcept { return table_->bytes(object_); }

  /// Y = X W^T + bias + U F; see FrozenWeight.
  void product(const MatrixView<const Scalar>& x, const Scalar* bias, const LowRankTerm<Scalar>& term,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    table_->product(object_, x, bias, term, y, workspace);
  }

  /// dX = dY W + V F; see FrozenWeight.
  void product_transposed(const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    table_->product_transposed(object_, dy, term, dx, workspace);
  }

  /// Whether the weight is a ReadableWeight.
  [[nodiscard]] bool readable() const noexcept { return table_->read != nullptr; }

  /// A block of W; see ReadableWeight. @throws StateError when the weight is not readable.
  void read(Index first_output, Index first_input, const MatrixView<Scalar>& out) const {
    if (!readable()) {
      throw StateError("WeightRef::read", "weight", "a readable weight (keep a copy of the values apart from this one)",
                       "one that multiplies only");
    }
    table_->read(object_, first_output, first_input, out);
  }

  /// W in place, if it is stored as plain numbers in either orientation; a view without data for other kinds.
  [[nodiscard]] MatrixView<const Scalar> dense_view() const noexcept {
    return table_->dense_view != nullptr ? table_->dense_view(object_) : MatrixView<const Scalar>{};
  }

  /// Whether the weight is a MergeableWeight, not const, and in writable memory.
  [[nodiscard]] bool mergeable() const noexcept { return table_->tile != nullptr && table_->writable(object_); }

  /// Whether the weight is a MergeableWeight, const or not.
  [[nodiscard]] bool has_tiles() const noexcept { return table_->tile_count != nullptr; }

  /// How the elements of its tiles are stored.
  [[nodiscard]] WeightStorage storage() const noexcept { return table_->storage; }

  /// 0 if the weight has no tiles.
  [[nodiscard]] Index tile_count() const noexcept { return has_tiles() ? table_->tile_count(object_) : 0; }

  /// Pre: Element is that of storage(): Scalar, or std::uint16_t. @throws StateError unless mergeable().
  template <class Element = Scalar>
  [[nodiscard]] WeightTile<Element> tile(Index t) const {
    require_mergeable("WeightRef::tile");
    WeightTile<Element> tile;
    table_->tile(object_, t, &tile);
    return tile;
  }

  /// A read-only tile. Pre: has_tiles(), and Element is that of storage().
  template <class Element = Scalar>
  [[nodiscard]] WeightTile<const Element> const_tile(Index t) const {
    WeightTile<const Element> tile;
    table_->const_tile(object_, t, &tile);
    return tile;
  }

  /// @throws StateError unless mergeable().
  void require_mergeable(std::string_view operation) const {
    if (mergeable()) return;
    const char* const got = !has_tiles()              ? "a kind of weight that is only multiplied with"
                            : table_->tile == nullptr ? "a const weight"
                                                      : "a view of const memory";
    throw StateError(operation, "weight",
                     "a weight that can be merged into (leave the adapter unmerged; or hold the weight in a "
                     "PackedWeight, as dequantized() gives, or a MatrixWeight; or requantize() it with the update)",
                     got);
  }

 private:
  struct Table {
    Index (*out_features)(const void*) noexcept;
    Index (*in_features)(const void*) noexcept;
    std::size_t (*bytes)(const void*) noexcept;
    void (*product)(const void*, const MatrixView<const Scalar>&, const Scalar*, const LowRankTerm<Scalar>&,
                    const MatrixView<Scalar>&, Workspace&);
    void (*product_transposed)(const void*, const MatrixView<const Scalar>&, const LowRankTerm<Scalar>&,
                               const MatrixView<Scalar>&, Workspace&);
    void (*read)(const void*, Index, Index, const MatrixView<Scalar>&) = nullptr;
    MatrixView<const Scalar> (*dense_view)(const void*) noexcept = nullptr;
    bool (*writable)(const void*) noexcept = nullptr;
    Index (*tile_count)(const void*) noexcept = nullptr;
    WeightStorage storage = WeightStorage::scalars;
    // These write a WeightTile, const or not, of the element of `storage`.
    void (*const_tile)(const void*, Index, void*) = nullptr;
    void (*tile)(void*, Index, void*) = nullptr;
  };

  template <class W>
  static const W& as(const void* object) noexcept {
    return *static_cast<const W*>(object);
  }

  template <class W, bool is_mutable>
  static constexpr Table make_table() noexcept {
    Table table{
        .out_features = [](const void* w) noexcept { return as<W>(w).out_features(); },
        .in_features = [](const void* w) noexcept { return as<W>(w).in_features(); },
        .bytes = [](const void* w) noexcept { return as<W>(w).bytes(); },
        .product = [](const void* w, const MatrixView<const Scalar>& x, const Scalar* bias,
                      const LowRankTerm<Scalar>& term, const MatrixView<Scalar>& y,
                      Workspace& workspace) { as<W>(w).product(x, bias, term, y, workspace); },
        .product_transposed = [](const void* w, const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                                 const MatrixView<Scalar>& dx,
                                 Workspace& workspace) { as<W>(w).product_transposed(dy, term, dx, workspace); }};
    if constexpr (ReadableWeight<W>) {
      table.read = [](const void* w, Index first_output, Index first_input, const MatrixView<Scalar>& out) {
        as<W>(w).read(first_output, first_input, out);
      };
    }
    if constexpr (requires(const W& w) {
                    { w.view() } -> std::same_as<MatrixView<const Scalar>>;
                  }) {
      table.dense_view = [](const void* w) noexcept { return as<W>(w).view(); };
    }
    if constexpr (MergeableWeight<W>) {
      table.writable = [](const void* w) noexcept { return as<W>(w).writable(); };
      table.tile_count = [](const void* w) noexcept { return as<W>(w).tile_count(); };
      using Element = StoredElement<W>;
      table.storage = storage_of<W>;
      table.const_tile = [](const void* w, Index t, void* out) {
        *static_cast<WeightTile<const Element>*>(out) = as<W>(w).tile(t);
      };
      if constexpr (is_mutable) {
        table.tile = [](void* w, Index t, void* out) {
          *static_cast<WeightTile<Element>*>(out) = static_cast<W*>(w)->tile(t);
        };
      }
    }
    return table;
  }

  template <class W, bool is_mutable>
  static constexpr Table table_of = make_table<W, is_mutable>();

  void* object_ = nullptr;
  const Table* table_ = nullptr;
};

/// Calls body(i, row) with every row of W in turn, in_features scalars that are valid during the call. Rows are read in
/// groups, as weights that are packed or decoded in panels read single rows slowly.
/// @throws StateError when the weight cannot be read; std::bad_alloc
template <RealScalar Scalar, class Body>
void for_each_row(const WeightRef<Scalar>& weight, const Body& body) {
  constexpr Index group = 48;
  const Index inputs = weight.in_features();
  std::vector<Scalar> rows(static_cast<std::size_t>(std::min(group, weight.out_features()) * inputs));
  for (Index first = 0; first < weight.out_features(); first += group) {
    const Index count = std::min(group, weight.out_features() - first);
    weight.read(first, 0, MatrixView<Scalar>{rows.data(), count, inputs, inputs, 1});
    for (Index i = 0; i < count; ++i) body(first + i, static_cast<const Scalar*>(rows.data() + i * inputs));
  }
}

}  // namespace lora
