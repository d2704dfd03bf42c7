// SPDX-License-Identifier: MIT
// The one source of this program that is compiled with OpenMP, where the compiler has it.
#include "executors.hpp"

#include "lora/core/openmp_executor.hpp"

namespace lora::bench {

#if defined(_OPENMP)
std::unique_ptr<Executor> make_openmp_executor(int threads) { return std::make_unique<OpenMpExecutor>(threads); }
void use_one_openmp_thread() { omp_set_num_threads(1); }
#else
std::unique_ptr<Executor> make_openmp_executor(int /*threads*/) { return nullptr; }
void use_one_openmp_thread() {}
#endif

}  // namespace lora::bench
