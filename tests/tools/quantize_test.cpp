// SPDX-License-Identifier: MIT
// lora quantize, dequantize, inspect and merge over weights of fewer bits: right values, or a refusal by name.
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "lora/io/bitsandbytes.hpp"
#include "lora/io/gguf_encoder.hpp"
#include "lora/io/gguf_weight.hpp"
#include "lora/model/described_config.hpp"
#include "support/bits.hpp"
#include "support/golden.hpp"
#include "support/random_blocks.hpp"
#include "tools/tool.hpp"

namespace lora::quantize_test {
namespace {

using testing::random_matrix;
using testing::same_bits;
using testing::tool;

class QuantizeTool : public testing::ToolTest {
 protected:
  /// A tensor of a GGUF file.
  struct Tensor {
    std::string name;
    GgufType type = GgufType::F32;
    std::vector<std::uint64_t> extents;
    std::vector<std::uint8_t> bytes;
  };

  [[nodiscard]] static Tensor floats(const std::string& name, const Matrix<float>& values, bool one_row = false) {
    Tensor tensor{name, GgufType::F32, {static_cast<std::uint64_t>(values.cols())}, {}};
    if (!one_row) tensor.extents.push_back(static_cast<std::uint64_t>(values.rows()));
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(values.data());
    tensor.bytes.assign(bytes, bytes + values.size() * static_cast<Index>(sizeof(float)));
    return tensor;
  }
  /// Blocks of any bytes whose values are moderate.
  template <class Format>
  [[nodiscard]] static Tensor blocks(const std::string& name, Index rows, Index cols, std::uint32_t seed) {
    return {name,
            *gguf_type_of_format<Format>(),
            {static_cast<std::uint64_t>(cols), static_cast<std::uint64_t>(rows)},
            testing::random_blocks<Format>(rows, cols, seed)};
  }

