// SPDX-License-Identifier: MIT
// lora convert between PEFT and llama.cpp's GGUF: which rows change their order, which names, and what is refused.
#include <cstdint>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tools/tool.hpp"

namespace lora::convert_test {
namespace {

using testing::tool;

// The number in row i of B is i, so that the order of rows can be read off.
class ConvertTool : public testing::ToolTest {
 protected:
  static constexpr Index width = 4;
  const std::string block = "model.layers.0.self_attn.";
  const std::string query = block + "q_proj";

  [[nodiscard]] static ModuleWeights<float> numbered(Index rows) {
    ModuleWeights<float> numbered = module(rows, width, 1);
    for (Index row = 0; row < rows; ++row) numbered.B.row(row).setConstant(static_cast<float>(row));
    return numbered;
  }
  void write_peft(const std::string& name, const std::map<std::string, Index>& rows_of_modules) const {
    AdapterWeights<float> weights;
    for (const auto& [module, rows] : rows_of_modules) weights.modules.emplace(module, numbered(rows));
    write_adapter(name, {.lora = {.rank = 2, .alpha = 4}, .target_modules = ModuleSelector::matching(".*")}, weights);
  }
  void write_gguf(const std::string& name, const std::string& architecture, GgufMetadata metadata = {}) const {
    GgufAdapter adapter;
    adapter.architecture = architecture;
    adapter.metadata = std::move(metadata);
    adapter.weights.modules.emplace("blk.0.attn_q", numbered(12));
    write_gguf_adapter(path(name), adapter);
  }
  [[nodiscard]] static std::vector<int> order_of(const AdapterWeights<float>& weights, const std::string& module) {
    std::vector<int> order;
    for (const float value : weights.modules.at(module).B.col(0)) order.push_back(static_cast<int>(value));
    return order;
  }
  [[nodiscard]] std::vector<int> order_in_gguf(const std::string& name, const std::string& module) const {
    return order_of(read_gguf_adapter(path(name)).weights, module);
  }
  [[nodiscard]] std::vector<int> order_in_peft(const std::string& name, const std::string& module) const {
    return order_of(read_peft_directory<float>(path(name)).weights, module);
  }
  static void expect_usage(const std::vector<std::string>& arguments, const std::string& text) {
    const auto run = tool(arguments);
    EXPECT_EQ(run.exit_code, 2) << run.output;
    EXPECT_NE(run.output.find(text), std::string::npos) << run.output;
  }

