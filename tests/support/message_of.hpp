// SPDX-License-Identifier: MIT
// The text of the error that a call raises.
#pragma once

#include <gtest/gtest.h>
#include <string>

namespace lora::testing {

/// The message of the `Raised` that body() throws; a failure of the test if it throws none.
template <class Raised, class Body>
[[nodiscard]] std::string message_of(const Body& body) {
  try {
    body();
  } catch (const Raised& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error of this type";
  return {};
}

}  // namespace lora::testing
