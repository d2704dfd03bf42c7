// SPDX-License-Identifier: MIT
// See src/README.md.
#include "lora/core/compiled.hpp"

namespace lora::detail {

template <int eigen_world, int eigen_major, int eigen_align_bytes, std::size_t index_bytes>
void compiled_for_this_eigen() noexcept {}

template void compiled_for_this_eigen<EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MAX_ALIGN_BYTES,
                                      sizeof(Eigen::Index)>() noexcept;

}  // namespace lora::detail
