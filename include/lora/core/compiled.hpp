// lora::compiled, the library's templates compiled once for float and double, and who may be linked with it.
//
// With LORA_COMPILED the headers declare `extern template class X<float>;` for what src/ instantiates. The members that
// are defined outside of their class, and not inline, are then compiled nowhere else.
#pragma once

#if defined(LORA_COMPILED)

#include <Eigen/Core>
#include <cstddef>

namespace lora::detail {

/// Defined in the compiled library for the Eigen that it was built with, and for no other. Eigen's matrices take and
/// free memory in different ways when EIGEN_MAX_ALIGN_BYTES differs, as it does with -mavx: a program compiled so would
/// crash. It fails to link instead, with this name in the message.
template <int eigen_world, int eigen_major, int eigen_align_bytes, std::size_t index_bytes>
void compiled_for_this_eigen() noexcept;

[[gnu::used]] static void (*const requires_compiled_for)() noexcept =
    &compiled_for_this_eigen<EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MAX_ALIGN_BYTES, sizeof(Eigen::Index)>;

}  // namespace lora::detail

#endif
