// SPDX-License-Identifier: MIT
// Prints the version of the headers that were found. Cheap to compile: for tests of what finds them.
#include <cstdio>
#include <lora/core/types.hpp>
#include <lora/core/version.hpp>

static_assert(LORA_VERSION == LORA_VERSION_MAJOR * 10000 + LORA_VERSION_MINOR * 100 + LORA_VERSION_PATCH);

int main() {
  const lora::Matrix<float> one = lora::Matrix<float>::Identity(1, 1);
  std::puts(one(0, 0) == 1 ? LORA_VERSION_STRING : "Eigen does not work");
}
