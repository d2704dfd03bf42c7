// SPDX-License-Identifier: MIT
// Who has an object that one owner at most may have.
#pragma once

#include <memory>

namespace lora {

/// Names the owner of the object it is a member of. The owner keeps a token alive; when the token is gone, the object
/// is free again. A copy of the object has no owner, and neither has one that it was moved to: a claim stays at its
/// place.
class Claim {
 public:
  Claim() = default;
  Claim(const Claim& /*other*/) noexcept {}
  // NOLINTNEXTLINE(bugprone-unhandled-self-assignment): assigns nothing.
  Claim& operator=(const Claim& /*other*/) noexcept { return *this; }
  ~Claim() = default;

  /// Whether nobody but `owner` has the object.
  [[nodiscard]] bool free_for(const std::shared_ptr<const void>& owner) const noexcept {
    const std::shared_ptr<const void> former = owner_.lock();
    return former == nullptr || former == owner;
  }
  /// Whether `owner` has the object.
  [[nodiscard]] bool held_by(const std::shared_ptr<const void>& owner) const noexcept {
    return owner != nullptr && owner_.lock() == owner;
  }
  void take(const std::shared_ptr<const void>& owner) noexcept { owner_ = owner; }

 private:
  std::weak_ptr<const void> owner_;
};

}  // namespace lora
