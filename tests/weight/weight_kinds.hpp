// Every kind of frozen weight in every orientation, for laws that are written once.
#pragma once

#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lora/weight/dense.hpp"
#include "lora/weight/matrix_weight.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/weight_ref.hpp"

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