  void write_gguf(const std::string& name, const std::vector<Tensor>& tensors, std::uint32_t alignment = 64) const {
    detail::GgufEncoder file(alignment);
    file.add_metadata("general.architecture", std::string("qwen2"));
    file.add_metadata("general.alignment", alignment);
    file.add_metadata("general.file_type", std::uint32_t{0});
    file.add_metadata("tokens", std::vector<std::string>{"a", "b"});
    for (const Tensor& tensor : tensors) {
      std::byte* const target = file.add_tensor(tensor.name, tensor.extents, tensor.type, tensor.bytes.size());
      std::memcpy(target, tensor.bytes.data(), tensor.bytes.size());
    }
    const auto bytes = std::move(file).finish();
    testing::write_file(path(name), {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }

  /// A parsed file with its bytes.
  struct Read {
    std::vector<std::byte> bytes;
    GgufContents contents;
    [[nodiscard]] const GgufTensor& at(const std::string& name) const {
      for (const auto& tensor : contents.tensors) {
        if (tensor.name == name) return tensor;
      }
      throw std::runtime_error("no tensor " + name);
    }
  };
  [[nodiscard]] Read read_gguf(const std::string& name) const {
    Read read{testing::read_file(path(name)), {}};
    read.contents = parse_gguf(read.bytes);
    return read;
  }

  void write_adapter_over(const std::string& module, const ModuleWeights<float>& weights) const {
    AdapterWeights<float> adapter;
    adapter.modules.emplace(module, weights);
    LoraModelConfig config{.lora = {.rank = 2, .alpha = 4}};
    config.target_modules = ModuleSelector::listed({module});
    write_adapter("adapter", config, adapter);
  }

  const Matrix<float> query = random_matrix<float>(5, 256, 1);
  const Matrix<float> odd = random_matrix<float>(4, 40, 2);
  const Matrix<float> norm = random_matrix<float>(1, 256, 3);
};

template <class Format>
Matrix<float> rounded(const Matrix<float>& values) {
  const auto weight = QuantizedWeight<Format>::quantize(view_of(values));
  Matrix<float> result(values.rows(), values.cols());
  read_back(weight, view_of(result));
  return result;
}

TEST_F(QuantizeTool, AGgufFileGetsEveryTypeThatCanBeWritten) {
  write_gguf("base.gguf", {floats("blk.0.attn_q.weight", query), floats("blk.0.attn_norm.weight", norm, true),
                           floats("blk.0.odd.weight", odd), floats("blk.0.ffn_gate_inp.weight", query),
                           floats("token_embd.weight", query)});
  for (const std::string format : {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "f16", "bf16"}) {
    SCOPED_TRACE(format);
    const auto run = tool({"quantize", path("base.gguf"), path("out.gguf"), "--format", format, "--force"});
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const bool half = format.find("f16") != std::string::npos;
    EXPECT_EQ(run.output.find("\"blk.0.odd.weight\" stays as it is") != std::string::npos, !half) << run.output;
    const Read out = read_gguf("out.gguf");
    const GgufType type = out.at("blk.0.attn_q.weight").type;
    visit_format(type, [&]<class Format>(Format) {
      if constexpr (formats::EncodableFormat<Format>) {
        EXPECT_TRUE(same_bits(read_gguf_tensor(out.at("blk.0.attn_q.weight")), rounded<Format>(query)));
        EXPECT_TRUE(same_bits(read_gguf_tensor(out.at("token_embd.weight")), rounded<Format>(query)));
      }
    });
    EXPECT_EQ(out.at("blk.0.attn_norm.weight").type, GgufType::F32);
    EXPECT_TRUE(same_bits(read_gguf_tensor(out.at("blk.0.attn_norm.weight")), norm));
    EXPECT_EQ(out.at("blk.0.odd.weight").type, half ? type : GgufType::F32);
    EXPECT_TRUE(same_bits(read_gguf_tensor(out.at("blk.0.ffn_gate_inp.weight")), query));
    EXPECT_EQ(out.contents.metadata.at("tokens"), GgufValue(std::vector<std::string>{"a", "b"}));
    EXPECT_NE(out.contents.metadata.at("general.file_type"), GgufValue(std::uint32_t{0}));
    EXPECT_EQ(out.contents.tensors.front().name, "blk.0.attn_q.weight") << "in the order of the base";
  }
}

TEST_F(QuantizeTool, AGgufFileComesBackAsFloats) {
  const std::vector<Tensor> tensors{
      blocks<formats::Q4_K>("a.weight", 3, 512, 1),   blocks<formats::MXFP4>("b.weight", 3, 64, 2),
      blocks<formats::IQ4_XS>("c.weight", 2, 256, 3), blocks<formats::Q8_0>("d.bias", 1, 32, 4),
      blocks<formats::BF16>("e.weight", 2, 3, 5),     floats("f.weight", odd)};
  write_gguf("base.gguf", tensors);
  expect_done({"dequantize", path("base.gguf"), path("out.gguf")});
  const Read base = read_gguf("base.gguf");
  const Read out = read_gguf("out.gguf");
  ASSERT_EQ(out.contents.tensors.size(), tensors.size());
  for (const Tensor& tensor : tensors) {
    EXPECT_EQ(out.at(tensor.name).type, GgufType::F32) << tensor.name;
    EXPECT_TRUE(same_bits(read_gguf_tensor(out.at(tensor.name)), read_gguf_tensor(base.at(tensor.name))));
    EXPECT_EQ(out.at(tensor.name).extents, base.at(tensor.name).extents);
  }
  expect_done({"dequantize", path("base.gguf"), path("half.gguf"), "--dtype", "BF16"});
  const Read half = read_gguf("half.gguf");
  EXPECT_EQ(half.at("a.weight").type, GgufType::BF16);
  EXPECT_EQ(half.at("f.weight").type, GgufType::F32) << "what has all its bits stays";
  EXPECT_TRUE(same_bits(read_gguf_tensor(half.at("e.weight")), read_gguf_tensor(base.at("e.weight"))));
}

TEST_F(QuantizeTool, InspectShowsTypesShapesAndBytes) {
  write_gguf("base.gguf",
             {blocks<formats::Q4_K>("a.weight", 3, 512, 1), blocks<formats::IQ4_NL>("b.weight", 2, 32, 2)});
  const auto report = nlohmann::json::parse(tool({"inspect", path("base.gguf"), "--json"}).output);
  EXPECT_EQ(report.at("tensors").at(0).at("dtype"), "Q4_K");
  EXPECT_EQ(report.at("tensors").at(0).at("shape"), (std::vector<int>{3, 512}));
  EXPECT_EQ(report.at("tensors").at(0).at("bytes"), 3 * 2 * 144);
  EXPECT_EQ(report.at("tensors").at(1).at("dtype"), "IQ4_NL");
  const auto equal = tool({"diff", path("base.gguf"), path("base.gguf")});
  EXPECT_NE(equal.output.find("2 tensors equal, 0 different"), std::string::npos) << equal.output;
}

// Blocks of two types may have the same shape and not the same bytes.
TEST_F(QuantizeTool, DiffComparesTheValuesOfBlocks) {
  write_gguf("a.gguf", {blocks<formats::Q8_0>("a.weight", 3, 64, 1)});
  write_gguf("b.gguf", {blocks<formats::Q4_1>("a.weight", 3, 64, 2)});
  expect_done({"dequantize", path("a.gguf"), path("values.gguf")});
  const auto difference_to = [&](const char* other) {
    return nlohmann::json::parse(tool({"diff", path("a.gguf"), path(other), "--json"}).output).at("tensors").at(0);
  };
  const auto same = difference_to("values.gguf");
  EXPECT_EQ(same.at("weights"), "another dtype");
  EXPECT_EQ(same.at("largest"), 0.0);
  const Matrix<double> a = read_gguf_tensor(read_gguf("a.gguf").at("a.weight")).cast<double>();
  const Matrix<double> b = read_gguf_tensor(read_gguf("b.gguf").at("a.weight")).cast<double>();
  const auto other = difference_to("b.gguf");
  EXPECT_EQ(other.at("weights"), "another dtype");
  EXPECT_EQ(other.at("largest"), (a - b).cwiseAbs().maxCoeff());
  EXPECT_NEAR(other.at("relative").get<double>(), (a - b).norm() / a.norm(), 1e-12);
}

TEST_F(QuantizeTool, SafetensorsBecomeTensorsOfBitsandbytesAndComeBack) {
  const testing::Tensors tensors{{"m.layers.0.q_proj.weight", {{5, 256}, query}},
                                 {"m.layers.0.norm.weight", {{256}, norm}},
                                 {"m.layers.0.odd.weight", {{4, 40}, odd}},
                                 {"m.embed_tokens.weight", {{5, 256}, query}},
                                 {"lm_head.weight", {{5, 256}, query}}};
  write_tensors("base.safetensors", tensors, Dtype::BF16);
  const Matrix<float> stored = tensor("base.safetensors", "m.layers.0.q_proj.weight");
  for (const std::string format : {"nf4", "fp4"}) {
    for (const Index block : {Index{64}, Index{128}}) {
      expect_done({"quantize", path("base.safetensors"), path("out.safetensors"), "--format", format, "--block",
                   std::to_string(block), "--force"});
      const auto out = SafetensorsFile::open(path("out.safetensors"));
      const auto state = bitsandbytes_state(out, "m.layers.0.q_proj.weight");
      EXPECT_EQ(state.block_size, block);
      EXPECT_EQ(state.dtype, Dtype::BF16);
      EXPECT_EQ(out.size(), tensors.size() + 3) << "one weight has three companions";
      visit_format(state.type, block, [&]<class Format>(Format) {
        const auto weight = bitsandbytes_weight<Format>(out, "m.layers.0.q_proj.weight");
        Matrix<float> values(5, 256);
        read_back(weight, view_of(values));
        EXPECT_TRUE(same_bits(values, rounded<Format>(stored)));
        expect_done({"dequantize", path("out.safetensors"), path("back.safetensors"), "--force"});
        EXPECT_TRUE(same_bits(tensor("back.safetensors", "m.layers.0.q_proj.weight"), values));
      });
      EXPECT_EQ(SafetensorsFile::open(path("back.safetensors")).size(), tensors.size());
      const auto listing = tool({"inspect", path("out.safetensors")});
      const std::string type = (format == "nf4" ? "NF4 " : "FP4 ") + std::to_string(block);
      EXPECT_NE(listing.output.find(type), std::string::npos) << listing.output;
      EXPECT_EQ(listing.output.find("absmax"), std::string::npos) << listing.output;
    }
  }
  expect_done({"quantize", path("base.safetensors"), path("half.safetensors"), "--format", "f16"});
  EXPECT_EQ(SafetensorsFile::open(path("half.safetensors")).tensor("lm_head.weight").dtype, Dtype::F16);
}

TEST_F(QuantizeTool, AFolderOfShardsKeepsPartsTogetherAndDescribesThem) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/1.safetensors", {{"a.weight", {{5, 256}, query}}});
  write_tensors("base/2.safetensors", {{"lm_head.weight", {{5, 256}, query}}});
  testing::write_file(path("base/model.safetensors.index.json"),
                      R"({"weight_map":{"a.weight":"1.safetensors","lm_head.weight":"2.safetensors"},"metadata":{}})");
  testing::write_file(path("base/config.json"), R"({"model_type":"x"})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4"});
  const auto index = nlohmann::json::parse(std::ifstream(path("out/model.safetensors.index.json")));
  for (const char* part : {"", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"}) {
    EXPECT_EQ(index.at("weight_map").at(std::string("a.weight") + part), "1.safetensors");
  }
  const auto config = nlohmann::json::parse(std::ifstream(path("out/config.json")));
  EXPECT_EQ(config.at("quantization_config").at("bnb_4bit_quant_type"), "nf4");
  EXPECT_EQ(config.at("quantization_config").at("llm_int8_skip_modules"), std::vector<std::string>{"lm_head"});
  expect_done({"dequantize", path("out"), path("back")});
  const auto back = nlohmann::json::parse(std::ifstream(path("back/model.safetensors.index.json")));
  EXPECT_EQ(back.at("weight_map").size(), 2U);
  EXPECT_FALSE(nlohmann::json::parse(std::ifstream(path("back/config.json"))).contains("quantization_config"));
  EXPECT_TRUE(same_bits(tensor("back/1.safetensors", "a.weight"), rounded<formats::NF4<64>>(query)));
}

TEST_F(QuantizeTool, DoubleQuantStoresTheScalesOfAFolderInEightBits) {
  std::filesystem::create_directory(path("base"));
  write_tensors("base/model.safetensors", {{"a.weight", {{5, 256}, query}}});
  testing::write_file(path("base/config.json"), R"({"model_type":"x"})");
  expect_done({"quantize", path("base"), path("out"), "--format", "nf4", "--double-quant"});
  SafetensorsWriter writer;
  add_bitsandbytes_weight(writer, "a.weight", QuantizedWeight<formats::NF4<64>>::quantize(view_of(query)), Dtype::F32,
                          BitsandbytesScales::nested);
  const auto bytes = writer.to_bytes();
  const auto expected = SafetensorsFile::from_bytes(bytes);
  const auto out = SafetensorsFile::open(path("out/model.safetensors"));
  ASSERT_EQ(out.names(), expected.names());
  for (const auto name : expected.names()) {
    const auto own = out.tensor(name).bytes;
    const auto other = expected.tensor(name).bytes;
    EXPECT_TRUE(std::equal(own.begin(), own.end(), other.begin(), other.end())) << name;
  }
  const auto config = nlohmann::json::parse(std::ifstream(path("out/config.json")));
  EXPECT_TRUE(config.at("quantization_config").at("bnb_4bit_use_double_quant").get<bool>());
  const auto run = tool({"quantize", path("base"), path("half"), "--format", "bf16", "--double-quant"});
  EXPECT_NE(run.output.find("--double-quant: expected --format nf4 or fp4, got bf16"), std::string::npos) << run.output;
}

TEST_F(QuantizeTool, NestedScalesAreDecodedAndShown) {
  const auto golden = testing::Golden::load(testing::golden_path("quantized/nf4_b64_nested_6x512"));
  SafetensorsWriter writer;
  const auto add = [&](const std::string& name, const std::string& from, std::vector<Index> shape) {
    const auto bytes = golden.bytes(from);
    writer.add(name, Dtype::U8, std::move(shape), std::as_bytes(std::span(bytes)));
  };
  add("w", "weight.bitsandbytes", {1536, 1});
  add("w.absmax", "weight.absmax", {48});
  add("w.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__nf4", {166});
  for (const std::string part : {"quant_map", "nested_absmax", "nested_quant_map"}) {
    const auto values = golden.matrix<float>("weight." + part);
    writer.add("w." + part, Dtype::F32, {values.size()},
               std::as_bytes(std::span(values.data(), static_cast<std::size_t>(values.size()))));
  }
  writer.write(path("base.safetensors"));
  const auto report = nlohmann::json::parse(tool({"inspect", path("base.safetensors"), "--json"}).output);
  ASSERT_EQ(report.at("tensors").size(), 1U);
  EXPECT_EQ(report.at("tensors").at(0).at("dtype"), "NF4 64 nested");
  EXPECT_EQ(report.at("tensors").at(0).at("bytes"), report.at("bytes"));
  expect_done({"dequantize", path("base.safetensors"), path("out.safetensors")});
  EXPECT_TRUE(same_bits(tensor("out.safetensors", "w"), golden.matrix<float>("decoded")));
}

TEST_F(QuantizeTool, WhatCannotBeQuantizedIsRefusedByNameAndNothingIsWritten) {
  write_gguf("base.gguf", {floats("a.weight", query), floats("odd.weight", odd), floats("norm.weight", norm, true),
                           blocks<formats::Q8_0>("q.weight", 2, 32, 1)});
  write_tensors("base.safetensors", {{"a.weight", {{5, 256}, query}}, {"odd.weight", {{4, 40}, odd}}});
  const auto refused = [&](const std::string& base, const std::string& text, std::vector<std::string> more) {
    std::vector<std::string> arguments{"quantize", path(base), path("out-of-" + base)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_refused(arguments, text);
    EXPECT_FALSE(std::filesystem::exists(path("out-of-" + base)));
    EXPECT_TRUE(leftovers().empty());
  };
  refused("base.gguf", "expected a type of GGUF files", {"--format", "nf4"});
  refused("base.safetensors", "expected a type of safetensors files", {"--format", "q4_0"});
  refused("base.gguf", "\"odd.weight\": expected a multiple of 32 columns", {"--format", "q4_0", "--modules", "a,odd"});
  refused("base.gguf", "\"norm.weight\": expected a matrix of F32", {"--format", "q4_0", "--modules", "norm"});
  refused("base.gguf", "\"q.weight\": expected a matrix of F32, F16 or BF16, got Q8_0",
          {"--format", "q4_0", "--modules", "q"});
  refused("base.safetensors", "\"absent\": expected a module", {"--format", "nf4", "--modules", "a,absent"});
  refused("base.safetensors", "\"odd.weight\": expected a multiple of 64", {"--format", "nf4", "--modules", "odd"});
  EXPECT_EQ(tool({"quantize", path("base.safetensors"), path("out"), "--format", "nf4", "--block", "48"}).exit_code, 2);
  expect_refused({"dequantize", path("base.safetensors"), path("out")}, "weights in blocks");
  Matrix<float> broken = query;
  broken(3, 7) = std::numeric_limits<float>::infinity();
  write_tensors("base.safetensors", {{"a.weight", {{5, 256}, broken}}});
  refused("base.safetensors", "\"a.weight\", row 3", {"--format", "nf4"});
  write_gguf("base.gguf", {floats("a.weight", broken)});
  refused("base.gguf", "\"a.weight\", row 3", {"--format", "q4_0"});
}

TEST_F(QuantizeTool, AnAdapterIsMergedIntoBlocksWhichAreEncodedAnew) {
  const Matrix<float> query_8 = random_matrix<float>(8, 64, 1);
  const auto update = module(8, 64, 4);
  write_adapter_over("model.layers.0.self_attn.v_proj", update);
  for (const std::string format : {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1"}) {
    SCOPED_TRACE(format);
    write_gguf("float.gguf", {floats("blk.0.attn_v.weight", query_8), floats("blk.0.attn_q.weight", query_8)});
    expect_done({"quantize", path("float.gguf"), path("base.gguf"), "--format", format, "--force"});
    const auto run = tool({"merge", path("base.gguf"), path("adapter"), path("out.gguf"), "--force"});
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const Read base = read_gguf("base.gguf");
    const Read out = read_gguf("out.gguf");
    const Matrix<float> before = read_gguf_tensor(base.at("blk.0.attn_v.weight"));
    const Matrix<float> after = read_gguf_tensor(out.at("blk.0.attn_v.weight"));
    const GgufType type = out.at("blk.0.attn_v.weight").type;
    ASSERT_EQ(type, base.at("blk.0.attn_v.weight").type);
    const Matrix<float> sum = before + delta(update);
    visit_format(type, [&]<class Format>(Format) {
      if constexpr (formats::EncodableFormat<Format>) {
        // The tool's sum may round otherwise in the last place, which may change a code.
        EXPECT_LE((after - rounded<Format>(sum)).cwiseAbs().maxCoeff(), 0.02F * sum.cwiseAbs().maxCoeff());
      }
    });
    EXPECT_EQ(base.at("blk.0.attn_q.weight").bytes.size(), out.at("blk.0.attn_q.weight").bytes.size());
    EXPECT_TRUE(
        same_bits(read_gguf_tensor(base.at("blk.0.attn_q.weight")), read_gguf_tensor(out.at("blk.0.attn_q.weight"))));
    const Matrix<double> added = delta(update).cast<double>();
    const double survived = (after - before).cast<double>().cwiseProduct(added).sum() / added.squaredNorm();
    const double error = ((after - before).cast<double>() - added).norm() / added.norm();
    const auto position = run.output.find("blk.0.attn_v.weight");
    ASSERT_NE(position, std::string::npos) << run.output;
    std::istringstream line(run.output.substr(position));
    std::string name;
    std::string shown_type;
    double shown_survived = 0;
    double shown_error = 0;
    line >> name >> shown_type >> shown_survived >> shown_error;
    EXPECT_EQ(shown_type, name_of(type));
    EXPECT_NEAR(shown_survived, survived, 1e-3);
    EXPECT_NEAR(shown_error, error, 1e-3);
    EXPECT_NE(run.output.find("of what was added to 1 tensors in blocks"), std::string::npos) << run.output;
  }
}

// The rows of W + s B A get the norms that DoRA's magnitude says, before they are encoded.
TEST_F(QuantizeTool, AnAdapterWithDoraIsMergedIntoBlocks) {
  auto update = module(8, 64, 4);
  update.magnitude = (random_matrix<float>(1, 8, 9).array() + 3).matrix();
  AdapterWeights<float> adapter;
  adapter.modules.emplace("model.layers.0.self_attn.v_proj", update);
  write_adapter("adapter", described_config(LoraModelConfig{}, adapter), adapter);
  write_gguf("float.gguf", {floats("blk.0.attn_v.weight", random_matrix<float>(8, 64, 1))});
  expect_done({"quantize", path("float.gguf"), path("base.gguf"), "--format", "q8_0"});
  const auto run = tool({"merge", path("base.gguf"), path("adapter"), path("out.gguf")});
  ASSERT_EQ(run.exit_code, 0) << run.output;
  Matrix<float> sum = read_gguf_tensor(read_gguf("base.gguf").at("blk.0.attn_v.weight")) + delta(update);
  for (Index i = 0; i < 8; ++i) sum.row(i) *= update.magnitude[i] / sum.row(i).norm();
  const Matrix<float> after = read_gguf_tensor(read_gguf("out.gguf").at("blk.0.attn_v.weight"));
  EXPECT_LE((after - sum).cwiseAbs().maxCoeff(), 0.02F * sum.cwiseAbs().maxCoeff());
  EXPECT_NE(run.output.find("of what was added to 1 tensors in blocks"), std::string::npos) << run.output;
}

TEST_F(QuantizeTool, AnAdapterWithQaloraIsShownAndNotMerged) {
  auto update = module(8, 16, 4);
  update.qalora_group_size = 4;
  AdapterWeights<float> adapter;
  adapter.modules.emplace("a", update);
  write_adapter("adapter", described_config(LoraModelConfig{}, adapter), adapter);
  write_tensors("base.safetensors", {{"a.weight", {{8, 64}, random_matrix<float>(8, 64, 1)}}});
  expect_refused({"merge", path("base.safetensors"), path("adapter"), path("out")}, "got QALoRA");
  const auto table = tool({"inspect", path("adapter")});
  EXPECT_NE(table.output.find("linear qalora"), std::string::npos) << table.output;
  const double delta_norm =
      delta(update).norm() * (16.0 / 4) * std::sqrt(4.0);  // A P: columns times 16 / 4, four of each
  const auto json = nlohmann::json::parse(tool({"inspect", path("adapter"), "--json"}).output);
  EXPECT_EQ(json.at("modules").at(0).at("in"), 64);
  EXPECT_NEAR(json.at("modules").at(0).at("norm_delta").get<double>(), delta_norm, 1e-5 * delta_norm);
}

// A change far below the steps of the blocks is rounded away, and the report says so.
TEST_F(QuantizeTool, AnUpdateThatRoundingUndoesIsReported) {
  Matrix<float> weight(1, 32);
  for (Index i = 0; i < 32; ++i) weight(0, i) = static_cast<float>(i % 16 - 8);
  write_gguf("float.gguf", {floats("blk.0.attn_v.weight", Matrix<float>(weight.replicate(2, 1)))});
  expect_done({"quantize", path("float.gguf"), path("base.gguf"), "--format", "q4_0"});
  ModuleWeights<float> update;
  update.A = Matrix<float>::Zero(2, 32);
  update.A(0, 3) = 0.01F;
  update.B = Matrix<float>::Ones(2, 2);
  update.scaling = 2;
  write_adapter_over("model.layers.0.self_attn.v_proj", update);
  const auto run = tool({"merge", path("base.gguf"), path("adapter"), path("out.gguf")});
  EXPECT_NE(run.output.find("0 survived, with an error of 1 of it"), std::string::npos) << run.output;
  EXPECT_EQ(testing::read_file(path("out.gguf")), testing::read_file(path("base.gguf")));
}

TEST_F(QuantizeTool, BlocksThatHaveNoRuleForWritingAreRefusedWithWhatToDo) {
  write_adapter_over("model.layers.0.self_attn.v_proj", module(8, 256, 4));
  const auto expect_named = [&](const Tensor& tensor) {
    write_gguf("base.gguf", {tensor});
    const auto run = tool({"merge", path("base.gguf"), path("adapter"), path("out.gguf")});
    EXPECT_EQ(run.exit_code, 1);
    EXPECT_NE(run.output.find("\"blk.0.attn_v.weight\": expected a type that can be written"), std::string::npos)
        << run.output;
    EXPECT_NE(run.output.find("lora dequantize"), std::string::npos);
    EXPECT_NE(run.output.find("got " + std::string(name_of(tensor.type))), std::string::npos) << run.output;
    EXPECT_FALSE(std::filesystem::exists(path("out.gguf")));
    expect_done({"dequantize", path("base.gguf"), path("float.gguf"), "--force"});
    expect_done({"merge", path("float.gguf"), path("adapter"), path("merged.gguf"), "--force"});
  };
  expect_named(blocks<formats::Q2_K>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::Q3_K>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::Q4_K>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::Q5_K>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::Q6_K>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::IQ4_NL>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::IQ4_XS>("blk.0.attn_v.weight", 8, 256, 1));
  expect_named(blocks<formats::MXFP4>("blk.0.attn_v.weight", 8, 256, 1));
}

TEST_F(QuantizeTool, AFourBitWeightOfBitsandbytesIsNotMergedInto) {
  write_tensors("float.safetensors", {{"a.weight", {{5, 256}, query}}});
  expect_done({"quantize", path("float.safetensors"), path("base.safetensors"), "--format", "nf4"});
  write_adapter_over("a", module(5, 256, 4));
  expect_refused({"merge", path("base.safetensors"), path("adapter"), path("out.safetensors")},
                 "lora dequantize makes them of 4-bit weights");
}

TEST_F(QuantizeTool, AnIncompleteFourBitWeightIsRefusedAndInspectListsItsParts) {
  SafetensorsWriter writer;
  const std::string state = bitsandbytes_state_text({BitsandbytesType::nf4, 64, 6, 512});
  writer.add("w.quant_state.bitsandbytes__nf4", Dtype::U8, {static_cast<Index>(state.size())},
             std::as_bytes(std::span(state)));
  writer.write(path("base.safetensors"));
  const auto listing = tool({"inspect", path("base.safetensors")});
  EXPECT_EQ(listing.exit_code, 0);
  EXPECT_NE(listing.output.find("warning: safetensors TensorNotFound: checkpoint: expected a tensor \"w\", got none"),
            std::string::npos)
      << listing.output;
  EXPECT_NE(listing.output.find("1 tensors in 1 file(s)"), std::string::npos) << listing.output;
  expect_refused({"dequantize", path("base.safetensors"), path("out")}, "a tensor \"w\"");
}

}  // namespace
}  // namespace lora::quantize_test
