// Data parallelism over MPI. Needs MPI; with CMake, find_package(lora COMPONENTS mpi) and lora::mpi.
#pragma once

#include "lora/dist/agreement.hpp"
#include "lora/dist/communicator.hpp"
#include "lora/dist/gradient_bucket.hpp"
#include "lora/dist/gradient_reducer.hpp"
#include "lora/dist/link_measurement.hpp"
#include "lora/dist/parameters.hpp"
#include "lora/dist/session.hpp"
#include "lora/dist/shard.hpp"
#include "lora/dist/traffic.hpp"
