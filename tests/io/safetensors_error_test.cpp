// SPDX-License-Identifier: MIT
#include "lora/io/safetensors_error.hpp"

#include <gtest/gtest.h>
#include <set>
#include <string>
#include <type_traits>

namespace lora::safetensors_error_test {
namespace {

static_assert(std::is_base_of_v<FormatError, SafetensorsError>);

TEST(SafetensorsError, EveryKindHasItsOwnName) {
  std::set<std::string_view> names;
  constexpr auto last = static_cast<int>(SafetensorsErrorKind::unexpected_shape);
  for (int kind = 0; kind <= last; ++kind) {
    const std::string_view name = name_of(static_cast<SafetensorsErrorKind>(kind));
    EXPECT_FALSE(name.empty());
    EXPECT_TRUE(names.insert(name).second) << name;
  }
  EXPECT_EQ(name_of(SafetensorsErrorKind::header_too_small), "HeaderTooSmall");
  EXPECT_EQ(name_of(SafetensorsErrorKind::metadata_incomplete_buffer), "MetadataIncompleteBuffer");
  EXPECT_EQ(name_of(SafetensorsErrorKind::unexpected_shape), "UnexpectedShape");
}

TEST(SafetensorsError, SaysKindArgumentExpectedAndGot) {
  const SafetensorsError error(SafetensorsErrorKind::invalid_offset, "file: tensor \"a\"", "this", "that");
  EXPECT_EQ(error.kind(), SafetensorsErrorKind::invalid_offset);
  EXPECT_EQ(std::string(error.what()), "safetensors InvalidOffset: file: tensor \"a\": expected this, got that");
}

}  // namespace
}  // namespace lora::safetensors_error_test
