// SPDX-License-Identifier: MIT
// Checks of the command line, with messages a person can use.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "lora/core/types.hpp"
#include "output.hpp"

namespace lora::tools {

/// A file or folder to read.
[[nodiscard]] inline CLI::Validator existing_path() {
  return {[](std::string& path) {
            return exists_to_read(path) ? std::string() : "expected a file or folder that exists, got \"" + path + "\"";
          },
          "PATH"};
}

/// A whole number of `least` or more.
[[nodiscard]] inline CLI::Validator at_least(std::int64_t least) {
  return {[least](std::string& text) {
            std::int64_t value = 0;
            const char* const end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            const bool good = parsed.ec == std::errc() && parsed.ptr == end && value >= least && value <= 1'000'000'000;
            return good ? std::string()
                        : "expected a whole number from " + std::to_string(least) + " to 1000000000, got \"" + text +
                              "\"";
          },
          "N"};
}

/// A number from `low` to `high`.
[[nodiscard]] inline CLI::Validator number_within(double low, double high, const std::string& expected) {
  return {[low, high, expected](std::string& text) {
            double value = 0;
            const char* const end = text.data() + text.size();
            const auto parsed = std::from_chars(text.data(), end, value);
            const bool good = parsed.ec == std::errc() && parsed.ptr == end && value >= low && value <= high;
            return good ? std::string() : "expected " + expected + ", got \"" + text + "\"";
          },
          "X"};
}

[[nodiscard]] inline CLI::Validator fraction() { return number_within(0.0, 1.0, "a number from 0 to 1"); }
[[nodiscard]] inline CLI::Validator finite_number() {
  return number_within(std::numeric_limits<double>::lowest(), std::numeric_limits<double>::max(), "a finite number");
}

}  // namespace lora::tools