  // Two heads of six rows: in llama.cpp's file neighbours are a row of the first half and one of the second.
  const std::vector<int> in_order{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  const std::vector<int> permuted{0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
  const std::vector<int> unpermuted{0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11};
};

TEST_F(ConvertTool, ToGgufThePermutedRowsOfLlamaNeedTheHeads) {
  write_peft("adapter", {{query, 12}});
  expect_refused({"convert", path("adapter"), path("a.gguf"), "--architecture", "llama"}, "--heads");
  expect_done({"convert", path("adapter"), path("a.gguf"), "--architecture", "llama", "--heads", "2"});
  EXPECT_EQ(order_in_gguf("a.gguf", "blk.0.attn_q"), permuted);
}

TEST_F(ConvertTool, FromGgufThePermutedRowsOfLlamaNeedTheHeads) {
  write_gguf("a.gguf", "llama");
  expect_refused({"convert", path("a.gguf"), path("back")}, "--heads");
  expect_done({"convert", path("a.gguf"), path("back"), "--heads", "2"});
  EXPECT_EQ(order_in_peft("back", query), unpermuted);
}

TEST_F(ConvertTool, RowsOfQwenStayAndHeadsAreRefused) {
  write_peft("adapter", {{query, 12}});
  expect_refused({"convert", path("adapter"), path("a.gguf"), "--architecture", "qwen2", "--heads", "2"}, "--heads");
  expect_done({"convert", path("adapter"), path("a.gguf"), "--architecture", "qwen2"});
  EXPECT_EQ(order_in_gguf("a.gguf", "blk.0.attn_q"), in_order);
  expect_refused({"convert", path("a.gguf"), path("back"), "--heads", "2"}, "--heads");
  expect_done({"convert", path("a.gguf"), path("back")});
  EXPECT_EQ(order_in_peft("back", query), in_order);
}

TEST_F(ConvertTool, BetweenGgufAndGgufNoRowMoves) {
  write_gguf("a.gguf", "llama");
  expect_refused({"convert", path("a.gguf"), path("b.gguf"), "--architecture", "llama", "--heads", "2"}, "--heads");
  expect_usage({"convert", path("a.gguf"), path("b.gguf"), "--keep-names", "--heads", "2"}, "--heads");
  expect_done({"convert", path("a.gguf"), path("b.gguf"), "--architecture", "llama", "--keep-names"});
  EXPECT_EQ(order_in_gguf("b.gguf", "blk.0.attn_q"), in_order);
}

TEST_F(ConvertTool, AnUnknownArchitectureNeedsAWordOnItsRows) {
  write_peft("adapter", {{query, 12}});
  const std::vector<std::string> convert{"convert", path("adapter"),  path("a.gguf"),
                                         "--force", "--architecture", "new"};
  const auto with = [&](const std::vector<std::string>& more) {
    auto all = convert;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  expect_refused(convert, "--keep-rows");
  expect_usage(with({"--keep-rows", "--heads", "2"}), "--keep-rows");
  expect_done(with({"--keep-rows"}));
  EXPECT_EQ(order_in_gguf("a.gguf", "blk.0.attn_q"), in_order);
  expect_done(with({"--heads", "2"}));
  EXPECT_EQ(order_in_gguf("a.gguf", "blk.0.attn_q"), permuted);
  expect_refused({"convert", path("a.gguf"), path("back")}, "\"new\"");
}

TEST_F(ConvertTool, WithoutQueryAndKeyNoHeadsAreNeeded) {
  write_peft("adapter", {{block + "v_proj", 12}, {"model.layers.0.mlp.up_proj", 12}});
  for (const std::string architecture : {"llama", "qwen2", "new"}) {
    expect_done({"convert", path("adapter"), path("a.gguf"), "--architecture", architecture, "--force"});
    expect_done({"convert", path("a.gguf"), path("back"), "--force"});
    EXPECT_EQ(order_in_peft("back", block + "v_proj"), in_order);
  }
}

TEST_F(ConvertTool, QueryAndKeyHaveHeadsOfOneSize) {
  write_peft("adapter", {{query, 24}, {block + "k_proj", 12}});
  const std::vector<std::string> convert{
      "convert", path("adapter"), path("a.gguf"), "--architecture", "llama", "--heads", "4"};
  expect_refused(convert, "--heads-kv");
  auto with_heads_kv = convert;
  with_heads_kv.insert(with_heads_kv.end(), {"--heads-kv", "2"});
  expect_done(with_heads_kv);
  EXPECT_EQ(order_in_gguf("a.gguf", "blk.0.attn_k"), permuted);
}

TEST_F(ConvertTool, NamesThatStayKeepTheirRows) {
  write_peft("adapter", {{query, 12}});
  expect_done({"convert", path("adapter"), path("a.gguf"), "--architecture", "llama", "--keep-names"});
  EXPECT_EQ(order_in_gguf("a.gguf", query), in_order);
  expect_done({"convert", path("a.gguf"), path("back")});
  EXPECT_EQ(order_in_peft("back", query), in_order);
}

TEST_F(ConvertTool, BetweenGgufAndGgufMetadataArchitectureAndNamesStay) {
  write_gguf("a.gguf", "llama", {{"general.name", std::string("mine")}, {"general.file_type", std::uint32_t{0}}});
  expect_done({"convert", path("a.gguf"), path("b.gguf"), "--dtype", "BF16"});
  const auto written = read_gguf_adapter(path("b.gguf"));
  EXPECT_EQ(written.architecture, "llama");
  EXPECT_EQ(written.metadata.at("general.name"), GgufValue(std::string("mine")));
  EXPECT_EQ(written.metadata.at("general.file_type"), GgufValue(std::uint32_t{32}));
  EXPECT_EQ(order_of(written.weights, "blk.0.attn_q"), in_order);
}

TEST_F(ConvertTool, AnotherArchitectureThanTheInputsIsRefused) {
  write_gguf("a.gguf", "llama");
  expect_refused({"convert", path("a.gguf"), path("b.gguf"), "--architecture", "qwen2"},
                 "\"llama\", as the input says");
  expect_refused({"convert", path("a.gguf"), path("back"), "--architecture", "qwen2"}, "\"llama\", as the input says");
  expect_done({"convert", path("a.gguf"), path("b.gguf"), "--architecture", "llama"});
}

}  // namespace
}  // namespace lora::convert_test
