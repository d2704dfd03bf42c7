// Checks where a command writes: nothing is overwritten without --force.
#pragma once

#include <filesystem>
#include <string>

#include "lora/core/error.hpp"

namespace lora::tools {

/// @throws ConfigError when `path` exists and `force` is not set
inline void require_free(const std::filesystem::path& path, bool force) {
  if (force || !std::filesystem::exists(path)) return;
  throw ConfigError("output", path.native(), "a path where nothing is (--force overwrites)", "a file or folder");
}

}  // namespace lora::tools
