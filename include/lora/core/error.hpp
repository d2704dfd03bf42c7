// SPDX-License-Identifier: MIT
// Typed errors. Every message names the operation, the argument, what was expected and what was given.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

/// Marks a function off every fast path: never inlined, and compiled for size. This saves compile time where messages
/// are assembled.
#if defined(__GNUC__) || defined(__clang__)
#define LORA_COLD __attribute__((cold, noinline))
#else
#define LORA_COLD
#endif

namespace lora {

namespace detail {

/// The parts of a message one after another. Compiles faster than append and + of std::string, which instantiate
/// templates for every literal.
[[nodiscard]] LORA_COLD inline std::string joined(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (const std::string_view part : parts) text.append(part.data(), part.size());
  return text;
}

}  // namespace detail

/// Root of every exception this library throws, other than std::bad_alloc.
class Error : public std::runtime_error {
 public:
  /// what() is "operation: argument: expected ..., got ...".
  LORA_COLD Error(std::string_view operation, std::string_view argument, std::string_view expected,
                  std::string_view got)
      : std::runtime_error(detail::joined({operation, ": ", argument, ": expected ", expected, ", got ", got})) {}
};

/// An array's shape does not fit the layer or the other arguments.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// An option is outside its range, or two options contradict each other.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// The call is not allowed in the object's present state (merged, never run forward, ...).
class StateError : public Error {
 public:
  using Error::Error;
};

/// The contents of a file break the rules of its format.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused to open, read, write or rename a file.
class IoError : public Error {
 public:
  using Error::Error;
};

}  // namespace lora
