// SPDX-License-Identifier: MIT
// Writes one adapter as the folder that PEFT's from_pretrained loads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/types.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/file_descriptor.hpp"
#include "lora/io/peft_config_writer.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/peft_tensors.hpp"
#include "lora/io/safetensors_writer.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

/// Options of write_peft_directory. A plain aggregate.
struct PeftWriteOptions {
  std::optional<Dtype> dtype = std::nullopt;  ///< F64, F32, F16 or BF16; by default that of the adapter's scalar
  bool overwrite = false;                     ///< replace an existing adapter
  std::string adapter = "default";            ///< any other name goes to a folder of that name
};

namespace detail {

inline constexpr std::string_view write_peft = "write_peft_directory";

/// A tensor to be written: its description in the file, and a reference to its values.
template <RealScalar Scalar>
struct PeftOutput {
  PeftTensor tensor;
  std::span<const Scalar> values;
  Matrix<Scalar> made = {};  ///< owns the values if the adapter does not hold them as PEFT does
};

template <RealScalar Scalar>
[[nodiscard]] std::string module_shape_problem(const ModuleWeights<Scalar>& module) {
  const std::size_t dimensions = module.kind == ModuleKind::conv1d   ? 1
                                 : module.kind == ModuleKind::conv2d ? 2
                                 : module.kind == ModuleKind::conv3d ? 3
                                                                     : 0;
  if (module.kernel_size.size() != dimensions) {
    return "expected " + std::to_string(dimensions) + " extents of the kernel, got " + shape_text(module.kernel_size);
  }
  Index in = module.A.cols();
  for (const Index extent : module.kernel_size) {
    if (extent < 1 || in % extent != 0) {
      return "expected a kernel whose elements divide A's " + std::to_string(module.A.cols()) + " columns, got " +
             shape_text(module.kernel_size);
    }
    in /= extent;
  }
  return {};
}

/// All tensors of an adapter by the names PEFT writes. @throws ShapeError for kernels and saved values that do not fit.
template <RealScalar Scalar>
[[nodiscard]] std::vector<PeftOutput<Scalar>> peft_outputs(const AdapterWeights<Scalar>& weights, Dtype dtype) {
  std::vector<PeftOutput<Scalar>> outputs;
  const auto put = [&](std::string name, std::vector<Index> shape, const auto& values) {
    outputs.push_back({{std::move(name), dtype, std::move(shape)},
                       std::span<const Scalar>(values.data(), static_cast<std::size_t>(values.size()))});
  };
  for (const auto& [name, module] : weights.modules) {
    const std::string problem = module_shape_problem(module);
    if (!problem.empty()) throw ShapeError(write_peft, "module " + in_quotes(name), "a module of its kind", problem);
    const bool embedding = module.kind == ModuleKind::embedding;
    PeftShapes shapes = peft_shapes(module);
    put(peft_name(embedding ? PeftPart::embedding_A : PeftPart::lora_A, name), std::move(shapes.A), module.A);
    if (const Index groups = peft_groups(module); groups > 1) {
      PeftOutput<Scalar>& A = outputs.back();
      A.made = widen_groups(module.A, groups);
      A.values = {A.made.data(), static_cast<std::size_t>(A.made.size())};
    }
    put(peft_name(embedding ? PeftPart::embedding_B : PeftPart::lora_B, name), std::move(shapes.B), module.B);
    if (module.lora_bias.size() > 0) {
      put(peft_name(PeftPart::lora_bias, name), std::move(shapes.lora_bias), module.lora_bias);
    }
    if (module.magnitude.size() > 0) {
      put(peft_name(PeftPart::magnitude, name), std::move(shapes.magnitude), module.magnitude);
    }
  }
  for (const auto& [name, saved] : weights.saved) {
    const auto [module, parameter] = split_parameter(name);
    const bool adapted = weights.modules.contains(std::string(module));
    const std::string written =
        adapted ? std::string(module).append(".base_layer.").append(parameter) : std::string(name);
    put(peft_name(PeftPart::saved, written), saved.shape, saved.values);
    std::size_t size = 1;
    for (const Index extent : saved.shape) size *= static_cast<std::size_t>(extent);
    if (size != saved.values.size()) {
      throw ShapeError(write_peft, "saved tensor " + in_quotes(name), "values of shape " + shape_text(saved.shape),
                       std::to_string(saved.values.size()) + " values");
    }
  }
  return outputs;
}

/// All reasons why PEFT would not load the adapter as it is in memory.
template <RealScalar Scalar>
void check_peft_weights(const LoraModelConfig& config, const AdapterWeights<Scalar>& weights,
                        const std::vector<PeftOutput<Scalar>>& outputs) {
  std::vector<PeftTensor> tensors;
  for (const auto& output : outputs) tensors.push_back(output.tensor);
  const ModuleMatcher matcher = matcher_of_tensors(config, write_peft);
  PeftInventory inventory = take_peft_inventory(config, matcher, tensors);
  std::vector<std::string> problems = std::move(inventory.problems);
  if (weights.modules.empty()) problems.emplace_back("there is no module in the adapter");
  for (const std::string& module : untargeted_modules(config, weights).value_or(std::vector<std::string>())) {
    problems.push_back("module " + in_quotes(module) + " is not among target_modules");
  }
  for (const auto& [name, saved] : weights.saved) {
    if (!inventory.saved.contains(name)) {
      problems.push_back("saved " + in_quotes(name) + " has a name PEFT reads otherwise");
    }
  }
  for (const auto& [name, module] : weights.modules) {
    const double scaling = matcher.config_for(name).scaling();
    if (!same_scaling(module.scaling, scaling)) {
      problems.push_back("module " + in_quotes(name) + " has scaling " + number_text(module.scaling) + ", alpha and " +
                         "rank of the configuration give " + number_text(scaling));
    }
    if (module.kind == ModuleKind::linear && module.qalora_group_size != config.lora.group_size()) {
      problems.push_back("module " + in_quotes(name) + " has qalora_group_size " +
                         std::to_string(module.qalora_group_size) + ", the configuration gives " +
                         std::to_string(config.lora.group_size()) + " (0 is without use_qalora)");
    }
  }
  if (!problems.empty()) {
    throw ConfigError(write_peft, "adapter", "the weights that its configuration describes", problems_text(problems));
  }
}

/// The smallest magnitude that rounds to infinity in a dtype.
[[nodiscard]] inline double overflow_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::F16:
      return 65520.0;
    case Dtype::BF16:
      return std::ldexp(2.0 - std::ldexp(1.0, -8), 127);
    case Dtype::F32:
      return std::ldexp(2.0 - std::ldexp(1.0, -24), 127);
    default:
      return std::numeric_limits<double>::infinity();
  }
}

