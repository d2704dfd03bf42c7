// SPDX-License-Identifier: MIT
// See src/README.md.
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/kernel_table_definition.inc"

namespace lora::kernels {

template const KernelTable<float>& kernel_table<float>(Isa) noexcept;
template const KernelTable<double>& kernel_table<double>(Isa) noexcept;

}  // namespace lora::kernels
