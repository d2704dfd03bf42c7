// SPDX-License-Identifier: MIT
// LoraConv: a frozen convolution with trainable low-rank adapters.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "lora/layers/adapted_layer.hpp"
#include "lora/layers/conv_kind.hpp"
#include "lora/layers/frozen_weight_from.hpp"
#include "lora/weight/matrix_weight.hpp"

namespace lora {

/// y = W0 * x + bias + s B (A * drop(x)) over `Dim` spatial dimensions, where * convolves as torch.nn.Conv{1,2,3}d does
/// with zero padding, W0 is frozen, A is a convolution with W0's kernel, stride, padding and dilation to `rank`
/// channels, and B is a 1 x 1 convolution. Over the unfolded input these are LoraLinear's formula and gradients:
/// dB = s dY U^T with U = A drop(X), dA = V drop(X)^T with V = s B^T dY, dX = fold(W0^T dY) + drop'(fold(A^T V)).
/// With use_dora y = bias + (m/n) (.) (W0 * x + s B A * x), with a magnitude m per output channel and n the norms of
/// the rows of W0 + s B A, constants of the backward pass; with dropout m/n scales only the terms of drop(x), as in
/// adapter/dora.hpp.
///
/// Weights are matrices with the memory layout of PyTorch's tensors: W0 is out_channels x fan_in with fan_in =
/// in_channels / groups * product of the kernel, A is rank x fan_in, B is out_channels x rank / groups. Images have one
/// sample per row, samples x (channels * spatial), given with their extents, in any storage order (read in place); or,
/// with layers/tensor.hpp, they are row-major Eigen tensors (samples, channels, spatial...), which know their extents.
/// For the infer() in which each row chooses its adapter, pass matrices as `lora::Images{x, extents}`.
///
/// PEFT's convolution differs in two cases and agrees in all others. It ignores the dilation in A; and with groups its
/// A (rank x in_channels * kernel) sees all channels, so its update does not have W0's shape and cannot be merged. Here
/// A has the base's dilation, and with groups each part of A sees the channels of its group.
///
/// Forms of the passes and thread safety: see AdaptedLayer. Results depend neither on the number of workers nor, for
/// one sample's y and dx, on the other samples.
///
/// Source: Hu et al., "LoRA", arXiv 2106.09685, section 4; PEFT's tuners/lora/layer.py, _ConvNd.
template <RealScalar ScalarType, int Dim, ReadableWeight WeightType = MatrixWeight<ScalarType>>
class LoraConv : public AdaptedLayer<LoraConv<ScalarType, Dim, WeightType>, ConvKind<ScalarType, Dim>, WeightType> {
  using Shell = AdaptedLayer<LoraConv, ConvKind<ScalarType, Dim>, WeightType>;

 public:
  using Scalar = ScalarType;
  /// The kind of the frozen weight.
  using Weight = WeightType;
  /// Channels, kernel, stride, padding, dilation and groups.
  using Geometry = ConvGeometry<Dim>;
  /// The spatial extents of an image.
  using Extents = ImageExtents<Dim>;
  /// What a forward pass leaves for its backward pass.
  using Tape = typename Shell::Tape;

  /// Wraps a copy of `w0`, any Eigen matrix, map, block or expression of out_channels x fan_in. `bias` is a vector of
  /// out_channels. @throws ShapeError; ConfigError, also when the number of groups does not divide the channels and the
  /// rank; std::bad_alloc
  template <class W, class B>
  LoraConv(const Eigen::DenseBase<W>& w0, const Eigen::DenseBase<B>& bias, const Geometry& geometry,
           const LoraConfig& config, std::uint64_t seed)
      : LoraConv(weight_from<Weight>(w0, false), bias, geometry, config, seed) {}
  /// Without bias.
  template <class W>
  LoraConv(const Eigen::DenseBase<W>& w0, const Geometry& geometry, const LoraConfig& config, std::uint64_t seed)
      : LoraConv(weight_from<Weight>(w0, false), geometry, config, seed) {}

