// SPDX-License-Identifier: MIT
// What the tests of build/bin/lora share: running it, and small checkpoints and adapters.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "io/files.hpp"
#include "lora/io.hpp"
#include "support/program.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing {

inline ProgramRun tool(const std::vector<std::string>& arguments) { return run_program(LORA_TOOL_PROGRAM, arguments); }

[[nodiscard]] inline std::string golden(const std::string& name) { return std::string(LORA_GOLDEN_DIR) + "/" + name; }

/// Every value of every tensor of `ours` against that of the same name, after a prefix, in `theirs`.
inline void expect_close(const SafetensorsFile& ours, const SafetensorsFile& theirs, const std::string& prefix,
                         double bound) {
  for (const auto name : ours.names()) {
    const auto a = ours.tensor(name);
    const auto b = theirs.tensor(prefix + std::string(name));
    std::vector<double> x(static_cast<std::size_t>(a.size()));
    std::vector<double> y(x.size());
    a.copy_to(std::span<double>(x));
    b.copy_to(std::span<double>(y));
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], y[i], bound) << name << " " << i;
  }
}

/// All files below a folder, hidden ones too, by their path in it.
[[nodiscard]] inline std::map<std::string, std::vector<std::byte>> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::vector<std::byte>> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files[entry.path().lexically_relative(folder)] = read_file(entry.path());
  }
  return files;
}

/// Tensors by name, for a safetensors file.
using Tensors = std::map<std::string, std::pair<std::vector<Index>, Matrix<float>>>;

class ToolTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path(const std::string& name = {}) const { return (folder.path() / name).string(); }

  void write_tensors(const std::string& name, const Tensors& tensors, Dtype dtype = Dtype::F32) const {
    SafetensorsWriter writer;
    for (const auto& [tensor, values] : tensors) writer.add(tensor, values.second, values.first, dtype);
    writer.write(path(name));
  }
  void write_adapter(const std::string& name, const LoraModelConfig& config,
                     const AdapterWeights<float>& weights) const {
    write_peft_directory(path(name), config, weights, {.overwrite = true});
  }

  [[nodiscard]] static ModuleWeights<float> module(Index out, Index in, std::uint64_t seed, double scaling = 2) {
    ModuleWeights<float> result;
    result.A = random_matrix<float>(2, in, seed);
    result.B = random_matrix<float>(out, 2, seed + 1);
    result.scaling = scaling;
    return result;
  }
  [[nodiscard]] static Matrix<float> delta(const ModuleWeights<float>& module) {
    return static_cast<float>(module.scaling) * (module.B * module.A);
  }
  [[nodiscard]] static std::pair<std::vector<Index>, Matrix<float>> values(Index rows, Index cols, std::uint64_t seed) {
    return {{rows, cols}, random_matrix<float>(rows, cols, seed)};
  }
  [[nodiscard]] static std::pair<std::vector<Index>, Matrix<float>> row(Index size, std::uint64_t seed) {
    return {{size}, random_matrix<float>(1, size, seed)};
  }
  [[nodiscard]] static SavedTensor<float> saved(const std::pair<std::vector<Index>, Matrix<float>>& tensor) {
    const auto& matrix = tensor.second;
    return {tensor.first, std::vector<float>(matrix.data(), matrix.data() + matrix.size())};
  }
  [[nodiscard]] Matrix<float> tensor(const std::string& file, const std::string& name) const {
    return SafetensorsFile::open(path(file)).matrix<float>(name);
  }
  [[nodiscard]] std::vector<std::string> leftovers() const {
    std::vector<std::string> found;
    for (const auto& name : folder.entries()) {
      if (name.starts_with(".lora-")) found.push_back(name);
    }
    return found;
  }

  static void expect_near(const Matrix<float>& a, const Matrix<float>& b, double bound = 1e-5) {
    ASSERT_EQ(a.rows(), b.rows());
    ASSERT_EQ(a.cols(), b.cols());
    EXPECT_LE((a - b).cwiseAbs().maxCoeff(), bound);
  }
  /// Runs the tool, which must refuse with exit code 1 and this text.
  static void expect_refused(const std::vector<std::string>& arguments, const std::string& text) {
    const auto run = tool(arguments);
    EXPECT_EQ(run.exit_code, 1) << run.output;
    EXPECT_NE(run.output.find(text), std::string::npos) << run.output;
  }
  static void expect_done(const std::vector<std::string>& arguments) {
    const auto run = tool(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.output;
  }

  TemporaryFolder folder;
};

}  // namespace lora::testing
