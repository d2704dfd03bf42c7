// SPDX-License-Identifier: MIT
// The OpenMP executor, made where OpenMP is switched on.
#pragma once

#include <memory>

#include "lora/core/executor.hpp"

namespace lora::bench {

/// Null if this program was built without OpenMP.
[[nodiscard]] std::unique_ptr<Executor> make_openmp_executor(int threads);

/// One thread for every peer that runs on the OpenMP runtime of this process.
void use_one_openmp_thread();

}  // namespace lora::bench
