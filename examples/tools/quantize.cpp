// SPDX-License-Identifier: MIT
// lora quantize: stores a checkpoint's weights in fewer bits.
#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "commands.hpp"
#include "four_bit.hpp"
#include "module_names.hpp"
#include "options.hpp"
#include "orientation.hpp"
#include "print.hpp"
#include "quantization_config.hpp"
#include "storage.hpp"
#include "storage_change.hpp"
#include "table.hpp"

namespace lora::tools::quantize_command {
namespace {

struct Arguments {
  std::string input;
  std::string output;
  std::string format;
  Index block_size = 64;
  bool double_quant = false;
  std::vector<std::string> modules;
  bool force = false;

  [[nodiscard]] FourBitOptions four_bit(BitsandbytesType type) const {
    return {type, block_size, double_quant ? BitsandbytesScales::nested : BitsandbytesScales::floats};
  }
};

std::string in_capitals(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::toupper(letter)); });
  return text;
}

/// Matrices that llama.cpp keeps as they are, by parts of their names. Source: llama.cpp, src/llama-quant.cpp.
bool is_kept_by_llama_cpp(std::string_view name) {
  constexpr std::array<std::string_view, 8> parts{
      "_norm.weight",      "ffn_gate_inp.weight",  "altup", "laurel", "position_embd.weight", "token_types.weight",
      "ssm_conv1d.weight", "shortconv.conv.weight"};
  return std::any_of(parts.begin(), parts.end(),
                     [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

/// What is to be stored in fewer bits, and how.
class Quantization {
 public:
  /// @throws ConfigError for a format that the kind of file does not have, or modules that do not fit
  Quantization(const Checkpoint& checkpoint, const Arguments& arguments)
      : checkpoint_(checkpoint), arguments_(arguments), gguf_(checkpoint.gguf() != nullptr) {
    if (arguments.format == "nf4") four_bit_ = BitsandbytesType::nf4;
    if (arguments.format == "fp4") four_bit_ = BitsandbytesType::fp4;
    const bool half = arguments.format == "f16" || arguments.format == "bf16";
    if (gguf_ ? four_bit_.has_value() : !four_bit_ && !half) {
      throw ConfigError("quantize", "--format",
                        gguf_ ? "a type of GGUF files: q8_0, q4_0, q4_1, q5_0, q5_1, f16, bf16"
                              : "a type of safetensors files: nf4, fp4, f16, bf16",
                        arguments.format);
    }
    if (arguments.double_quant && !four_bit_) refuse("--double-quant", "--format nf4 or fp4", arguments.format);
    if (four_bit_) conv1d_modules_.emplace(checkpoint);
    if (!four_bit_) target_ = Storage(*parse_gguf_type(in_capitals(arguments.format)));
    for (const auto& name : checkpoint.names()) plan(*checkpoint.find(name));
    for (std::size_t i = 0; i < arguments.modules.size(); ++i) {
      if (!used_.contains(i))
        refuse(in_quotes(arguments.modules[i]), "a module of the checkpoint, by the end of its name", "none");
    }
    if (changes_.tensors.empty()) refuse("checkpoint", "a weight that fits", "none");
    if (gguf_) set_file_type(*parse_gguf_type(in_capitals(arguments.format)), changes_);
    if (four_bit_) describe_in_config();
  }

  [[nodiscard]] const Changes& changes() const noexcept { return changes_; }
  [[nodiscard]] std::size_t count() const noexcept { return errors_.size(); }
  /// Matrices that stay because they do not fit, and why.
  [[nodiscard]] const std::vector<std::string>& left_out() const noexcept { return left_out_; }
  [[nodiscard]] RoundingError error() const {
    RoundingError total;
    for (const auto& error : errors_) total += *error;
    return total;
  }

 private:
  [[noreturn]] static void refuse(std::string_view argument, std::string_view expected, std::string_view got) {
    throw ConfigError("quantize", argument, expected, got);
  }

  [[nodiscard]] Index block_size() const { return four_bit_ ? arguments_.block_size : target_.block_size(); }

  /// Whether the user has named it.
  [[nodiscard]] bool is_named(const std::string& module) {
    bool named = false;
    for (std::size_t i = 0; i < arguments_.modules.size(); ++i) {
      if (!ends_with_name(module, arguments_.modules[i])) continue;
      used_[i] = true;
      named = true;
    }
    return named;
  }

  /// Weights of linear layers and, in GGUF files, embeddings: bitsandbytes has linear layers alone.
  [[nodiscard]] bool is_usual(const std::string& name, const std::string& module) const {
    if (gguf_) return !is_kept_by_llama_cpp(name);
    const bool stays = is_embedding(checkpoint_, module) || is_head_name(module) || is_kept_by_transformers(module);
    return !four_bit_ || !stays;
  }

  /// bitsandbytes has the weights of modules, and no other parameters.
  [[nodiscard]] bool is_weight_name(std::string_view name) const {
    return name.ends_with(four_bit_ ? ".weight" : "weight");
  }

  [[nodiscard]] bool is_real_matrix(const StoredTensor& tensor) const {
    return tensor.shape.size() == 2 && tensor.elements() > 0 && !tensor.blocks && converts_to_real(tensor.dtype) &&
           !(gguf_ && tensor.dtype == Dtype::F64);
  }

  void plan(const StoredTensor& tensor) {
    const std::string name(tensor.name);
    if (!is_weight_name(name)) return;
    const std::string module = module_of_weight(name);
    const bool named = is_named(module);
    if (!arguments_.modules.empty() && !named) return;
    if (!is_real_matrix(tensor)) {
      if (!named) return;
      refuse(in_quotes(name), "a matrix of F32, F16 or BF16",
             std::string(tensor.type_name()) + " " + shape_text(tensor.shape));
    }
    if (!named && !is_usual(name, module)) return;
    const std::optional<bool> transposed = four_bit_ ? conv1d_modules_->contain(module) : false;
    if (!transposed) {
      return leave(name, named, "a weight known to be stored (out, in) or (in, out)",
                   "a square one; neither its shape nor modules of such names tell");
    }
    const Index line = tensor.shape[*transposed ? 0 : 1];
    if (line % block_size() != 0) {
      return leave(name, named,
                   "a multiple of " + std::to_string(block_size()) + (*transposed ? " rows" : " columns") +
                       ", the block size of " + arguments_.format,
                   std::to_string(line));
    }
    store(tensor, *transposed);
  }

  /// @throws ConfigError if the user has named it
  void leave(const std::string& name, bool named, std::string_view expected, std::string_view got) {
    if (named) refuse(in_quotes(name), expected, got);
    left_out_.push_back(
        in_quotes(name).append(" stays as it is: expected ").append(expected).append(", got ").append(got));
  }

  void store(const StoredTensor& tensor, bool transposed) {
    const std::string name(tensor.name);
    if (!four_bit_ && target_.dtype() == tensor.dtype && !target_.blocks()) return;
    const auto error = errors_.emplace_back(std::make_shared<RoundingError>());
    if (four_bit_) {
      require_free_names(name);
      make_four_bit({tensor, transposed}, arguments_.four_bit(*four_bit_), error, changes_);
    } else {
      changes_.tensors[name] = {target_.dtype(), tensor.shape, converting(tensor, target_, error), target_.blocks()};
    }
  }

  void require_free_names(const std::string& name) const {
    for (const char* end : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
      if (checkpoint_.find(name + end)) refuse(in_quotes(name + end), "a name that is free", "a tensor");
    }
  }

  /// transformers reads the weights as what config.json says.
  void describe_in_config() {
    const auto config = checkpoint_.config_file();
    if (config) changes_.config = with_four_bit_config(checkpoint_, changes_, *config, arguments_.four_bit(*four_bit_));
  }

  const Checkpoint& checkpoint_;
  const Arguments& arguments_;
  bool gguf_;
  std::optional<BitsandbytesType> four_bit_;
  Storage target_ = Dtype::F32;
  std::optional<Conv1dModules> conv1d_modules_;  // with four_bit_
  Changes changes_;
  std::map<std::size_t, bool> used_;  // of the modules named, those that are there
  std::vector<std::string> left_out_;
  std::vector<std::shared_ptr<RoundingError>> errors_;
};

void quantize(const Arguments& arguments) {
  const Checkpoint checkpoint = Checkpoint::open(arguments.input);
  const Quantization quantization(checkpoint, arguments);
  Output output = place_for(checkpoint, arguments.output, arguments.force);
  for (const auto& text : quantization.left_out()) warn(text);
  write_checkpoint(checkpoint, output, quantization.changes(), "Quantizing");
  say("stored " + std::to_string(quantization.count()) + " weights as " + arguments.format + " in " + arguments.output);
  say("rounding: largest error " + number(quantization.error().largest) + ", " +
      number(quantization.error().relative()) + " of the weights (root mean square)");
}

CLI::Validator block_sizes() {
  return {[](std::string& text) {
            for (const Index size : bitsandbytes_block_sizes) {
              if (text == std::to_string(size)) return std::string();
            }
            return "expected a power of two from 32 to 4096, got \"" + text + "\"";
          },
          "N"};
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("quantize", "Store a checkpoint's weights in fewer bits");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("checkpoint", arguments->input, "Safetensors or GGUF file, index, or folder")
      ->required()
      ->check(existing_path());
  command->add_option("output", arguments->output, "New file or folder of the same kind")->required();
  command
      ->add_option("--format", arguments->format,
                   "Safetensors: nf4, fp4, f16, bf16; GGUF: q8_0, q4_0, q4_1, q5_0, q5_1, f16, bf16")
      ->required()
      ->check(CLI::IsMember({"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "f16", "bf16", "nf4", "fp4"}));
  command->add_option("--block", arguments->block_size, "Weights that share a scale, for nf4 and fp4")
      ->capture_default_str()
      ->check(block_sizes());
  command->add_flag("--double-quant", arguments->double_quant,
                    "Store the scales of nf4 and fp4 in 8 bits instead of 32 (bnb_4bit_use_double_quant)");
  command
      ->add_option("--modules", arguments->modules,
                   "Only these modules, by the end of their names, with commas between; refused if one does not fit")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_flag("--force", arguments->force, "Overwrite an existing output, which may be the checkpoint itself");
  command->footer(
      "Takes the matrices called \"...weight\" (with nf4 and fp4, those of modules alone) of F32, F16 and BF16 whose\n"
      "columns are a multiple of the block size. All else stays as it is. Unless --modules names them, so do\n"
      "embeddings, heads and what transformers keeps (the wo of T5) with nf4 and fp4, and in GGUF files what\n"
      "llama.cpp keeps (norms, routers, positions, convolutions).\n"
      "nf4 and fp4 give files as bitsandbytes has them; config.json says so to transformers. The weights of a Conv1D\n"
      "of GPT-2, stored (in, out), are (out, in) in 4 bits, as transformers has them; dequantize turns them back.\n"
      "--double-quant reads the weights once more, and holds their scales in memory until they are written.\n"
      "Example: lora quantize base-model base-nf4 --format nf4\n"
      "         lora quantize base-f16.gguf base-q4_0.gguf --format q4_0");
  command->callback([arguments] { quantize(*arguments); });
}

}  // namespace lora::tools::quantize_command
