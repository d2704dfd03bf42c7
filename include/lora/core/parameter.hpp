// A trainable tensor with its gradient and its optimiser's state, and the handle that optimisers work on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"

namespace lora {

/// What a parameter is for. Decides who trains and at which rate; names decide nothing.
enum class ParameterRole : std::uint8_t { lora_A, lora_B, lora_bias, magnitude, bias, weight };

/// What an optimiser remembers of one parameter. It lives beside the parameter, so it follows it when the layer is
/// copied or moved, and exists for nothing that does not train.
template <class Scalar>
struct Moments {
  std::string_view owner;      ///< name of the optimiser that filled it; empty before the first step
  std::int64_t steps = 0;      ///< updates applied to this parameter
  std::vector<Scalar> first;   ///< momentum, or first moment
  std::vector<Scalar> second;  ///< second moment

  /// Bytes of state held for this parameter.
  [[nodiscard]] std::size_t bytes() const noexcept { return (first.size() + second.size()) * sizeof(Scalar); }
};

/// Handle on one trainable tensor. Valid while the object that gave it out stays where it is.
/// Reading and writing through handles of different parameters is safe from different threads.
template <class Scalar>
class Parameter {
 public:
  using Map = Eigen::Map<Matrix<Scalar>>;

  Parameter() = default;
  /// `gradient` has `rows * cols` scalars, as `value`. `locked`, where given, is true while the value must not change.
  Parameter(std::string name, ParameterRole role, Scalar* value, Scalar* gradient, Index rows, Index cols,
            Moments<Scalar>& moments, const bool* locked = nullptr)
      : name_(std::move(name)),
        role_(role),
        value_(value),
        gradient_(gradient),
        rows_(rows),
        cols_(cols),
        moments_(&moments),
        locked_(locked) {}

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  void rename(std::string name) { name_ = std::move(name); }
  [[nodiscard]] ParameterRole role() const noexcept { return role_; }
  [[nodiscard]] Index rows() const noexcept { return rows_; }
  [[nodiscard]] Index cols() const noexcept { return cols_; }
  [[nodiscard]] Index size() const noexcept { return rows_ * cols_; }

  /// The value, to read and write. @throws StateError while the layer is merged.
  [[nodiscard]] Map value() const {
    require_unlocked("Parameter::value");
    return {value_, rows_, cols_};
  }
  [[nodiscard]] Map gradient() const noexcept { return {gradient_, rows_, cols_}; }
  [[nodiscard]] Moments<Scalar>& moments() const noexcept { return *moments_; }

  /// @throws StateError while the value must not change.
  void require_unlocked(std::string_view operation) const {
    if (locked_ != nullptr && *locked_) {
      throw StateError(operation, name_, "an unmerged layer (call train() or unmerge() first)", "a merged one");
    }
  }

  /// Factor on the optimiser's learning rate for this parameter (LoRA+).
  double learning_rate_scale = 1.0;

 private:
  std::string name_;
  ParameterRole role_ = ParameterRole::weight;
  Scalar* value_ = nullptr;
  Scalar* gradient_ = nullptr;
  Index rows_ = 0;
  Index cols_ = 0;
  Moments<Scalar>* moments_ = nullptr;
  const bool* locked_ = nullptr;
};

/// The parameters of one layer, without allocation. Converts to std::span<const Parameter<Scalar>>.
template <class Scalar>
class ParameterList {
 public:
  static constexpr std::size_t capacity = 6;

  void push_back(Parameter<Scalar> parameter) { items_.at(size_++) = std::move(parameter); }
  /// Adds a handle on `value`, with the next of `states`, unless `gradient` is empty: then the value does not train.
  template <class Value, class Gradient, std::size_t count>
  void add_trained(const char* name, ParameterRole role, Value& value, Gradient& gradient,
                   std::array<Moments<Scalar>, count>& states, const bool* locked) {
    if (gradient.size() == 0) return;
    push_back({name, role, value.data(), gradient.data(), value.rows(), value.cols(), states.at(size_), locked});
  }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] Parameter<Scalar>* data() noexcept { return items_.data(); }
  [[nodiscard]] const Parameter<Scalar>* data() const noexcept { return items_.data(); }
  [[nodiscard]] Parameter<Scalar>* begin() noexcept { return data(); }
  [[nodiscard]] Parameter<Scalar>* end() noexcept { return data() + size_; }
  [[nodiscard]] const Parameter<Scalar>* begin() const noexcept { return data(); }
  [[nodiscard]] const Parameter<Scalar>* end() const noexcept { return data() + size_; }
  [[nodiscard]] const Parameter<Scalar>& operator[](std::size_t i) const noexcept { return items_[i]; }
  [[nodiscard]] Parameter<Scalar>& operator[](std::size_t i) noexcept { return items_[i]; }

 private:
  std::array<Parameter<Scalar>, capacity> items_;
  std::size_t size_ = 0;
};

/// A trainable tensor that owns its value. Gradient memory comes with the first use of the gradient.
template <class Scalar>
struct Trainable {
  Matrix<Scalar> value;
  Matrix<Scalar> gradient;
  Moments<Scalar> moments;

  /// Gives the gradient the value's shape, filled with zeros, unless it has it already.
  void ensure_gradient() {
    if (gradient.rows() != value.rows() || gradient.cols() != value.cols()) {
      gradient = Matrix<Scalar>::Zero(value.rows(), value.cols());
    }
  }

  /// A handle for an optimiser. Valid while this object stays where it is.
  [[nodiscard]] Parameter<Scalar> parameter(std::string name, ParameterRole role, const bool* locked = nullptr) {
    ensure_gradient();
    return {std::move(name), role, value.data(), gradient.data(), value.rows(), value.cols(), moments, locked};
  }
};

}  // namespace lora