template <RealScalar Scalar>
void check_representable(const std::vector<PeftOutput<Scalar>>& outputs, Dtype dtype) {
  const double limit = overflow_of(dtype);
  const auto overflows = [&](Scalar value) {
    return is_finite(value) && std::abs(static_cast<double>(value)) >= limit;
  };
  for (const auto& output : outputs) {
    const auto found = std::find_if(output.values.begin(), output.values.end(), overflows);
    if (found != output.values.end()) {
      throw ConfigError(write_peft, "tensor " + in_quotes(output.tensor.name),
                        "values that are finite in " + std::string(name_of(dtype)), number_text(*found));
    }
  }
}

inline void refuse_existing(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::exists(std::filesystem::symlink_status(path, ignored))) {
    throw IoError(write_peft, path_text(path), "no such file, or overwrite = true", "a file that exists");
  }
}

}  // namespace detail

/// Writes an adapter so that PEFT loads it; creates the folder if it does not exist. Values are rounded once to the
/// dtype. Each file is replaced as a whole or not at all, and the configuration last: if it is there, the tensors are
/// there too. An adapter that does not fit its configuration is refused before any file is touched.
/// @throws ShapeError, ConfigError listing what PEFT would not load or would load differently, IoError; ConfigError for
/// values that the dtype turns into infinities; SafetensorsError for names that are not UTF-8
template <RealScalar Scalar>
void write_peft_directory(const std::filesystem::path& directory, const LoraModelConfig& config,
                          const AdapterWeights<Scalar>& weights, const PeftWriteOptions& options = {}) {
  const Dtype dtype = options.dtype.value_or(dtype_of<Scalar>);
  if (!converts_to_real(dtype)) {
    throw ConfigError(detail::write_peft, "dtype", "F64, F32, F16 or BF16", name_of(dtype));
  }
  const std::filesystem::path folder = peft_adapter_path(directory, options.adapter);
  const std::string config_text = peft_config_text(config);
  const auto outputs = detail::peft_outputs(weights, dtype);
  detail::check_peft_weights(config, weights, outputs);
  detail::check_representable(outputs, dtype);
  SafetensorsWriter writer;
  writer.add_metadata("format", "pt");
  for (const auto& [tensor, values, made] : outputs) {
    const Eigen::Map<const RowVector<Scalar>> row(values.data(), static_cast<Index>(values.size()));
    writer.add(tensor.name, row, tensor.shape, dtype);
  }

  const std::filesystem::path config_path = folder / peft_config_file;
  const std::filesystem::path tensors_path = folder / peft_tensors_file;
  if (!options.overwrite) {
    detail::refuse_existing(config_path);
    detail::refuse_existing(tensors_path);
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw_io_error(detail::write_peft, folder, "to make the folder", error.value());
  AtomicFile config_file(config_path);
  config_file.write(std::as_bytes(std::span(config_text)));
  writer.write(tensors_path);
  config_file.commit();
}

/// Writes the configuration and weights of `adapter`, as above.
template <RealScalar Scalar>
void write_peft_directory(const std::filesystem::path& directory, const PeftAdapter<Scalar>& adapter,
                          const PeftWriteOptions& options = {}) {
  write_peft_directory(directory, adapter.config, adapter.weights, options);
}

}  // namespace lora
