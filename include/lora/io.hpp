// SPDX-License-Identifier: MIT
// Umbrella of io/: files. Needs nlohmann-json and POSIX beyond what lora.hpp needs.
#pragma once

#include "lora/core/half.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/gguf.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/peft_config.hpp"
#include "lora/io/peft_config_writer.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/io/safetensors.hpp"
