// SPDX-License-Identifier: MIT
#define LORA_ROOFS avx512
#define LORA_VECTOR_BYTES 64
#include "roofs.inc"
