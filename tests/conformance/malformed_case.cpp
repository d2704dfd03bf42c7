// SPDX-License-Identifier: MIT
// Files that break the format, and the reference implementation's name for the error.
#include <stdexcept>
#include <string>

#include "conformance/cases.hpp"
#include "lora/io/safetensors.hpp"

namespace lora::conformance {

void check_malformed(const std::filesystem::path& file, const std::string& verdict, Comparison& comparison) {
  std::string ours = "ok";
  try {
    const auto opened = SafetensorsFile::open(file);
    for (const auto name : opened.names()) (void)opened.tensor(name);
  } catch (const SafetensorsError& error) {
    ours = name_of(error.kind());
  }
  if (ours != verdict) throw std::runtime_error("the verdict is " + ours + " and should be " + verdict);
  comparison.equal(verdict, 1, 1);
}

}  // namespace lora::conformance
