// SPDX-License-Identifier: MIT
// The kinds of reference cases. Each check runs a case through the public API and compares every tensor it has.
#pragma once

#include <filesystem>

#include "conformance/comparison.hpp"
#include "conformance/golden_case.hpp"

namespace lora::conformance {

void check_linear(GoldenCase& golden, Comparison& comparison);
void check_convolution(GoldenCase& golden, Comparison& comparison);  ///< conv1d, conv2d, conv3d
void check_embedding(GoldenCase& golden, Comparison& comparison);
void check_merged_linear(GoldenCase& golden, Comparison& comparison);
void check_initialization(GoldenCase& golden, Comparison& comparison);
void check_combination(GoldenCase& golden, Comparison& comparison);
void check_training(GoldenCase& golden, Comparison& comparison);
void check_number_format(GoldenCase& golden, Comparison& comparison);

/// A directory written by PEFT's save_pretrained, its base model, and PEFT's results for both.
void check_adapter(const std::filesystem::path& directory, Comparison& comparison);

/// A file and the verdict of the reference implementation of its format.
void check_malformed(const std::filesystem::path& file, const std::string& verdict, Comparison& comparison);

}  // namespace lora::conformance
