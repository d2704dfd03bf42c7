// SPDX-License-Identifier: MIT
// The fuzz targets as tests: every input in tests/fuzz/corpus, the findings among them, goes through its target. A
// target that breaks ends this program.
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#define LLVMFuzzerTestOneInput gguf_input
#include "fuzz/gguf_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput gguf_adapter_input
#include "fuzz/gguf_adapter_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput gguf_weight_input
#include "fuzz/gguf_weight_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput peft_adapter_input
#include "fuzz/peft_adapter_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput peft_config_input
#include "fuzz/peft_config_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput quantized_safetensors_input
#include "fuzz/quantized_safetensors_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput regular_expression_input
#include "fuzz/regular_expression_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput safetensors_input
#include "fuzz/safetensors_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput safetensors_index_input
#include "fuzz/safetensors_index_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput tokenizer_input
#include "fuzz/tokenizer_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput tool_input
#include "fuzz/tool_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace lora::fuzzing {
namespace {

namespace fs = std::filesystem;

const fs::path folder = fs::path(LORA_SOURCE_DIR) / "tests" / "fuzz";

struct Target {
  const char* name;
  int (*run)(const std::uint8_t* data, std::size_t size);
};

constexpr std::array<Target, 11> targets{{{"gguf", gguf_input},
                                          {"gguf_adapter", gguf_adapter_input},
                                          {"gguf_weight", gguf_weight_input},
                                          {"peft_adapter", peft_adapter_input},
                                          {"peft_config", peft_config_input},
                                          {"quantized_safetensors", quantized_safetensors_input},
                                          {"regular_expression", regular_expression_input},
                                          {"safetensors", safetensors_input},
                                          {"safetensors_index", safetensors_index_input},
                                          {"tokenizer", tokenizer_input},
                                          {"tool", tool_input}}};

std::vector<std::uint8_t> bytes_of(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

class Corpus : public ::testing::TestWithParam<Target> {};

TEST_P(Corpus, IsReplayed) {
  std::size_t inputs = 0;
  for (const auto& entry : fs::directory_iterator(folder / "corpus" / GetParam().name)) {
    SCOPED_TRACE(entry.path());
    const std::vector<std::uint8_t> input = bytes_of(entry.path());
    EXPECT_EQ(GetParam().run(input.data(), input.size()), 0);
    ++inputs;
  }
  EXPECT_GT(inputs, 0U);
}

INSTANTIATE_TEST_SUITE_P(Fuzz, Corpus, ::testing::ValuesIn(targets),
                         [](const auto& target) { return std::string(target.param.name); });

// Inputs made by hand are command lines that succeed: from them mutations reach what the commands do.
TEST(FuzzTargets, TheToolSucceedsWhereItsInputsWereMadeFor) {
  for (const char* name :
       {"inspect", "convert", "merge", "merge-into-shards", "quantize", "quantize-shards", "dequantize-four-bits"}) {
    SCOPED_TRACE(name);
    const tool_fuzz::Place place;
    const std::vector<std::uint8_t> bytes = bytes_of(folder / "corpus" / "tool" / name);
    FuzzInput input(bytes.data(), bytes.size());
    EXPECT_EQ(tool_fuzz::run_in(place.work(), tool_fuzz::command_line(input)), 0);
  }
}

TEST(FuzzTargets, AreAllReplayed) {
  std::set<std::string> sources;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with("_fuzz.cpp")) sources.insert(name);
  }
  std::set<std::string> replayed;
  for (const Target& target : targets) replayed.insert(std::string(target.name) + "_fuzz.cpp");
  EXPECT_EQ(replayed, sources);
}

}  // namespace
}  // namespace lora::fuzzing
