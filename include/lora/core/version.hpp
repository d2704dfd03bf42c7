// SPDX-License-Identifier: MIT
// The library's version. No other file states it by itself: CMake reads it here and hands it on.
#pragma once

#define LORA_VERSION_MAJOR 0
#define LORA_VERSION_MINOR 1
#define LORA_VERSION_PATCH 0

/// 10000 major + 100 minor + patch. `#if LORA_VERSION >= 200` asks for 0.2.0 or newer.
#define LORA_VERSION (LORA_VERSION_MAJOR * 10000 + LORA_VERSION_MINOR * 100 + LORA_VERSION_PATCH)

#define LORA_VERSION_JOIN(major, minor, patch) #major "." #minor "." #patch
#define LORA_VERSION_TEXT(major, minor, patch) LORA_VERSION_JOIN(major, minor, patch)

/// The same as text: "0.1.0" for 0.1.0.
#define LORA_VERSION_STRING LORA_VERSION_TEXT(LORA_VERSION_MAJOR, LORA_VERSION_MINOR, LORA_VERSION_PATCH)
