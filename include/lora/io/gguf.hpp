// SPDX-License-Identifier: MIT
// llama.cpp's GGUF files: LoRA adapters in and out, the names of modules, and how tensors are stored.
#pragma once

#include "lora/io/gguf_adapter.hpp"
#include "lora/io/gguf_adapter_reader.hpp"
#include "lora/io/gguf_adapter_writer.hpp"
#include "lora/io/gguf_names.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/gguf_type.hpp"
#include "lora/io/gguf_value.hpp"
