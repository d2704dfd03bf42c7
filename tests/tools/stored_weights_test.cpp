// SPDX-License-Identifier: MIT
// What quantize and dequantize store, and what they say of it to transformers.
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lora/io/bitsandbytes.hpp"
#include "lora/model/described_config.hpp"
#include "support/bits.hpp"
#include "tools/tool.hpp"

namespace lora::stored_weights_test {
namespace {

using testing::random_matrix;
using testing::same_bits;
using testing::tool;

class StoredWeights : public testing::ToolTest {
 protected:
  void write(const std::string& name, const std::string& text) const { testing::write_file(path(name), text); }
  [[nodiscard]] std::string text_of(const std::string& name) const {
    std::ifstream file(path(name));
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void write_model(const std::string& name, const testing::Tensors& tensors, const std::string& config) const {
    std::filesystem::create_directories(path(name));
    write_tensors(name + "/model.safetensors", tensors);
    write(name + "/config.json", config);
  }
  [[nodiscard]] std::vector<std::string> skipped(const std::string& model) const {
    const auto config = nlohmann::json::parse(text_of(model + "/config.json"));
    return config.at("quantization_config").at("llm_int8_skip_modules").get<std::vector<std::string>>();
  }
  /// The shape that the quant_state of a weight says.
  [[nodiscard]] std::vector<Index> quantized_shape(const std::string& file, const std::string& weight) const {
    const auto state = bitsandbytes_state(SafetensorsFile::open(path(file)), weight);
    return {state.out_features, state.in_features};
  }
  [[nodiscard]] static Matrix<float> rounded(const Matrix<float>& values) {
    const auto weight = QuantizedWeight<formats::NF4<64>>::quantize(view_of(values));
    Matrix<float> result(values.rows(), values.cols());
    read_back(weight, view_of(result));
    return result;
  }
  [[nodiscard]] static Matrix<float> rounded_by_columns(const Matrix<float>& values) {
    return rounded(values.transpose()).transpose();
  }
};

TEST_F(StoredWeights, ATensorOfManyRowsWithoutColumnsIsNoWork) {
  SafetensorsWriter writer;
  writer.add_stream("w", Dtype::F16, {Index{1} << 44, 0}, [](const SafetensorsWriter::Sink&) {});
  writer.write(path("base.safetensors"));
  expect_done({"dequantize", path("base.safetensors"), path("out.safetensors")});
  EXPECT_EQ(SafetensorsFile::open(path("out.safetensors")).tensor("w").shape, (std::vector<Index>{Index{1} << 44, 0}));
}

// The list names lm_head and all within: RoBERTa's head has layers that are stored, and may be in 4 bits.
class Conv1dWeights : public StoredWeights {
 protected:
  const Matrix<float> attention = random_matrix<float>(64, 192, 1);
  const Matrix<float> projection = random_matrix<float>(64, 64, 2);

  [[nodiscard]] testing::Tensors gpt2() const {
    return {{"h.0.attn.c_attn.weight", {{64, 192}, attention}},
            {"h.0.attn.c_attn.bias", row(192, 3)},
            {"h.0.attn.c_proj.weight", {{64, 64}, projection}},
            {"h.0.attn.c_proj.bias", row(64, 4)},
            {"wte.weight", values(8, 64, 5)}};
  }
};

// transformers transposes a Conv1D before it quantizes, and takes a weight that is in 4 bits as it is.
// A file alone does not say that it is a GPT-2: what is decoded is in transformers' order of 4-bit weights, told so,
// and still merged rightly, since the bias shows the outputs.
class ConfigOfPython : public StoredWeights {
 protected:
  // What json.dump writes for a Mamba2: not JSON, and read by every version of transformers.
  const std::string config = R"({"model_type": "mamba2", "time_step_limit": [0.0, Infinity], "low": -Infinity,
  "unknown": NaN, "text": "NaN, Infinity", "layer_norm_epsilon": 1e-05})";
};

}  // namespace
}  // namespace lora::stored_weights_test
