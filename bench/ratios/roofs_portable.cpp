#define LORA_ROOFS portable
#define LORA_VECTOR_BYTES 16
#include "roofs.inc"
