// SPDX-License-Identifier: MIT
// Which files build/bin/lora takes for an adapter, and what it makes of them.
#include <cstddef>
#include <filesystem>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/gguf_bytes.hpp"
#include "tools/tool.hpp"

namespace lora::adapter_file_test {
namespace {

using testing::tool;

class AdapterFileOfTool : public testing::ToolTest {};

// It merged as "0 modules" with exit code 0.
TEST_F(AdapterFileOfTool, AGgufAdapterWithoutAnyModuleIsRefused) {
  const auto bytes = testing::adapter_header(0).bytes();
  testing::write_file(path("empty.gguf"), {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  write_tensors("base.safetensors", {{"a.weight", values(6, 4, 2)}});
  for (const auto& arguments :
       {std::vector<std::string>{"merge", path("base.safetensors"), path("empty.gguf"), path("out.safetensors")},
        {"convert", path("empty.gguf"), path("out")},
        {"inspect", path("empty.gguf")}}) {
    expect_refused(arguments, "expected a module with factors");
  }
}

TEST_F(AdapterFileOfTool, APairWithoutElementsIsRefusedForThat) {
  write_tensors("pairs.safetensors", {{"a.lora_A.weight", {{0, 4}, Matrix<float>(0, 4)}},
                                      {"a.lora_B.weight", {{6, 0}, Matrix<float>(6, 0)}}});
  expect_refused({"inspect", path("pairs.safetensors")}, "expected factors with elements, got [0, 4] and [6, 0]");
}

// They change the update, and were left out with a warning.
TEST_F(AdapterFileOfTool, PartsOfAPairThatAreNotReadAreRefused) {
  for (const std::string part : {"lora_mid.weight", "dora_scale", "lora_magnitude_vector", "lora_B.bias"}) {
    write_tensors("pairs.safetensors", {{"a.lora_down.weight", values(2, 4, 1)},
                                        {"a.lora_up.weight", values(6, 2, 2)},
                                        {"a." + part, values(2, 2, 3)}});
    expect_refused({"inspect", path("pairs.safetensors")}, "\"a." + part + "\"");
  }
}

TEST_F(AdapterFileOfTool, AnAlphaMayBeAnInteger) {
  for (const Dtype dtype : {Dtype::I64, Dtype::I32}) {
    SafetensorsWriter writer;
    const auto a = module(6, 4, 1);
    writer.add("a.lora_down.weight", a.A);
    writer.add("a.lora_up.weight", a.B);
    std::vector<std::byte> four(bits_of(dtype) / 8);
    four.front() = std::byte{4};
    writer.add("a.alpha", dtype, {}, std::span<const std::byte>(four));
    writer.write(path("pairs.safetensors"));
    const auto report = nlohmann::json::parse(tool({"inspect", path("pairs.safetensors"), "--json"}).output);
    EXPECT_EQ(report.at("modules").at(0).at("scaling"), 2);
  }
}

// Alone it was read as pairs of scaling 1 under names with PEFT's prefix, which convert then wrote twice.
TEST_F(AdapterFileOfTool, TheTensorsOfPeftAreReadWithTheConfigurationBesideThem) {
  AdapterWeights<float> weights;
  weights.modules.emplace("a", module(6, 4, 1, 3));
  write_adapter("adapter", {.lora = {.rank = 2, .alpha = 6}, .target_modules = {"a"}}, weights);
  expect_done({"convert", path("adapter/adapter_model.safetensors"), path("copy")});
  const auto copy = read_peft_directory<float>(path("copy"));
  EXPECT_EQ(copy.config.lora.alpha, 6);
  expect_near(delta(copy.weights.modules.at("a")), delta(weights.modules.at("a")));
}

TEST_F(AdapterFileOfTool, WithoutAConfigurationTheTensorsOfPeftHaveTheirNamesAndAWarning) {
  AdapterWeights<float> weights;
  weights.modules.emplace("a", module(6, 4, 1, 3));
  write_adapter("adapter", {.lora = {.rank = 2, .alpha = 6}, .target_modules = {"a"}}, weights);
  std::filesystem::rename(path("adapter/adapter_model.safetensors"), path("alone.safetensors"));
  const auto run = tool({"convert", path("alone.safetensors"), path("copy")});
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_NE(run.output.find("adapter_config.json"), std::string::npos) << run.output;
  EXPECT_TRUE(read_peft_directory<float>(path("copy")).weights.modules.contains("a"));
}

}  // namespace
}  // namespace lora::adapter_file_test
