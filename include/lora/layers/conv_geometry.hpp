// SPDX-License-Identifier: MIT
// The shape of a convolution: channels, kernel, stride, padding, dilation, groups, and what follows from them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/kernels/unfold.hpp"
#include "lora/layers/images.hpp"

namespace lora {

namespace detail {

/// The extents of one element.
template <int Dim>
inline constexpr ImageExtents<Dim> ones = [] {
  ImageExtents<Dim> result{};
  for (Index& extent : result) extent = 1;
  return result;
}();

}  // namespace detail

/// A convolution over `Dim` spatial dimensions, with PyTorch's terms and meaning. Zeros pad both ends of a dimension
/// equally. Channels are split into `groups` equal parts; the output channels of a part see the input channels of that
/// part. A plain aggregate: `ConvGeometry<2>{.in_channels = 3, .out_channels = 8, .kernel = {3, 3}, .padding = {1,
/// 1}}`.
template <int Dim>
struct ConvGeometry {
  static_assert(Dim >= 1 && Dim <= 3, "lora: a convolution has 1, 2 or 3 spatial dimensions");
  /// One number for each spatial dimension.
  using Extents = ImageExtents<Dim>;

  Index in_channels = 1;                 ///< of an input
  Index out_channels = 1;                ///< of an output
  Extents kernel = detail::ones<Dim>;    ///< taps in each dimension
  Extents stride = detail::ones<Dim>;    ///< elements between outputs
  Extents padding{};                     ///< zeros at each end
  Extents dilation = detail::ones<Dim>;  ///< elements between taps
  Index groups = 1;                      ///< divides both numbers of channels

  /// Input channels of a group.
  [[nodiscard]] Index group_inputs() const noexcept { return in_channels / groups; }
  /// Output channels of a group.
  [[nodiscard]] Index group_outputs() const noexcept { return out_channels / groups; }
  /// Elements of the kernel.
  [[nodiscard]] Index taps() const noexcept { return detail::saturated_product(1, kernel); }
  /// Columns of the weight as a matrix with out_channels rows: in_channels / groups * product of the kernel's extents.
  [[nodiscard]] Index fan_in() const noexcept { return detail::saturated_product(group_inputs(), kernel); }

  /// Whether all members are equal.
  friend bool operator==(const ConvGeometry&, const ConvGeometry&) = default;
};

/// @throws ConfigError naming the first number that is out of range, or not divisible by the number of groups.
template <int Dim>
void check_geometry(std::string_view operation, const ConvGeometry<Dim>& geometry) {
  constexpr Index most = std::numeric_limits<std::int32_t>::max();
  const auto in_range = [&](const char* name, Index value, Index least) {
    if (value >= least && value <= most) return;
    throw ConfigError(operation, name, detail::joined({std::to_string(least), " to 2^31 - 1"}), std::to_string(value));
  };
  in_range("in_channels", geometry.in_channels, 1);
  in_range("out_channels", geometry.out_channels, 1);
  in_range("groups", geometry.groups, 1);
  for (std::size_t d = 0; d < static_cast<std::size_t>(Dim); ++d) {
    in_range("kernel", geometry.kernel[d], 1);
    in_range("stride", geometry.stride[d], 1);
    in_range("padding", geometry.padding[d], 0);
    in_range("dilation", geometry.dilation[d], 1);
  }
  const auto divided = [&](const char* name, Index channels) {
    if (channels % geometry.groups == 0) return;
    throw ConfigError(operation, name, detail::joined({"a multiple of ", std::to_string(geometry.groups), " groups"}),
                      std::to_string(channels));
  };
  divided("in_channels", geometry.in_channels);
  divided("out_channels", geometry.out_channels);
}

/// Extents of the output over an input of extents `input`: floor((input + 2 padding - reach) / stride) + 1, where
/// reach = dilation * (kernel - 1) + 1; below 1 if the kernel reaches beyond the padded input.
template <int Dim>
[[nodiscard]] ImageExtents<Dim> unchecked_output_extents(const ConvGeometry<Dim>& geometry,
                                                         const ImageExtents<Dim>& input) noexcept {
  ImageExtents<Dim> output{};
  for (std::size_t d = 0; d < static_cast<std::size_t>(Dim); ++d) {
    const Index room = input[d] + 2 * geometry.padding[d] - geometry.dilation[d] * (geometry.kernel[d] - 1) - 1;
    output[d] = room < 0 ? 0 : room / geometry.stride[d] + 1;
  }
  return output;
}

/// Whether images of these extents give an output.
template <int Dim>
[[nodiscard]] bool takes_extents(const ConvGeometry<Dim>& geometry, const ImageExtents<Dim>& input) noexcept {
  for (std::size_t d = 0; d < static_cast<std::size_t>(Dim); ++d) {
    if (input[d] < 0 || input[d] > std::numeric_limits<Index>::max() / 4) return false;
    if (input[d] + 2 * geometry.padding[d] <= geometry.dilation[d] * (geometry.kernel[d] - 1)) return false;
  }
  return true;
}

/// unchecked_output_extents(). @throws ShapeError when the kernel reaches beyond the padded input.
template <int Dim>
[[nodiscard]] ImageExtents<Dim> output_extents(std::string_view operation, const ConvGeometry<Dim>& geometry,
                                               const ImageExtents<Dim>& input) {
  if (takes_extents(geometry, input)) return unchecked_output_extents(geometry, input);
  ImageExtents<Dim> reach{};
  ImageExtents<Dim> padded{};
  for (std::size_t d = 0; d < static_cast<std::size_t>(Dim); ++d) {
    if (input[d] < 0 || input[d] > std::numeric_limits<Index>::max() / 4) {
      throw ShapeError(operation, "extents", "0 or more each, of which an array can be", extents_text(input));
    }
    reach[d] = geometry.dilation[d] * (geometry.kernel[d] - 1) + 1;
    padded[d] = input[d] + 2 * geometry.padding[d];
  }
  throw ShapeError(operation, "extents", detail::joined({"at least ", extents_text(reach), ", which the kernel spans"}),
                   detail::joined({extents_text(input), ", padded to ", extents_text(padded)}));
}

/// The walk over images of extents `input`. Pre: output_extents accepts them.
template <int Dim>
[[nodiscard]] kernels::ImageWalk image_walk(const ConvGeometry<Dim>& geometry, const ImageExtents<Dim>& input,
                                            const ImageExtents<Dim>& output) noexcept {
  kernels::ImageWalk walk;
  const auto copied = [](const auto& from, auto& to) { std::copy(from.begin(), from.end(), to.end() - Dim); };
  copied(input, walk.input);
  copied(output, walk.output);
  copied(geometry.kernel, walk.kernel);
  copied(geometry.stride, walk.stride);
  copied(geometry.padding, walk.padding);
  copied(geometry.dilation, walk.dilation);
  return walk.simplified();
}

}  // namespace lora
