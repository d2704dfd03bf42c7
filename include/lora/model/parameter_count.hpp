// SPDX-License-Identifier: MIT
// How many scalars a model has and how many of them train.
#pragma once

#include <cstdio>
#include <string>

#include "lora/core/types.hpp"

namespace lora {

/// Numbers of scalars.
struct ParameterCount {
  Index trainable = 0;  ///< scalars that train
  Index all = 0;        ///< scalars of the model, including its adapters

  /// Share of trainable scalars, in percent; 0 for an empty model.
  [[nodiscard]] double percent() const noexcept {
    return all == 0 ? 0.0 : 100.0 * static_cast<double>(trainable) / static_cast<double>(all);
  }
  /// In the form of PEFT's print_trainable_parameters: "trainable params: 576 || all params: 3,605 || trainable%:
  /// 15.9778".
  [[nodiscard]] std::string text() const {
    std::string result = "trainable params: ";
    result += grouped(trainable);
    result += " || all params: ";
    result += grouped(all);
    char share[32];
    std::snprintf(share, sizeof(share), " || trainable%%: %.4f", percent());
    return result += share;
  }

 private:
  static std::string grouped(Index number) {
    const std::string digits = std::to_string(number);
    std::string result;
    for (std::size_t i = 0; i < digits.size(); ++i) {
      if (i > 0 && (digits.size() - i) % 3 == 0) result += ',';
      result += digits[i];
    }
    return result;
  }
};

}  // namespace lora
