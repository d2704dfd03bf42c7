// SPDX-License-Identifier: MIT
// Every kind of frozen weight in every orientation, for laws that are written once.
#pragma once

#include <cstdint>
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "lora/weight/dense.hpp"
#include "lora/weight/matrix_weight.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/quantized.hpp"
#include "lora/weight/weight_ref.hpp"
#include "support/half_numbers.hpp"

namespace lora::testing {

/// A weight of one kind, with the memory it may view.
template <class Scalar>
class HeldWeight {
 public:
  explicit HeldWeight(std::string name) : name_(std::move(name)) {}
  HeldWeight(const HeldWeight&) = delete;
  HeldWeight& operator=(const HeldWeight&) = delete;
  virtual ~HeldWeight() = default;
  [[nodiscard]] virtual WeightRef<Scalar> weight() = 0;
  [[nodiscard]] virtual WeightRef<Scalar> const_weight() const = 0;
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] WeightStorage storage() const { return const_weight().storage(); }
  [[nodiscard]] std::size_t element_bytes() const {
    return storage() == WeightStorage::scalars ? sizeof(Scalar) : sizeof(std::uint16_t);
  }
  /// What this kind of weight holds of `w`.
  [[nodiscard]] Matrix<Scalar> stored(Matrix<Scalar> w) const {
    if (storage() == WeightStorage::scalars) return w;
    for (Index i = 0; i < w.size(); ++i) {
      w.data()[i] = static_cast<Scalar>(rounded_to_half(storage(), static_cast<long double>(w.data()[i])));
    }
    return w;
  }
  /// What it holds after merging into an element. No factor is a null pointer.
  [[nodiscard]] Scalar merged(Scalar w, Scalar delta, const Scalar* factor) const {
    if constexpr (std::is_same_v<Scalar, float>) {
      const float scale = factor == nullptr ? 1.0F : *factor;
      if (storage() != WeightStorage::scalars) return merged_half(storage(), w, delta, scale);
    }
    const Scalar sum = w + delta;
    return factor == nullptr ? sum : sum * *factor;
  }
  [[nodiscard]] Matrix<Scalar> values() const {
    const WeightRef<Scalar> ref = const_weight();
    Matrix<Scalar> out(ref.out_features(), ref.in_features());
    read_back(ref, view_of(out));
    return out;
  }

 private:
  std::string name_;
};

template <class Weight, class Memory>
class HeldKind final : public HeldWeight<typename Weight::Scalar> {
 public:
  using Scalar = typename Weight::Scalar;
  template <class Make>
  HeldKind(std::string name, Memory memory, const Make& make)
      : HeldWeight<Scalar>(std::move(name)), memory_(std::move(memory)), weight_(make(memory_)) {}
  [[nodiscard]] WeightRef<Scalar> weight() override { return weight_; }
  [[nodiscard]] WeightRef<Scalar> const_weight() const override { return weight_; }

 private:
  Memory memory_;
  Weight weight_;
};

/// `w` rounded to a format of 16 bits, infinities included.
template <class Format>
[[nodiscard]] QuantizedWeight<Format> half_weight(const Matrix<float>& w) {
  std::vector<std::uint8_t> blocks(2 * static_cast<std::size_t>(w.size()));
  formats::encode_row<Format>(w.data(), w.size(), blocks.data());
  return QuantizedWeight<Format>::from_blocks(blocks, w.rows(), w.cols());
}

/// `w` (at least 1 x 1) held by every kind of weight.
template <class Scalar>
[[nodiscard]] std::vector<std::unique_ptr<HeldWeight<Scalar>>> every_kind(const Matrix<Scalar>& w) {
  using Memory = Matrix<Scalar>;
  using Packed = PackedWeight<Scalar>;
  using Dense = DenseWeight<Scalar>;
  using Owned = MatrixWeight<Scalar>;
  const Index d = w.rows();
  const Index k = w.cols();
  Memory wide = Memory::Constant(d, k + 5, Scalar(7));
  wide.middleCols(2, k) = w;
  Memory tall = Memory::Constant(k, d + 3, Scalar(7));
  tall.leftCols(d) = w.transpose();
  const Memory turned = w.transpose();
  std::vector<std::unique_ptr<HeldWeight<Scalar>>> kinds;
  const auto add = [&]<class Weight>(std::in_place_type_t<Weight>, const char* name, const Memory& memory,
                                     const auto& make) {
    kinds.push_back(std::make_unique<HeldKind<Weight, Memory>>(name, memory, make));
  };
  add(std::in_place_type<Packed>, "packed", w, [](Memory& m) { return Packed(view_of(m)); });
  add(std::in_place_type<Dense>, "dense by rows", w, [](Memory& m) { return Dense(view_of(m)); });
  add(std::in_place_type<Dense>, "dense by columns", turned, [](Memory& m) { return Dense(view_of(m).transpose()); });
  add(std::in_place_type<Dense>, "dense block", wide, [k](Memory& m) { return Dense(view_of(m).middle_cols(2, k)); });
  add(std::in_place_type<Dense>, "dense block by columns", tall,
      [d](Memory& m) { return Dense(view_of(m).middle_cols(0, d).transpose()); });
  add(std::in_place_type<Owned>, "matrix", w, [](Memory& m) { return Owned(m); });
  add(std::in_place_type<Owned>, "matrix, transposed", turned, [](Memory& m) { return Owned(m, true); });
  if constexpr (std::is_same_v<Scalar, float>) {
    using Half = QuantizedWeight<formats::BF16>;
    add(std::in_place_type<Half>, "bfloat16", w, [](Memory& m) { return half_weight<formats::BF16>(m); });
  }
  return kinds;
}

/// body(held) for `w` held by every kind of weight.
template <class Scalar, class Body>
void for_each_kind(const Matrix<Scalar>& w, const Body& body) {
  for (const auto& held : every_kind(w)) {
    SCOPED_TRACE(held->name());
    body(*held);
  }
}

}  // namespace lora::testing
