// SPDX-License-Identifier: MIT
// The tensors of adapter_model.safetensors: their names, which ones belong to one module, and their required shapes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/peft_config.hpp"
#include "lora/io/text.hpp"
#include "lora/model/adapter_weights.hpp"
#include "lora/model/model_config.hpp"

namespace lora {

/// What one tensor of a file is to its module; `of_training` changes no answer and is skipped.
enum class PeftPart : std::uint8_t {
  lora_A,
  lora_B,
  lora_bias,
  embedding_A,
  embedding_B,
  magnitude,
  of_training,
  saved
};

namespace detail {

inline constexpr std::string_view peft_prefix = "base_model.model.";

struct PeftSuffix {
  std::string_view text;
  PeftPart part;
};

/// The first suffix of each part is the one PEFT writes. A few versions add ".weight" to the DoRA magnitude.
inline constexpr std::array<PeftSuffix, 8> peft_suffixes{{{".lora_A.weight", PeftPart::lora_A},
                                                          {".lora_B.weight", PeftPart::lora_B},
                                                          {".lora_B.bias", PeftPart::lora_bias},
                                                          {".lora_embedding_A", PeftPart::embedding_A},
                                                          {".lora_embedding_B", PeftPart::embedding_B},
                                                          {".lora_magnitude_vector", PeftPart::magnitude},
                                                          {".lora_magnitude_vector.weight", PeftPart::magnitude},
                                                          {".lora_velora_embed", PeftPart::of_training}}};

}  // namespace detail

/// A tensor's name in a file, split into parts.
struct PeftTensorName {
  PeftPart part = PeftPart::saved;
  std::string_view name;  ///< name of the module, or of a tensor that is saved whole: "head.weight"
};

/// Splits a name; the result is valid as long as `name`. Nothing if the name is not one of PEFT's for LoRA.
[[nodiscard]] inline std::optional<PeftTensorName> parse_peft_name(std::string_view name) noexcept {
  if (!name.starts_with(detail::peft_prefix)) return std::nullopt;
  name.remove_prefix(detail::peft_prefix.size());
  for (const auto& [suffix, part] : detail::peft_suffixes) {
    if (name.size() > suffix.size() && name.ends_with(suffix)) {
      return PeftTensorName{part, name.substr(0, name.size() - suffix.size())};
    }
  }
  // An unknown LoRA part, or one with the adapter's name in it, is not a tensor of the model.
  std::string_view rest = name;
  for (int segments = 0; segments < 3 && !rest.empty(); ++segments) {
    const std::size_t dot = rest.rfind('.');
    const std::string_view last = dot == std::string_view::npos ? rest : rest.substr(dot + 1);
    if (last.starts_with("lora_")) return std::nullopt;
    rest = dot == std::string_view::npos ? std::string_view() : rest.substr(0, dot);
  }
  if (name.empty()) return std::nullopt;
  return PeftTensorName{PeftPart::saved, name};
}

/// The name PEFT writes: of a module's part, or of a tensor saved whole.
[[nodiscard]] inline std::string peft_name(PeftPart part, std::string_view name) {
  std::string text(detail::peft_prefix);
  text.append(name);
  for (const detail::PeftSuffix& suffix : detail::peft_suffixes) {
    if (suffix.part == part) return text.append(suffix.text);
  }
  return text;
}

/// A tensor as described in a file.
struct PeftTensor {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<Index> shape;
};

/// The tensors of one module, by their positions in the list they come from.
struct PeftModule {
  ModuleKind kind = ModuleKind::linear;
  std::size_t A = 0;
  std::size_t B = 0;
  std::optional<std::size_t> lora_bias;
  std::optional<std::size_t> magnitude;
};

/// A file's tensors, grouped by what they belong to.
struct PeftInventory {
  std::map<std::string, PeftModule> modules;  ///< modules in which everything fits
  std::map<std::string, std::size_t> saved;   ///< by the name in the model: "q_proj.bias", "head.weight"
  std::vector<std::string> problems;          ///< what is missing, extra, misshapen or of the wrong type, one line each
};

namespace detail {

/// "a.b" and "weight" of "a.b.weight"
[[nodiscard]] inline std::pair<std::string_view, std::string_view> split_parameter(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {{}, name};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

/// Sorts tensors into modules and checks them against a configuration.
class PeftInventoryMaker {
 public:
  PeftInventoryMaker(const LoraModelConfig& config, const ModuleMatcher& matcher, std::span<const PeftTensor> tensors)
      : config_(config), matcher_(matcher), tensors_(tensors) {}

  [[nodiscard]] PeftInventory make() {
    for (std::size_t i = 0; i < tensors_.size(); ++i) sort_in(i);
    for (const auto& [module, parts] : parts_) take_module(module, parts);
    for (const auto& [name, i] : second_choice_) inventory_.saved.try_emplace(name, i);
    for (const auto& [name, i] : inventory_.saved) check_saved(name, i);
    return std::move(inventory_);
  }

 private:
  using Parts = std::array<std::optional<std::size_t>, 6>;

  [[nodiscard]] static constexpr std::size_t position(PeftPart part) noexcept { return static_cast<std::size_t>(part); }

  void sort_in(std::size_t i) {
    const PeftTensor& tensor = tensors_[i];
    const auto parsed = parse_peft_name(tensor.name);
    if (!parsed) {
      report(i, "is no tensor of PEFT's LoRA (" + std::string(peft_prefix) + "<module>.lora_A.weight, ...)");
    } else if (parsed->part == PeftPart::of_training) {
      return;
    } else if (!converts_to_real(tensor.dtype)) {
      report(i, "expected F64, F32, F16 or BF16, got " + std::string(name_of(tensor.dtype)));
    } else if (parsed->part == PeftPart::saved) {
      sort_in_saved(i, parsed->name);
    } else {
      auto& place = parts_[std::string(parsed->name)][position(parsed->part)];
      if (place) report(i, "is there under another name too: " + in_quotes(tensors_[*place].name));
      place = i;
    }
  }

  // In PEFT an adapted layer contains its base layer, and a saved module contains the original and the trained copy;
  // with bias = "all" PEFT writes the biases of all three.
  void sort_in_saved(std::size_t i, std::string_view name) {
    constexpr std::string_view base_layer = ".base_layer.";
    const std::size_t base = name.rfind(base_layer);
    if (base != std::string_view::npos && name.find('.', base + base_layer.size()) == std::string_view::npos) {
      save(i, std::string(name.substr(0, base + 1)).append(name.substr(base + base_layer.size())));
      return;
    }
    for (const std::string_view wrapper : {".original_module.", ".modules_to_save."}) {
      const std::size_t inner = name.find(wrapper);
      if (inner == std::string_view::npos || !matcher_.saves(name.substr(0, inner))) continue;
      if (wrapper == ".modules_to_save.") {
        second_choice_.emplace(std::string(name.substr(0, inner + 1)).append(name.substr(inner + wrapper.size())), i);
      }
      return;
    }
    save(i, std::string(name));
  }

  void save(std::size_t i, std::string name) {
    const auto [place, inserted] = inventory_.saved.try_emplace(std::move(name), i);
    if (!inserted) report(i, "is there under another name too: " + in_quotes(tensors_[place->second].name));
  }

  void take_module(const std::string& module, const Parts& parts) {
    const bool embedding = parts[position(PeftPart::embedding_A)] || parts[position(PeftPart::embedding_B)];
    const PeftPart part_A = embedding ? PeftPart::embedding_A : PeftPart::lora_A;
    const PeftPart part_B = embedding ? PeftPart::embedding_B : PeftPart::lora_B;
    const std::size_t before = inventory_.problems.size();
    for (const PeftPart wanted : {part_A, part_B}) {
      if (!parts[position(wanted)]) report_missing(module, parts, peft_name(wanted, module));
    }
    if (embedding) {
      report_extra(parts[position(PeftPart::lora_A)], "belongs to no embedding");
      report_extra(parts[position(PeftPart::lora_B)], "belongs to no embedding");
    }
    PeftModule taken;
    taken.lora_bias = parts[position(PeftPart::lora_bias)];
    taken.magnitude = parts[position(PeftPart::magnitude)];
    const bool with_bias = config_.lora.lora_bias && !embedding;
    if (with_bias && !taken.lora_bias) report_missing(module, parts, peft_name(PeftPart::lora_bias, module));
    if (!with_bias) report_extra(taken.lora_bias, embedding ? "belongs to no embedding" : "needs lora_bias = true");
    if (config_.lora.use_dora && !taken.magnitude) {
      report_missing(module, parts, peft_name(PeftPart::magnitude, module));
    }
    if (!config_.lora.use_dora) report_extra(taken.magnitude, "needs use_dora = true");
    if (inventory_.problems.size() != before) return;

    taken.A = *parts[position(part_A)];
    taken.B = *parts[position(part_B)];
    const std::size_t dimensions = tensors_[taken.A].shape.size();
    if (dimensions < 2 || dimensions > (embedding ? 2U : 5U)) {
      report(taken.A, embedding ? "expected two dimensions" : "expected two to five dimensions");
      return;
    }
    constexpr std::array<ModuleKind, 4> kinds{ModuleKind::linear, ModuleKind::conv1d, ModuleKind::conv2d,
                                              ModuleKind::conv3d};
    taken.kind = embedding ? ModuleKind::embedding : kinds[dimensions - 2];
    check_shapes(taken, matcher_.config_for(module).rank);
    if (inventory_.problems.size() == before) inventory_.modules.emplace(module, taken);
  }

  // With D dimensions, A is (rank, in, kernel...), B (out, rank, 1...), the bias (out), the magnitude (out) or, for a
  // convolution, (1, out, 1...). A convolution with groups has a B of (out, rank / groups, 1...). A free extent is -1.
  void check_shapes(const PeftModule& module, Index rank) {
    const std::vector<Index>& A = tensors_[module.A].shape;
    std::vector<Index> wanted_A(A.size(), -1);
    wanted_A[0] = rank;
    std::vector<Index> wanted_B(A.size(), 1);
    wanted_B[0] = -1;
    wanted_B[1] = rank / groups(module, rank);
    const bool fits_A = check_shape(module.A, wanted_A, rank);
    const bool fits_B = check_shape(module.B, wanted_B, rank);
    if (!fits_A || !fits_B) return;
    const Index out = tensors_[module.B].shape[0];
    if (module.lora_bias) check_shape(*module.lora_bias, {out}, rank);
    if (module.magnitude) {
      std::vector<Index> wanted{out};
      if (A.size() > 2) wanted.insert(wanted.begin(), 1);
      if (A.size() > 2) wanted.insert(wanted.end(), A.size() - 2, 1);
      check_shape(*module.magnitude, wanted, rank);
    }
  }

  /// What B says of a convolution's groups; 1 if it says nothing sensible.
  [[nodiscard]] Index groups(const PeftModule& module, Index rank) const {
    const std::vector<Index>& B = tensors_[module.B].shape;
    if (B.size() < 3 || B[1] < 1 || rank % B[1] != 0) return 1;
    const Index groups = rank / B[1];
    return B[0] % groups == 0 && tensors_[module.A].shape[1] % groups == 0 ? groups : 1;
  }

  bool check_shape(std::size_t i, const std::vector<Index>& wanted, Index rank) {
    const std::vector<Index>& shape = tensors_[i].shape;
    const auto fits = [](Index want, Index got) { return want < 0 ? got > 0 : want == got; };
    if (std::equal(wanted.begin(), wanted.end(), shape.begin(), shape.end(), fits)) return true;
    std::string text = "expected [";
    for (std::size_t d = 0; d < wanted.size(); ++d) {
      text.append(d > 0 ? ", " : "").append(wanted[d] < 0 ? "n" : std::to_string(wanted[d]));
    }
    report(i, text + "] at rank " + std::to_string(rank) + ", got " + shape_text(shape));
    return false;
  }

  void check_saved(const std::string& name, std::size_t i) {
    const auto [module, parameter] = split_parameter(name);
    const auto [outer, last] = split_parameter(module);
    const bool is_bias = parameter == "bias";
    const bool trained_bias = is_bias && (config_.lora.bias == BiasMode::all ||
                                          (config_.lora.bias == BiasMode::lora_only && parts_.contains(module)));
    // PEFT saves these with an adapter when they are targeted or were resized, whatever the configuration says.
    const bool embedding = last == "embed_tokens" || last == "lm_head";
    if (!trained_bias && !embedding && !matcher_.saves(module)) {
      report(i, "belongs to no module to save and is no bias that trains with bias = " +
                    std::string(peft_name_of(peft_bias_modes, config_.lora.bias)));
    }
  }

  void report(std::size_t i, const std::string& text) {
    inventory_.problems.push_back(in_quotes(tensors_[i].name) + " " + shape_text(tensors_[i].shape) + " " + text);
  }
  void report_extra(std::optional<std::size_t> i, const std::string& text) {
    if (i) report(*i, text);
  }
  void report_missing(const std::string& module, const Parts& parts, const std::string& name) {
    const auto present = std::find_if(parts.begin(), parts.end(), [](const auto& part) { return part.has_value(); });
    std::string text = in_quotes(name) + " is missing from module " + in_quotes(module);
    if (present != parts.end()) text += ", which has " + in_quotes(tensors_[**present].name);
    inventory_.problems.push_back(text);
  }

  const LoraModelConfig& config_;
  const ModuleMatcher& matcher_;
  std::span<const PeftTensor> tensors_;
  std::map<std::string, Parts, std::less<>> parts_;
  std::map<std::string, std::size_t> second_choice_;
  PeftInventory inventory_;
};

}  // namespace detail

/// Sorts tensors into modules and tensors saved whole, and lists what does not fit the configuration: a part without
/// its partner, names that are not PEFT's, shapes or ranks other than the configuration's (after rank_pattern), types
/// other than real numbers, parts of options that are off. `matcher` is built from `config`, whose target_modules are
/// ignored here. A tensor saved whole for no reason in the configuration is in both `saved` and `problems`. @throws
/// ConfigError like NamePattern::matches
[[nodiscard]] inline PeftInventory take_peft_inventory(const LoraModelConfig& config, const ModuleMatcher& matcher,
                                                       std::span<const PeftTensor> tensors) {
  return detail::PeftInventoryMaker(config, matcher, tensors).make();
}

/// The groups of a convolution, whose B is out_channels x (rank / groups); 1 for everything else.
template <RealScalar Scalar>
[[nodiscard]] Index peft_groups(const ModuleWeights<Scalar>& module) noexcept {
  const Index own = module.B.cols();
  return !module.kernel_size.empty() && own > 0 && module.rank() % own == 0 ? module.rank() / own : 1;
}

/// PEFT's A of a convolution with groups sees all channels, this library's those of its group: rows of that A within
/// rows of `groups` times the length, zero elsewhere.
template <RealScalar Scalar>
[[nodiscard]] Matrix<Scalar> widen_groups(const Matrix<Scalar>& A, Index groups) {
  Matrix<Scalar> wide = Matrix<Scalar>::Zero(A.rows(), groups * A.cols());
  for (Index row = 0; row < A.rows(); ++row) {
    wide.row(row).segment(row * groups / A.rows() * A.cols(), A.cols()) = A.row(row);
  }
  return wide;
}

/// The inverse; an empty matrix if a value elsewhere is not zero.
template <RealScalar Scalar>
[[nodiscard]] Matrix<Scalar> narrow_groups(Matrix<Scalar> wide, Index groups) {
  Matrix<Scalar> A(wide.rows(), wide.cols() / groups);
  for (Index row = 0; row < A.rows(); ++row) {
    auto own = wide.row(row).segment(row * groups / A.rows() * A.cols(), A.cols());
    A.row(row) = own;
    own.setZero();
  }
  return (wide.array() == Scalar(0)).all() ? A : Matrix<Scalar>();
}

/// The shapes of a module's tensors in a file: A, B, the bias and the magnitude.
struct PeftShapes {
  std::vector<Index> A, B, lora_bias, magnitude;
};

/// The shapes of a module in a file; that of A has in_features = A.cols() / kernel elements, times the groups.
/// Pre: the kernel has as many extents as the kind has dimensions, and they divide A.cols().
template <RealScalar Scalar>
[[nodiscard]] PeftShapes peft_shapes(const ModuleWeights<Scalar>& module) {
  const std::size_t dimensions = module.kernel_size.size();
  Index in = module.A.cols();
  for (const Index extent : module.kernel_size) in /= extent;
  in *= peft_groups(module);
  const Index out = module.B.rows();
  PeftShapes shapes{
      {module.A.rows(), in}, {out, module.B.cols()}, {module.lora_bias.size()}, {module.magnitude.size()}};
  if (dimensions > 0) {
    shapes.A.insert(shapes.A.end(), module.kernel_size.begin(), module.kernel_size.end());
    shapes.B.insert(shapes.B.end(), dimensions, 1);
    shapes.magnitude.insert(shapes.magnitude.begin(), 1);
    shapes.magnitude.insert(shapes.magnitude.end(), dimensions, 1);
  }
  return shapes;
}

}  // namespace lora
