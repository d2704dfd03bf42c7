// SPDX-License-Identifier: MIT
// lora combine: makes one adapter out of several.
#include "lora/model/combine.hpp"

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapter_file.hpp"
#include "commands.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "options.hpp"
#include "output.hpp"
#include "print.hpp"

namespace lora::tools::combine_command {
namespace {

struct Arguments {
  std::vector<std::string> adapters;
  std::vector<double> weights;
  std::string output;
  std::string type = "linear";
  std::optional<double> density;
  std::optional<Index> svd_rank;
  std::optional<std::uint64_t> seed;
  bool peft = false;
  bool force = false;
};

void run(const Arguments& arguments) {
  Output output(arguments.output, Output::Kind::folder, arguments.force, belongs_to_adapter);
  CombineOptions options;
  const auto type = parse_combination_type(arguments.type);
  if (!type) throw ConfigError("combine", "--type", "a combination that PEFT names", arguments.type);
  options.combination_type = *type;
  options.density = arguments.density;
  options.svd_rank = arguments.svd_rank;
  options.seed = arguments.seed;
  options.compatibility = arguments.peft ? Compatibility::peft : Compatibility::exact;
  if (!arguments.weights.empty() && arguments.weights.size() != arguments.adapters.size()) {
    throw ConfigError("combine", "--weights", std::to_string(arguments.adapters.size()) + " numbers",
                      std::to_string(arguments.weights.size()));
  }
  std::vector<AdapterFile> files;
  for (const auto& path : arguments.adapters) {
    files.push_back(read_adapter(path));
    for (const auto& warning : files.back().warnings) warn(path + ": " + warning);
    require_no_start(files.back(), "combine", path);
    require_finite(files.back().weights);
  }
  std::vector<WeightedAdapter<float>> weighted;
  for (std::size_t i = 0; i < files.size(); ++i) {
    weighted.push_back({&files[i].weights, arguments.weights.empty() ? 1.0 : arguments.weights[i]});
  }
  const auto state = combine_adapters<float>(weighted, options);
  LoraModelConfig start = files.front().config;
  start.lora.use_rslora = false;
  require_finite(state);
  write_peft_directory(output.path(), config_of(start, state), state);
  output.commit();
  say("combined " + std::to_string(files.size()) + " adapters (" + arguments.type + ") into " + arguments.output +
      ": " + std::to_string(state.modules.size()) + " modules");
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("combine", "Make one adapter out of several");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("adapters", arguments->adapters, "PEFT directories, GGUF or safetensors files")
      ->required()
      ->check(existing_path());
  command->add_option("--output,-o", arguments->output, "New PEFT directory")->required();
  command->add_option("--weights,-w", arguments->weights, "One per adapter; 1 each by default")->check(finite_number());
  command
      ->add_option("--type,-t", arguments->type,
                   "linear, cat, svd, ties, ties_svd, dare_linear, dare_ties, dare_linear_svd, dare_ties_svd, "
                   "magnitude_prune, magnitude_prune_svd")
      ->capture_default_str();
  command->add_option("--density", arguments->density, "Fraction that pruning keeps")->check(fraction());
  command->add_option("--svd-rank", arguments->svd_rank, "Rank, for types that end in svd")->check(at_least(1));
  command->add_option("--seed", arguments->seed, "Seed of the random pruning of dare_*");
  command->add_flag("--peft", arguments->peft, "Compute as PEFT does where that differs from the exact sum");
  command->add_flag("--force", arguments->force, "Overwrite an existing output");
  command->footer("Example: lora combine style task --weights 0.7 0.3 --type ties --density 0.5 --output both");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools::combine_command
