// SPDX-License-Identifier: MIT
// Module names of transformers and llama.cpp.
#include "lora/io/gguf_names.hpp"

#include <gtest/gtest.h>

namespace lora::gguf_names_test {
namespace {

// gguf-py/gguf/tensor_mapping.py of ggml-org/llama.cpp.
TEST(LlamaCppName, IsWhatTheConverterWrites) {
  EXPECT_EQ(llama_cpp_name("model.layers.0.self_attn.q_proj"), "blk.0.attn_q");
  EXPECT_EQ(llama_cpp_name("model.layers.1.self_attn.k_proj"), "blk.1.attn_k");
  EXPECT_EQ(llama_cpp_name("model.layers.2.self_attn.v_proj"), "blk.2.attn_v");
  EXPECT_EQ(llama_cpp_name("model.layers.31.self_attn.o_proj"), "blk.31.attn_output");
  EXPECT_EQ(llama_cpp_name("model.layers.4.mlp.gate_proj"), "blk.4.ffn_gate");
  EXPECT_EQ(llama_cpp_name("model.layers.5.mlp.up_proj"), "blk.5.ffn_up");
  EXPECT_EQ(llama_cpp_name("model.layers.6.mlp.down_proj"), "blk.6.ffn_down");
  EXPECT_EQ(llama_cpp_name("model.embed_tokens"), "token_embd");
  EXPECT_EQ(llama_cpp_name("lm_head"), "output");
}

TEST(LlamaCppName, DoesNotCountPeftsPrefix) {
  EXPECT_EQ(llama_cpp_name("base_model.model.model.layers.0.self_attn.q_proj"), "blk.0.attn_q");
  EXPECT_EQ(llama_cpp_name("base_model.model.lm_head"), "output");
}

TEST(TransformersName, IsTheInverse) {
  for (const char* name : {"model.layers.0.self_attn.q_proj", "model.layers.12.mlp.down_proj", "model.embed_tokens",
                           "lm_head", "model.layers.3.self_attn.o_proj"}) {
    EXPECT_EQ(transformers_name(llama_cpp_name(name)), name);
  }
}

TEST(GgufNames, OthersAreRefusedByName) {
  for (const char* name : {"", "model.layers.x.self_attn.q_proj", "model.layers..self_attn.q_proj", "model.layers.1",
                           "model.layers.1.self_attn.qkv_proj", "model.norm", "layers.0.q_proj"}) {
    EXPECT_THROW(static_cast<void>(llama_cpp_name(name)), ConfigError) << name;
  }
  for (const char* name : {"", "blk.0", "blk.0.attn_qkv", "blk.0.attn_q.weight", "rope_freqs"}) {
    EXPECT_THROW(static_cast<void>(transformers_name(name)), ConfigError) << name;
  }
  try {
    static_cast<void>(llama_cpp_name("transformer.h.0.attn"));
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("\"transformer.h.0.attn\""), std::string::npos);
  }
}

}  // namespace
}  // namespace lora::gguf_names_test
