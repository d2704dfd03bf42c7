// See src/README.md.
#include "lora/kernels/kernel_table.hpp"
#include "lora/kernels/kernel_table_definition.hpp"

namespace lora::kernels {

template const KernelTable<float>& kernel_table<float>(Isa isa) noexcept;
template const KernelTable<double>& kernel_table<double>(Isa isa) noexcept;

}  // namespace lora::kernels
