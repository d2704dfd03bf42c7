// SPDX-License-Identifier: MIT
#define LORA_ROOFS avx2
#define LORA_VECTOR_BYTES 32
#include "roofs.inc"
