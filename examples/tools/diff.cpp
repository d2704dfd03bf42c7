// SPDX-License-Identifier: MIT
// lora diff: how two checkpoints differ, tensor by tensor.
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "checkpoint.hpp"
#include "commands.hpp"
#include "options.hpp"
#include "print.hpp"
#include "progress.hpp"
#include "storage.hpp"
#include "table.hpp"

namespace lora::tools::diff_command {
namespace {

struct Arguments {
  std::string first;
  std::string second;
  bool json = false;
  bool all = false;
};

struct Difference {
  std::string name;
  std::string weights;  // "equal", "changed", "only in first", ...
  double largest = 0;
  double relative = 0;  // |a - b|_F / |a|_F
};

// Pre: both are readable, and of one shape.
Difference compare_values(const std::string& name, const StoredTensor& a, const StoredTensor& b) {
  constexpr std::size_t piece = std::size_t{1} << 18;  // a multiple of every block
  const auto count = static_cast<std::size_t>(a.elements());
  std::vector<double> first;
  std::vector<double> second;
  double squares = 0;
  double norm = 0;
  Difference difference{name, "changed", 0, 0};
  const auto read = [](const StoredTensor& tensor, std::size_t begin, std::size_t size, std::vector<double>& values) {
    const Storage storage = Storage::of(tensor);
    values.resize(size);
    storage.decode(tensor.bytes.data() + storage.bytes_of(begin), std::span<double>(values));
  };
  for (std::size_t i = 0; i < count; i += piece) {
    const std::size_t size = std::min(piece, count - i);
    read(a, i, size, first);
    read(b, i, size, second);
    for (std::size_t j = 0; j < size; ++j) {
      // Equal infinities have no difference.
      const double distance = first[j] == second[j] ? 0.0 : std::abs(first[j] - second[j]);
      if (!(distance <= difference.largest) && !std::isnan(difference.largest)) difference.largest = distance;
      squares += distance * distance;
      norm += first[j] * first[j];
    }
  }
  difference.relative = norm > 0 ? std::sqrt(squares / norm) : std::sqrt(squares);
  return difference;
}

Difference compare(const std::string& name, const std::optional<StoredTensor>& a,
                   const std::optional<StoredTensor>& b) {
  if (!a) return {name, "only in second", 0, 0};
  if (!b) return {name, "only in first", 0, 0};
  if (a->shape != b->shape) return {name, "another shape", 0, 0};
  const bool same_bytes =
      a->is_stored_like(*b) && std::equal(a->bytes.begin(), a->bytes.end(), b->bytes.begin(), b->bytes.end());
  if (same_bytes) return {name, "equal", 0, 0};
  if (!Storage::of(*a).readable() || !Storage::of(*b).readable()) return {name, "other bytes", 0, 0};
  Difference difference = compare_values(name, *a, *b);
  if (!a->is_stored_like(*b)) difference.weights = "another dtype";
  return difference;
}

void print(const std::vector<Difference>& differences, const Arguments& arguments) {
  std::size_t equal = 0;
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  Table table({"tensor", "weights", "largest", "relative"});
  for (const Difference& difference : differences) {
    if (difference.weights == "equal") ++equal;
    if (difference.weights == "equal" && !arguments.all) continue;
    table.add({difference.name, difference.weights, number(difference.largest), number(difference.relative)});
    tensors.push_back({{"name", difference.name},
                       {"weights", difference.weights},
                       {"largest", difference.largest},
                       {"relative", difference.relative}});
  }
  if (arguments.json) {
    const nlohmann::ordered_json report = {
        {"equal", equal}, {"different", differences.size() - equal}, {"tensors", tensors}};
    say_json(report);
    return;
  }
  if (!tensors.empty()) table.print();
  say(std::to_string(equal) + " tensors equal, " + std::to_string(differences.size() - equal) + " different");
}

void run(const Arguments& arguments) {
  const Checkpoint first = Checkpoint::open(arguments.first);
  const Checkpoint second = Checkpoint::open(arguments.second);
  std::set<std::string> names;
  for (const auto& name : first.names()) names.insert(name);
  for (const auto& name : second.names()) names.insert(name);
  std::vector<Difference> differences;
  Progress progress("Comparing", first.bytes());
  for (const auto& name : names) {
    const auto a = first.find(name);
    const auto b = second.find(name);
    differences.push_back(compare(name, a, b));
    if (a) first.release(*a);
    if (b) second.release(*b);
    if (a) progress.advance(a->bytes.size());
  }
  print(differences, arguments);
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("diff", "Show how two checkpoints differ");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("first", arguments->first, "Safetensors or GGUF file, index, or folder")
      ->required()
      ->check(existing_path());
  command->add_option("second", arguments->second, "The same, to compare with")->required()->check(existing_path());
  command->add_flag("--all", arguments->all, "List equal tensors too");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->footer("Example: lora diff base.safetensors merged.safetensors");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools::diff_command
