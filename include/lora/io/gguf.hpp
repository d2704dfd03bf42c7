// LoRA adapters in llama.cpp's GGUF files: reading, writing, and the names of modules.
#pragma once

#include "lora/io/gguf_adapter.hpp"
#include "lora/io/gguf_adapter_reader.hpp"
#include "lora/io/gguf_adapter_writer.hpp"
#include "lora/io/gguf_names.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/gguf_value.hpp"
