// SPDX-License-Identifier: MIT
// The safetensors format: reader and writer.
#pragma once

#include "lora/io/safetensors_error.hpp"
#include "lora/io/safetensors_index.hpp"
#include "lora/io/safetensors_reader.hpp"
#include "lora/io/safetensors_writer.hpp"
