// SPDX-License-Identifier: MIT
// The task of the fashion_mnist example: a network trained on the data as shipped meets rotated and inverted images.
#pragma once

#include <filesystem>
#include <string>

#include "common/dataset.hpp"
#include "common/interrupt.hpp"
#include "common/progress.hpp"
#include "common/trainer.hpp"
#include "common/transform.hpp"
#include "intrinsic_dimension/subspace.hpp"
#include "lora/optim/moments.hpp"

namespace examples::intrinsic_dimension {

/// Images to train on, to choose learning rates by, and to measure with.
struct ImageSplit {
  ImageSet train;
  ImageSet validation;  ///< from the end of the training set
  ImageSet test;
};

/// @throws lora::IoError, lora::FormatError
[[nodiscard]] inline ImageSplit load_images(const std::filesystem::path& folder, Index train, Index validation) {
  const FashionMnist data = read_fashion_mnist(folder);
  if (data.train.count() < train + validation || data.train.image_size() != 784 || data.test.image_size() != 784) {
    throw lora::FormatError("intrinsic_dimension", folder.string(),
                            "at least " + std::to_string(train + validation) + " training images of 28 x 28",
                            std::to_string(data.train.count()) + " of " + std::to_string(data.train.height) + " x " +
                                std::to_string(data.train.width));
  }
  return {data.train.slice(0, train), data.train.slice(data.train.count() - validation, validation), data.test};
}

[[nodiscard]] inline ImageSplit changed(const ImageSplit& images) {
  const auto change = [](const ImageSet& set) { return invert(rotate_quarter_turn(set)); };
  return {change(images.train), change(images.validation), change(images.test)};
}

/// The network theta_0, without the optimiser's memories of its training. @throws Interrupted
[[nodiscard]] inline DenseNetwork pretrain(const ImageSet& set, const TrainingOptions& options) {
  auto network = random_mlp<float>({784, 512, 256, fashion_mnist_classes}, options.seed);
  Progress progress("Pretraining 784-512-256-10", step_count(set, options));
  train(network, set, options, [&] {
    progress.advance();
    throw_if_interrupted();
  });
  lora::reset_moments(network.parameters());
  return network;
}

[[nodiscard]] inline double accuracy_on(const auto& network, const ImageSet& set) {
  return accuracy(logits_of(network, set), set.labels);
}

}  // namespace examples::intrinsic_dimension
