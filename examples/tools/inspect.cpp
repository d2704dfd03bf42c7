// SPDX-License-Identifier: MIT
// lora inspect: what an adapter or checkpoint holds.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "commands.hpp"
#include "four_bit.hpp"
#include "lora/adapter/qalora.hpp"
#include "options.hpp"
#include "print.hpp"
#include "table.hpp"

namespace lora::tools::inspect_command {
namespace {

struct Arguments {
  std::string path;
  std::string adapter = "default";
  bool json = false;
};

std::string kind_name(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::linear:
      return "linear";
    case ModuleKind::embedding:
      return "embedding";
    case ModuleKind::conv1d:
      return "conv1d";
    case ModuleKind::conv2d:
      return "conv2d";
    case ModuleKind::conv3d:
      return "conv3d";
  }
  return "";
}

// |B A|_F without the product: the square is the trace of (B^T B)(A A^T).
double product_norm(const ModuleWeights<float>& module) {
  const Matrix<double> a = module.A.cast<double>();
  const Matrix<double> b = joined_groups(module).cast<double>();
  const double square = ((b.transpose() * b).cwiseProduct(a * a.transpose())).sum();
  return std::sqrt(std::max(square, 0.0));
}

void show_adapter(const AdapterFile& adapter, bool json) {
  Index parameters = 0;
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  Table table({"module", "kind", "rank", "scaling", "in", "out", "|A|", "|B|", "|delta|"});
  for (const auto& [name, module] : adapter.weights.modules) {
    const Index group = module.qalora_group_size;
    const Index in = module.A.cols() * std::max<Index>(group, 1);
    // With QALoRA every column of A stands for `group` equal ones of the update.
    const double widened = group > 0 ? qalora_factor<double>(in, group) * std::sqrt(static_cast<double>(group)) : 1.0;
    const double delta = std::abs(module.scaling) * product_norm(module) * widened;
    parameters += module.A.size() + module.B.size() + module.lora_bias.size() + module.magnitude.size();
    const std::string kind = kind_name(module.kind) + (module.magnitude.size() > 0 ? " dora"
                                                       : group > 0                 ? " qalora"
                                                                                   : "");
    table.add({name, kind, std::to_string(module.rank()), number(module.scaling), std::to_string(in),
               std::to_string(module.B.rows()), number(module.A.norm()), number(module.B.norm()), number(delta)});
    modules.push_back({{"name", name},
                       {"kind", kind_name(module.kind)},
                       {"dora", module.magnitude.size() > 0},
                       {"rank", module.rank()},
                       {"scaling", module.scaling},
                       {"in", in},
                       {"out", module.B.rows()},
                       {"norm_A", module.A.norm()},
                       {"norm_B", module.B.norm()},
                       {"norm_delta", delta}});
  }
  nlohmann::ordered_json saved = nlohmann::ordered_json::object();
  for (const auto& [name, tensor] : adapter.weights.saved) {
    saved[name] = tensor.shape;
    parameters += static_cast<Index>(tensor.values.size());
  }
  if (json) {
    const nlohmann::ordered_json all = {{"format", adapter.format},
                                        {"bytes", adapter.bytes},
                                        {"parameters", parameters},
                                        {"rank", adapter.config.lora.rank},
                                        {"alpha", adapter.config.lora.alpha},
                                        {"modules", modules},
                                        {"saved", saved},
                                        {"warnings", adapter.warnings}};
    say_json(all);
    return;
  }
  table.print();
  for (const auto& [name, tensor] : saved.items()) say("saved whole: " + name + " " + tensor.dump());
  for (const auto& warning : adapter.warnings) warn(warning);
  const InitLoraWeights init = adapter.config.lora.init_lora_weights;
  if (takes_from_weight(init)) {
    say(std::string("starts as ") + (init == InitLoraWeights::pissa ? "pissa" : "olora") +
        ": the delta is that of A and B less that of their start, which is a part of the base weight");
  }
  say(adapter.format + " adapter: " + std::to_string(adapter.weights.modules.size()) + " modules, " +
      std::to_string(parameters) + " parameters, " + size_text(adapter.bytes));
}

// What is printed of a tensor. The tensors of a 4-bit weight are one.
struct Line {
  std::string dtype;
  std::vector<Index> shape;
  std::uintmax_t bytes = 0;
};

std::map<std::string, Line> lines_of(const Checkpoint& checkpoint) {
  std::map<std::string, Line> lines;
  for (const auto& name : checkpoint.names()) {
    const auto tensor = *checkpoint.find(name);
    lines[name] = {std::string(tensor.type_name()), tensor.shape, tensor.bytes.size()};
  }
  for (const auto& [name, state] : four_bit_names(checkpoint)) {
    try {
      const FourBitWeight weight = four_bit_weight(checkpoint, name, state);
      for (const auto& companion : weight.companions) lines.erase(companion);
      const BitsandbytesState& of_weight = weight.tensor.state();
      lines[name] = {weight.type_name(), {of_weight.out_features, of_weight.in_features}, weight.bytes};
    } catch (const FormatError& error) {
      warn(error.what());  // its tensors are listed one by one
    }
  }
  return lines;
}

void show_checkpoint(const Checkpoint& checkpoint, bool json) {
  Table table({"tensor", "dtype", "shape", "bytes"});
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  for (const auto& [name, line] : lines_of(checkpoint)) {
    table.add({name, line.dtype, shape_text(line.shape), std::to_string(line.bytes)});
    tensors.push_back({{"name", name}, {"dtype", line.dtype}, {"shape", line.shape}, {"bytes", line.bytes}});
  }
  if (json) {
    const nlohmann::ordered_json all = {{"format", "checkpoint"},
                                        {"shards", checkpoint.shards().size()},
                                        {"bytes", checkpoint.bytes()},
                                        {"tensors", tensors}};
    say_json(all);
    return;
  }
  table.print();
  say("checkpoint: " + std::to_string(tensors.size()) + " tensors in " + std::to_string(checkpoint.shards().size()) +
      " file(s), " + size_text(checkpoint.bytes()));
}

void run(const Arguments& arguments) {
  if (arguments.adapter != "default" || is_adapter(arguments.path)) {
    show_adapter(read_adapter(arguments.path, arguments.adapter), arguments.json);
  } else {
    show_checkpoint(Checkpoint::open(arguments.path), arguments.json);
  }
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("inspect", "Show what an adapter or checkpoint contains");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("path", arguments->path, "PEFT directory, GGUF or safetensors file, or checkpoint")
      ->required()
      ->check(existing_path());
  command->add_option("--adapter", arguments->adapter, "Adapter to read from a directory with several")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print JSON");
  command->footer(
      "A 4-bit weight of bitsandbytes is one line, \"NF4 64 nested\" with its block size, and the bytes of all its "
      "parts.\n"
      "Example: lora inspect my-adapter --json | jq .parameters");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools::inspect_command
