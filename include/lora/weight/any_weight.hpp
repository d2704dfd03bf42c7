// SPDX-License-Identifier: MIT
// A frozen weight whose kind is chosen at run time.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include "lora/core/view.hpp"
#include "lora/core/workspace.hpp"
#include "lora/weight/frozen_weight.hpp"
#include "lora/weight/packed.hpp"
#include "lora/weight/weight_ref.hpp"

namespace lora {

/// Owns a weight of any kind: layers over it are of one type, whatever the formats of a model's tensors.
/// `LoraLinear<float, AnyWeight<float>>` made from a matrix packs it.
///
/// Layers read it and merge into it if they can with the weight it holds; read() throws StateError otherwise.
/// Move-only; a moved-from weight is empty (0 x 0).
template <RealScalar Scalar_>
class AnyWeight {
 public:
  using Scalar = Scalar_;

  AnyWeight() = default;

  /// Holds `weight`. @throws std::bad_alloc
  template <class W>
    requires(!std::same_as<W, AnyWeight>)
  &&FrozenWeight<W> && (std::same_as<typename W::Scalar, Scalar>)
      // NOLINTNEXTLINE(google-explicit-constructor): any weight is one of these.
      AnyWeight(W weight)
      : held_(std::make_unique<Held<W>>(std::move(weight))) {}

  /// Packs a copy of `weight` (out_features x in_features, any strides). @throws std::bad_alloc
  explicit AnyWeight(const MatrixView<const Scalar>& weight) : AnyWeight(PackedWeight<Scalar>(weight)) {}

  [[nodiscard]] Index out_features() const noexcept { return held().out_features(); }
  [[nodiscard]] Index in_features() const noexcept { return held().in_features(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return held().bytes(); }

  void product(const MatrixView<const Scalar>& x, const Scalar* bias, const LowRankTerm<Scalar>& term,
               const MatrixView<Scalar>& y, Workspace& workspace) const {
    held().product(x, bias, term, y, workspace);
  }
  void product_transposed(const MatrixView<const Scalar>& dy, const LowRankTerm<Scalar>& term,
                          const MatrixView<Scalar>& dx, Workspace& workspace) const {
    held().product_transposed(dy, term, dx, workspace);
  }
  void read(Index first_output, Index first_input, const MatrixView<Scalar>& out) const {
    held().read(first_output, first_input, out);
  }

  /// What a WeightRef to this weight refers to.
  [[nodiscard]] WeightRef<Scalar> held() noexcept { return held_ ? held_->ref() : nothing(); }
  /// The same, which may only be read.
  [[nodiscard]] WeightRef<Scalar> held() const noexcept {
    return held_ ? static_cast<const Holder&>(*held_).const_ref() : nothing();
  }

 private:
  struct Holder {
    Holder() = default;
    Holder(const Holder&) = delete;
    Holder& operator=(const Holder&) = delete;
    virtual ~Holder() = default;
    [[nodiscard]] virtual WeightRef<Scalar> ref() noexcept = 0;
    [[nodiscard]] virtual WeightRef<Scalar> const_ref() const noexcept = 0;
  };
  template <class W>
  struct Held final : Holder {
    explicit Held(W&& held) : weight(std::move(held)) {}
    [[nodiscard]] WeightRef<Scalar> ref() noexcept override { return weight; }
    [[nodiscard]] WeightRef<Scalar> const_ref() const noexcept override { return weight; }
    W weight;
  };

  [[nodiscard]] static WeightRef<Scalar> nothing() noexcept {
    static const PackedWeight<Scalar> empty;
    return empty;
  }

  std::unique_ptr<Holder> held_;
};

}  // namespace lora
