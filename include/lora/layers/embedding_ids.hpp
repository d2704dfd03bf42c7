// SPDX-License-Identifier: MIT
// How types that hold ids are read, and checks that ids and padding_idx are in range.
#pragma once

#include <concepts>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "lora/core/error.hpp"
#include "lora/core/view.hpp"
#include "lora/layers/rows.hpp"

namespace lora {

/// An integer type for ids: any except bool and character types.
template <class T>
concept IdInteger = std::integral<T> && !std::same_as<T, bool> && !std::same_as<T, char> && !std::same_as<T, wchar_t> &&
                    !std::same_as<T, char8_t> && !std::same_as<T, char16_t> && !std::same_as<T, char32_t>;

/// Ids in memory, numbered row by row: id (i, j) is number i * cols + j.
template <IdInteger Id>
struct IdView {
  MatrixView<const Id> ids;  ///< the ids in the caller's memory

  /// Number of ids.
  [[nodiscard]] Index size() const noexcept { return ids.rows * ids.cols; }
  /// Id number i as an index; meaningful once check_ids() has passed.
  [[nodiscard]] Index operator[](Index i) const noexcept {
    return static_cast<Index>(ids.cols == 1 ? ids(i, 0) : ids(i / ids.cols, i % ids.cols));
  }
};

namespace detail {

template <class Ids>
concept IdRange = !EigenDense<Ids> && requires(const Ids& ids) {
  std::size(ids);
  requires IdInteger<std::remove_cvref_t<decltype(*std::data(ids))>>;
};

template <class Ids>
concept IdMatrix = EigenDense<Ids> && IdInteger<typename Ids::Scalar>;

}  // namespace detail

/// What a layer accepts as ids: an Eigen vector or matrix of integers (a matrix row by row: batch x tokens), or a
/// contiguous range of integers (std::vector, std::array, std::span).
template <class Ids>
concept EmbeddingIds = detail::IdMatrix<Ids> || detail::IdRange<Ids>;

/// Calls body with an IdView of `ids`. Objects with storage are read in place; an Eigen expression is evaluated once.
template <EmbeddingIds Ids, class Body>
void with_ids(const Ids& ids, const Body& body) {
  if constexpr (detail::IdMatrix<Ids>) {
    using Id = typename Ids::Scalar;
    if constexpr ((Ids::Flags & Eigen::DirectAccessBit) != 0) {
      body(IdView<Id>{view_of(ids)});
    } else {
      const typename Ids::PlainObject evaluated = ids;
      body(IdView<Id>{view_of(evaluated)});
    }
  } else {
    using Id = std::remove_cvref_t<decltype(*std::data(ids))>;
    const auto count = static_cast<Index>(std::size(ids));
    body(IdView<Id>{MatrixView<const Id>{std::data(ids), count, 1, 1, 1}});
  }
}

/// @throws ShapeError naming the first id that is not in [0, num_embeddings), and its position.
template <IdInteger Id>
void check_ids(const Operation& operation, const IdView<Id>& view, Index num_embeddings) {
  const MatrixView<const Id>& ids = view.ids;
  for (Index i = 0; i < ids.rows; ++i) {
    for (Index j = 0; j < ids.cols; ++j) {
      const Id id = ids(i, j);
      if (std::cmp_greater_equal(id, 0) && std::cmp_less(id, num_embeddings)) continue;
      const std::string position = ids.rows > 1 && ids.cols > 1
                                       ? detail::joined({"ids(", std::to_string(i), ", ", std::to_string(j), ")"})
                                       : detail::joined({"ids[", std::to_string(ids.cols == 1 ? i : j), "]"});
      throw ShapeError(operation.text(), position,
                       detail::joined({"an id from 0 to ", std::to_string(num_embeddings - 1)}), std::to_string(id));
    }
  }
}

/// The row that `padding_idx` refers to, or -1 if there is none; a negative index counts from the end, as in torch.
/// @throws ConfigError when it is out of range.
[[nodiscard]] inline Index padding_index(std::string_view operation, std::optional<Index> padding_idx,
                                         Index num_embeddings) {
  if (!padding_idx.has_value()) return -1;
  if (*padding_idx < -num_embeddings || *padding_idx >= num_embeddings) {
    throw ConfigError(operation, "padding_idx",
                      detail::joined({"an id below ", std::to_string(num_embeddings), ", or -1 to ",
                                      std::to_string(-num_embeddings)}),
                      std::to_string(*padding_idx));
  }
  return *padding_idx < 0 ? *padding_idx + num_embeddings : *padding_idx;
}

}  // namespace lora
