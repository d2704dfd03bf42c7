// SPDX-License-Identifier: MIT
// lora merge, lora unmerge: adds an adapter to a checkpoint's weights, or subtracts it again.
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>

#include "adapter_file.hpp"
#include "base_names.hpp"
#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "commands.hpp"
#include "merge_plan.hpp"
#include "options.hpp"
#include "print.hpp"
#include "table.hpp"

namespace lora::tools::merge_command {
namespace {

struct Arguments {
  std::string base;
  std::string adapter;
  std::string output;
  std::string adapter_name = "default";
  Index heads = 0;
  Index heads_kv = 0;
  MergeOptions options;
  bool force = false;
};

/// How much of what was added is left in tensors whose blocks were encoded anew.
void report_blocks(const Checkpoint& base, const MergePlan& plan) {
  RoundingError total;
  std::size_t count = 0;
  Table table({"tensor", "type", "survived", "error"});
  for (const auto& [name, error] : plan.errors()) {
    const auto tensor = base.find(name);
    if (!tensor || !tensor->blocks) continue;
    ++count;
    total += error;
    table.add({name, std::string(tensor->type_name()), number(error.survived()), number(error.relative())});
  }
  if (count == 0) return;
  table.print();
  say("of what was added to " + std::to_string(count) + " tensors in blocks, " + number(total.survived()) +
      " survived, with an error of " + number(total.relative()) + " of it");
}

/// What is beside the checkpoint that is replaced stays. Where transformers finds an adapter's configuration there, it
/// adds that adapter, or fails without its weights.
void require_no_adapter_at(const std::filesystem::path& output) {
  std::error_code ignored;
  if (!std::filesystem::exists(output / peft_config_file, ignored)) return;
  throw ConfigError("merge", in_quotes(output.native(), output.native().size()),
                    "a folder without an adapter, which would be added to the merged model again "
                    "(move adapter_config.json and adapter_model.* away, or name another output)",
                    "one with an adapter");
}

void run(const Arguments& arguments) {
  const Checkpoint base = Checkpoint::open(arguments.base);
  Output output = place_for(base, arguments.output, arguments.force);
  if (!arguments.options.unmerge) require_no_adapter_at(output.target());
  std::optional<GgufHeads> heads;
  if (arguments.heads > 0) heads = {arguments.heads, arguments.heads_kv > 0 ? arguments.heads_kv : arguments.heads};
  AdapterFile adapter = read_adapter_for(base, arguments.adapter, arguments.adapter_name, heads);
  for (auto& [name, module] : adapter.weights.modules) module.B = joined_groups(module);
  for (const auto& warning : adapter.warnings) warn(warning);
  const MergePlan plan(base, adapter, arguments.options);
  for (const auto& note : plan.notes()) warn(note);
  write_checkpoint(base, output, plan.changes(), arguments.options.unmerge ? "Unmerging" : "Merging");
  say((arguments.options.unmerge ? "unmerged " : "merged ") + std::to_string(adapter.weights.modules.size()) +
      " modules and " + std::to_string(adapter.weights.saved.size()) + " whole tensors into " + arguments.output +
      " (" + size_text(base.bytes()) + ")");
  report_blocks(base, plan);
  say("rounding to the checkpoint's dtype: largest error " + number(plan.error().largest) + ", " +
      number(plan.error().relative()) + " of what was added (root mean square)");
}

void add_one(CLI::App& app, bool unmerge) {
  auto* command = app.add_subcommand(unmerge ? "unmerge" : "merge",
                                     unmerge ? "Remove an adapter from a checkpoint it was merged into (up to rounding)"
                                             : "Add an adapter to a checkpoint's weights");
  const auto arguments = std::make_shared<Arguments>();
  arguments->options.unmerge = unmerge;
  command->add_option("checkpoint", arguments->base, "Safetensors or GGUF file, index, or folder")
      ->required()
      ->check(existing_path());
  command->add_option("adapter", arguments->adapter, "PEFT directory, GGUF or safetensors file")
      ->required()
      ->check(existing_path());
  command
      ->add_option("output", arguments->output,
                   "New file; for a folder or index a new folder, to which config.json and the like are copied")
      ->required();
  command->add_option("--adapter", arguments->adapter_name, "Adapter to read from a directory with several")
      ->capture_default_str();
  command->add_option("--prefix", arguments->options.prefix, "Prefix of the adapter's module names in the checkpoint");
  command
      ->add_option("--linear", arguments->options.stored.linear,
                   "Modules, by the end of their names, stored (out, in) as torch's Linear, with commas between; for "
                   "square weights")
      ->delimiter(',')
      ->allow_extra_args(false);
  command
      ->add_option("--conv1d", arguments->options.stored.conv1d,
                   "Modules stored (in, out) as GPT-2's Conv1D, with commas between; for square weights")
      ->delimiter(',')
      ->allow_extra_args(false);
  auto* heads = command->add_option("--heads", arguments->heads,
                                    "num_attention_heads, for a GGUF adapter and a checkpoint without config.json");
  heads->check(at_least(1));
  command->add_option("--heads-kv", arguments->heads_kv, "num_key_value_heads; by default that of --heads")
      ->check(at_least(1))
      ->needs(heads);
  command->add_flag("--force", arguments->force, "Overwrite an existing output, which may be the checkpoint itself");
  command->footer(
      unmerge ? "Example: lora unmerge merged.safetensors my-adapter base.safetensors"
              : "Weights in blocks of Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1 (GGUF) are encoded anew in their type. With W\n"
                "the stored weight, D what is added and W' what is stored then, the report says of each such\n"
                "tensor, and of all together:\n"
                "  survived = <W' - W, D> / <D, D>: 1 if the sum came through, 0 if rounding undid it\n"
                "  error = |W' - (W + D)| / |D|, in Frobenius norms; it is 1 for a W' that is W\n"
                "Weights of other block formats (K-quants, IQ4, MXFP4) are refused: merge into the output of\n"
                "lora dequantize, or serve the adapter unmerged.\n"
                "An adapter that starts as PiSSA or OLoRA is merged as PEFT does it, which for PiSSA takes\n"
                "minutes for a weight of several thousand columns.\n"
                "Example: lora merge base-model my-adapter merged-model");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace

void add(CLI::App& app) {
  add_one(app, false);
  add_one(app, true);
}

}  // namespace lora::tools::merge_command
