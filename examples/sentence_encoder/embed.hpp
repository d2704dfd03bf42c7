// SPDX-License-Identifier: MIT
// The command "embed" as the program calls it; implemented in layers_adapted.cpp, which knows the layers.
#pragma once

#include <filesystem>

namespace examples::sentence_encoder {

/// Reads texts from standard input and prints their embeddings. @throws lora::Error
void embed_standard_input(const std::filesystem::path& model_dir);

}  // namespace examples::sentence_encoder
