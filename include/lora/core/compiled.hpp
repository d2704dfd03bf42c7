// SPDX-License-Identifier: MIT
// lora::compiled: the library's templates compiled once for float and double, and a check of what may link to it.
//
// With LORA_COMPILED the headers declare `extern template class X<float>;` for everything that src/ instantiates.
// Members that are defined outside their class and are not inline are then compiled only there.
#pragma once

#if defined(LORA_COMPILED)

#include <Eigen/Core>
#include <cstddef>

namespace lora::detail {

/// The compiled library defines this only for the Eigen it was built with. Eigen allocates and frees matrices
/// differently when EIGEN_MAX_ALIGN_BYTES differs, as it does with -mavx, and a program that mixes the two would crash.
/// It fails to link instead, with this name in the message.
template <int eigen_world, int eigen_major, int eigen_align_bytes, std::size_t index_bytes>
void compiled_for_this_eigen() noexcept;

[[gnu::used]] static void (*const requires_compiled_for)() noexcept =
    &compiled_for_this_eigen<EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MAX_ALIGN_BYTES, sizeof(Eigen::Index)>;

}  // namespace lora::detail

#endif
