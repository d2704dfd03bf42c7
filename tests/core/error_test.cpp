// SPDX-License-Identifier: MIT
#include "lora/core/error.hpp"

#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace {

template <class Thrown>
class TypedError : public ::testing::Test {};

using ErrorTypes = ::testing::Types<lora::Error, lora::ShapeError, lora::ConfigError, lora::StateError,
                                    lora::FormatError, lora::IoError>;
TYPED_TEST_SUITE(TypedError, ErrorTypes);

TYPED_TEST(TypedError, SaysOperationArgumentExpectedAndGot) {
  const TypeParam error("LoraLinear::forward", "x", "N x 4", "2 x 5");
  EXPECT_STREQ(error.what(), "LoraLinear::forward: x: expected N x 4, got 2 x 5");
}

TYPED_TEST(TypedError, IsCaughtAsTheRootAndAsTheStandardOne) {
  EXPECT_THROW(throw TypeParam("a", "b", "c", "d"), lora::Error);
  EXPECT_THROW(throw TypeParam("a", "b", "c", "d"), std::runtime_error);
}

// An exception that throws when copied ends the program.
TYPED_TEST(TypedError, CopiesWithoutThrowing) {
  EXPECT_TRUE(std::is_nothrow_copy_constructible_v<TypeParam>);
  EXPECT_TRUE(std::is_nothrow_destructible_v<TypeParam>);
}

TEST(Error, TypesAreDistinct) {
  EXPECT_FALSE((std::is_base_of_v<lora::ShapeError, lora::StateError>));
  EXPECT_FALSE((std::is_base_of_v<lora::ConfigError, lora::ShapeError>));
  EXPECT_FALSE((std::is_base_of_v<lora::FormatError, lora::IoError>));
  EXPECT_FALSE((std::is_base_of_v<lora::IoError, lora::FormatError>));
}

TEST(Error, OutlivesTheTextItWasMadeOf) {
  std::string argument = "an argument that is too long for the small buffer of a string";
  const lora::ShapeError error("operation", argument, "this", "that");
  const std::string before = error.what();
  argument.assign(argument.size(), '?');
  EXPECT_EQ(error.what(), before);
}

}  // namespace
