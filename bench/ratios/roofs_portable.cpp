// SPDX-License-Identifier: MIT
#define LORA_ROOFS portable
#define LORA_VECTOR_BYTES 16
#include "roofs.inc"