  /// Wraps a frozen weight of any kind that can be read, out_channels x fan_in.
  template <class B>
  LoraConv(Weight weight, const Eigen::DenseBase<B>& bias, const Geometry& geometry, const LoraConfig& config,
           std::uint64_t seed)
      : Shell(kind_of(weight, geometry), std::move(weight), config) {
    check_bias<Scalar, B>();
    this->set_base_bias(bias);
    this->start(config, seed);
  }
  /// Without bias.
  LoraConv(Weight weight, const Geometry& geometry, const LoraConfig& config, std::uint64_t seed)
      : Shell(kind_of(weight, geometry), std::move(weight), config) {
    this->start(config, seed);
  }

  /// The convolution that the frozen weight computes.
  [[nodiscard]] const Geometry& geometry() const noexcept { return this->kind().geometry(); }
  /// Channels of an input.
  [[nodiscard]] Index in_channels() const noexcept { return geometry().in_channels; }
  /// Channels of an output: rows of W0.
  [[nodiscard]] Index out_channels() const noexcept { return geometry().out_channels; }
  /// Extents of the output over an input of these extents. @throws ShapeError
  [[nodiscard]] Extents output_extents(const Extents& extents) const {
    return lora::output_extents("LoraConv::output_extents", geometry(), extents);
  }

  using Shell::forward;
  using Shell::infer;

  /// The passes of AdaptedLayer over a matrix of images, one sample per row.
  template <EigenDense Input>
  [[nodiscard]] auto infer(const Input& x, const Extents& extents) const {
    return infer(Images<Input, Dim>{x, extents});
  }
  /// Into `y`, samples x (out_channels * spatial). @throws ShapeError; StateError like AdaptedLayer::infer()
  template <EigenDense Input, class Output>
  void infer(const Input& x, const Extents& extents, Output&& y, Workspace& workspace) const {
    infer(Images<Input, Dim>{x, extents}, y, workspace);
  }
  /// The training pass with the caller's tape, into `y`. @throws ShapeError; StateError while anything is merged
  template <EigenDense Input, class Output>
  void forward(const Input& x, const Extents& extents, Tape& tape, Output&& y, Workspace& workspace) const {
    forward(Images<Input, Dim>{x, extents}, tape, y, workspace);
  }
  /// In training mode the pass that backward() continues, otherwise infer(). @throws ShapeError; StateError in training
  /// mode while merged
  template <EigenDense Input>
  auto forward(const Input& x, const Extents& extents) {
    return forward(Images<Input, Dim>{x, extents});
  }
  /// The same into `y`.
  template <EigenDense Input, class Output>
  void forward(const Input& x, const Extents& extents, Output&& y) {
    forward(Images<Input, Dim>{x, extents}, y);
  }

 private:
  [[nodiscard]] static ConvKind<Scalar, Dim> kind_of(const Weight& weight, const Geometry& geometry) {
    check_geometry("LoraConv", geometry);
    if (weight.out_features() != geometry.out_channels || weight.in_features() != geometry.fan_in()) {
      throw ShapeError("LoraConv", "weight", shape_text(geometry.out_channels, geometry.fan_in()),
                       shape_text(weight.out_features(), weight.in_features()));
    }
    return ConvKind<Scalar, Dim>(geometry);
  }
};

/// Over sequences: samples x (channels * length).
template <RealScalar Scalar>
using LoraConv1d = LoraConv<Scalar, 1>;
/// Over images: samples x (channels * height * width).
template <RealScalar Scalar>
using LoraConv2d = LoraConv<Scalar, 2>;
/// Over volumes: samples x (channels * depth * height * width).
template <RealScalar Scalar>
using LoraConv3d = LoraConv<Scalar, 3>;

#if defined(LORA_COMPILED)
extern template class LayerCore<ConvKind<float, 1>>;
extern template class LayerCore<ConvKind<float, 2>>;
extern template class LayerCore<ConvKind<float, 3>>;
extern template class LayerCore<ConvKind<double, 1>>;
extern template class LayerCore<ConvKind<double, 2>>;
extern template class LayerCore<ConvKind<double, 3>>;
#endif

}  // namespace lora
