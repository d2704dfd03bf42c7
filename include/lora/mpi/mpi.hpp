// SPDX-License-Identifier: MIT
// Data parallelism over MPI. Needs MPI; with CMake, find_package(lora COMPONENTS mpi) and lora::mpi.
#pragma once

#include "lora/mpi/agreement.hpp"
#include "lora/mpi/communicator.hpp"
#include "lora/mpi/gradient_bucket.hpp"
#include "lora/mpi/gradient_reducer.hpp"
#include "lora/mpi/parameters.hpp"
#include "lora/mpi/session.hpp"
#include "lora/mpi/shard.hpp"
