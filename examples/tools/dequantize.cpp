// SPDX-License-Identifier: MIT
// lora dequantize: stores weights of fewer bits as values in whole numbers of bytes again.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "commands.hpp"
#include "four_bit.hpp"
#include "module_names.hpp"
#include "options.hpp"
#include "orientation.hpp"
#include "output.hpp"
#include "print.hpp"
#include "quantization_config.hpp"
#include "storage_change.hpp"

namespace lora::tools::dequantize_command {
namespace {

struct Arguments {
  std::string input;
  std::string output;
  std::string dtype = "F32";
  bool force = false;
};

/// The changes that store blocks, and 4-bit weights of bitsandbytes, as values again; narrower values widen.
class Dequantization {
 public:
  /// @throws FormatError for 4-bit weights that are not complete; ConfigError where nothing is to be done
  Dequantization(const Checkpoint& checkpoint, Dtype dtype) {
    const Conv1dModules conv1d_modules(checkpoint);
    for (const auto& [name, quant_state] : four_bit_names(checkpoint)) {
      const FourBitWeight weight = four_bit_weight(checkpoint, name, quant_state);
      decode(weight, dtype, conv1d_modules.contain(module_of_weight(name)));
      changes_.removed.insert(weight.companions.begin(), weight.companions.end());
    }
    for (const auto& name : checkpoint.names()) {
      const StoredTensor tensor = *checkpoint.find(name);
      const bool half = tensor.dtype == Dtype::F16 || tensor.dtype == Dtype::BF16;
      if (!tensor.blocks && !(half && dtype == Dtype::F32)) continue;
      changes_.tensors[name] = {dtype, tensor.shape, converting(tensor, dtype, std::make_shared<RoundingError>())};
    }
    if (changes_.tensors.empty()) {
      throw ConfigError("dequantize", "checkpoint", "weights in blocks, of 4 bits, or (for --dtype F32) of F16 or BF16",
                        "none");
    }
    if (checkpoint.gguf() != nullptr) set_file_type(*gguf_type_of_dtype(dtype), changes_);
    const auto config = checkpoint.config_file();
    if (!changes_.removed.empty() && config && config->values.contains("quantization_config")) {
      changes_.config = without_quantization_config(*config);
    }
  }

  [[nodiscard]] const Changes& changes() const noexcept { return changes_; }
  /// What a person should know about the result.
  [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return notes_; }

 private:
  void decode(const FourBitWeight& weight, Dtype dtype, std::optional<bool> conv1d) {
    const BitsandbytesState& state = weight.tensor.state();
    if (!conv1d) {
      notes_.push_back(in_quotes(weight.name) +
                       " is written (out, in), as it is in 4 bits; a Conv1D of GPT-2 would need (in, out)");
    }
    if (conv1d.value_or(false)) {
      changes_.tensors[weight.name] = {
          dtype, {state.in_features, state.out_features}, decoding_transposed(weight, dtype)};
    } else {
      changes_.tensors[weight.name] = {dtype, {state.out_features, state.in_features}, decoding(weight, dtype)};
    }
  }

  Changes changes_;
  std::vector<std::string> notes_;
};

void dequantize(const Arguments& arguments) {
  const Checkpoint checkpoint = Checkpoint::open(arguments.input);
  const Dequantization dequantization(checkpoint, *parse_dtype(arguments.dtype));
  Output output = place_for(checkpoint, arguments.output, arguments.force);
  for (const auto& note : dequantization.notes()) warn(note);
  write_checkpoint(checkpoint, output, dequantization.changes(), "Dequantizing");
  say("stored " + std::to_string(dequantization.changes().tensors.size()) + " tensors as " + arguments.dtype + " in " +
      arguments.output);
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("dequantize", "Store weights of fewer bits as F32, F16 or BF16 again");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("checkpoint", arguments->input, "Safetensors or GGUF file, index, or folder")
      ->required()
      ->check(existing_path());
  command->add_option("output", arguments->output, "New file or folder of the same kind")->required();
  command->add_option("--dtype", arguments->dtype, "F32 (exact), F16 or BF16")
      ->capture_default_str()
      ->check(CLI::IsMember({"F32", "F16", "BF16"}));
  command->add_flag("--force", arguments->force, "Overwrite an existing output, which may be the checkpoint itself");
  command->footer(
      "Decodes every block format that inspect shows in a GGUF file, and 4-bit weights of bitsandbytes. With F32,\n"
      "tensors of F16 and BF16 widen too; otherwise they stay as they are.\n"
      "Example: lora dequantize model-q4_k.gguf model-bf16.gguf --dtype BF16");
  command->callback([arguments] { dequantize(*arguments); });
}

}  // namespace lora::tools::dequantize_command
