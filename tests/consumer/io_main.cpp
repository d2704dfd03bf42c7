// SPDX-License-Identifier: MIT
// A file of tensors, written and read.
#include <cstdlib>
#include <lora/io.hpp>

int main() {
  const lora::Matrix<float> A = lora::Matrix<float>::Constant(2, 5, 0.25F);
  lora::SafetensorsWriter writer;
  writer.add("lora_A.weight", A);
  writer.write("consumer.safetensors");
  const auto file = lora::SafetensorsFile::open("consumer.safetensors");
  return file.matrix<float>("lora_A.weight") == A ? EXIT_SUCCESS : EXIT_FAILURE;
}
