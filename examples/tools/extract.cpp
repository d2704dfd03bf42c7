// SPDX-License-Identifier: MIT
// lora extract: the adapter closest to the difference of two checkpoints.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "commands.hpp"
#include "lora/adapter/truncated_svd.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "module_names.hpp"
#include "options.hpp"
#include "orientation.hpp"
#include "output.hpp"
#include "print.hpp"
#include "progress.hpp"
#include "table.hpp"

namespace lora::tools::extract_command {
namespace {

struct Arguments {
  std::string base;
  std::string tuned;
  std::string output;
  Index rank = 8;
  double energy = 0;
  bool force = false;
};

// |W1 - W0|_F^2 and its first singular triples.
struct Decomposition {
  TruncatedSvd<double> svd;
  double energy = 0;

  [[nodiscard]] auto values() const { return Eigen::VectorXd::Map(svd.S.data(), static_cast<Index>(svd.S.size())); }
};

Decomposition decompose(const std::string& name, const TensorView& base, const TensorView& tuned, Index most) {
  const Eigen::MatrixXd difference = tuned.matrix<double>() - base.matrix<double>();
  if (!difference.allFinite()) {
    throw StateError("extract", in_quotes(name), "values whose difference is finite", "an infinity or NaN");
  }
  const Index smallest = std::min(difference.rows(), difference.cols());
  const Index rank = std::min(most, smallest);
  Decomposition result;
  result.energy = difference.squaredNorm();
  constexpr Index exact_up_to = 256;
  constexpr Index oversampling = 10;
  constexpr Index iterations = 4;
  if (smallest <= exact_up_to || rank + oversampling >= smallest) {
    result.svd = truncated_svd(view_of(difference), rank);
  } else {
    result.svd = randomized_svd(view_of(difference), rank + oversampling, iterations, RandomStream(0, 0));
  }
  return result;
}

// The smallest rank whose parts hold `share` of the energy; `most` if none does.
Index rank_for(const Decomposition& decomposition, double share, Index most) {
  double held = 0;
  for (Index r = 0; r < most; ++r) {
    held += decomposition.values()[r] * decomposition.values()[r];
    if (held >= share * decomposition.energy) return r + 1;
  }
  return most;
}

// B A is the difference, or its transpose for a weight that is stored (in, out).
ModuleWeights<float> factors(const Decomposition& decomposition, Index rank, bool transposed) {
  const Eigen::VectorXd roots = decomposition.values().head(rank).cwiseSqrt();
  const auto U = decomposition.svd.U.view().map();
  const auto V = decomposition.svd.V.view().map();
  ModuleWeights<float> module;
  module.A = (roots.asDiagonal() * (transposed ? U : V).leftCols(rank).transpose()).cast<float>();
  module.B = ((transposed ? V : U).leftCols(rank) * roots.asDiagonal()).cast<float>();
  return module;
}

bool same_values(const TensorView& a, const TensorView& b) {
  if (a.dtype == b.dtype && std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin(), b.bytes.end())) return true;
  if (!converts_to_real(a.dtype) || !converts_to_real(b.dtype) || a.dtype == b.dtype) return false;
  std::vector<double> x(static_cast<std::size_t>(a.size()));
  std::vector<double> y(x.size());
  a.copy_to(std::span<double>(x));
  b.copy_to(std::span<double>(y));
  return x == y;
}

class Extraction {
 public:
  Extraction(const Checkpoint& base, const Checkpoint& tuned, const Arguments& arguments)
      : base_(base),
        tuned_(tuned),
        arguments_(arguments),
        conv1d_modules_(tuned),
        progress_("Extracting", tuned.bytes()) {
    for (const auto& name : tuned.names()) modules_[module_of_parameter(name)].push_back(name);
    for (const auto& name : base.names()) {
      if (!tuned.find(name)) {
        throw ConfigError("extract", in_quotes(name), "a tensor of that name in the tuned checkpoint", "none");
      }
    }
    for (const auto& [module, names] : modules_) add_module(module, names);
    require_finite(weights_);
    if (weights_.modules.empty()) {
      throw ConfigError("extract", "checkpoints", "a weight of two dimensions that differs",
                        weights_.saved.empty() ? "equal ones" : "other tensors that differ");
    }
  }

  [[nodiscard]] const AdapterWeights<float>& weights() const noexcept { return weights_; }
  [[nodiscard]] LoraModelConfig config() const {
    LoraModelConfig config;
    config.lora.fan_in_fan_out = has_conv1d_;
    return config_of(std::move(config), weights_);
  }
  [[nodiscard]] const Table& table() const noexcept { return table_; }

 private:
  [[nodiscard]] std::vector<std::string> changed(const std::vector<std::string>& names) const {
    std::vector<std::string> result;
    for (const auto& name : names) {
      const auto before = base_.find(name);
      const auto after = tuned_.find(name);
      if (before && before->shape == after->shape && same_values(*before, *after)) continue;
      if (!converts_to_real(after->dtype)) {
        warn("tensor " + in_quotes(name) + " differs, and is not of real numbers: left out");
        continue;
      }
      result.push_back(name);
    }
    return result;
  }

  void add_module(const std::string& module, const std::vector<std::string>& names) {
    const auto differ = changed(names);
    if (!differ.empty() && module.empty()) {
      for (const auto& name : differ) {
        warn("tensor " + in_quotes(name) + " differs, but belongs to no module, and PEFT saves modules: left out");
      }
    } else if (!differ.empty()) {
      add_changed(module, names, differ);
    }
    for (const auto& name : names) {
      const auto tensor = *tuned_.find(name);
      tuned_.release(tensor);
      if (const auto before = base_.find(name)) base_.release(*before);
      progress_.advance(tensor.bytes.size());
    }
  }

  // Factors for a weight, with its bias beside them; a bias alone; otherwise the module as a whole.
  void add_changed(const std::string& module, const std::vector<std::string>& names,
                   const std::vector<std::string>& differ) {
    const std::string weight = module + ".weight";
    const std::string bias = module + ".bias";
    const auto before = base_.find(weight);
    const auto after = tuned_.find(weight);
    const bool same_shape = before && after && before->shape == after->shape;
    const bool matrix = same_shape && before->shape.size() == 2 && converts_to_real(before->dtype);
    const bool others = std::any_of(differ.begin(), differ.end(),
                                    [&](const std::string& name) { return name != weight && name != bias; });
    const bool weight_differs = std::find(differ.begin(), differ.end(), weight) != differ.end();
    const bool bias_differs = std::find(differ.begin(), differ.end(), bias) != differ.end();
    const bool bias_fits = !bias_differs || (base_.find(bias) && base_.find(bias)->shape == tuned_.find(bias)->shape);
    const bool bias_alone = !weight_differs && same_shape && before->shape.size() >= 2;
    if (others || !bias_fits || (weight_differs ? !matrix : !bias_alone)) {
      for (const auto& name : names) save(name);
      return;
    }
    if (weight_differs) add_factors(module, weight, *before, *after);
    if (bias_differs) save(bias);
  }

  void add_factors(const std::string& module, const std::string& name, const TensorView& before,
                   const TensorView& after) {
    const Decomposition decomposition = decompose(name, before, after, arguments_.rank);
    const Index most = std::min({arguments_.rank, before.shape[0], before.shape[1]});
    const Index rank = arguments_.energy > 0 ? rank_for(decomposition, arguments_.energy, most) : most;
    const double held = decomposition.values().head(rank).squaredNorm() / decomposition.energy;
    table_.add({name, std::to_string(rank), number(held)});
    const bool embedding = is_embedding(tuned_, module);
    const bool conv1d = !embedding && is_conv1d(module);
    has_conv1d_ = has_conv1d_ || conv1d;
    auto& added = weights_.modules.emplace(module, factors(decomposition, rank, embedding || conv1d)).first->second;
    if (embedding) added.kind = ModuleKind::embedding;
  }

  [[nodiscard]] bool is_conv1d(const std::string& module) const {
    if (const auto known = conv1d_modules_.contain(module)) return *known;
    throw ConfigError("extract", in_quotes(module + ".weight"),
                      "a weight known to be stored (out, in) or (in, out), by its shape or by config.json",
                      "a square one, and no model_type");
  }

  void save(const std::string& name) {
    const auto tensor = *tuned_.find(name);
    const auto before = base_.find(name);
    const bool fits =
        !before || (before->shape.size() == tensor.shape.size() &&
                    (before->shape == tensor.shape ||
                     std::equal(before->shape.begin() + 1, before->shape.end(), tensor.shape.begin() + 1)));
    if (!fits) {
      throw ShapeError("extract", in_quotes(name), "the base's shape " + shape_text(before->shape) + ", or more rows",
                       shape_text(tensor.shape));
    }
    if (!converts_to_real(tensor.dtype)) return;
    SavedTensor<float> saved{tensor.shape, std::vector<float>(static_cast<std::size_t>(tensor.size()))};
    tensor.copy_to(std::span<float>(saved.values));
    weights_.saved.emplace(name, std::move(saved));
    table_.add({name, "whole", "1"});
  }

  const Checkpoint& base_;
  const Checkpoint& tuned_;
  const Arguments& arguments_;
  Conv1dModules conv1d_modules_;
  bool has_conv1d_ = false;
  Progress progress_;
  std::map<std::string, std::vector<std::string>> modules_;
  AdapterWeights<float> weights_;
  Table table_{{"tensor", "rank", "energy held"}};
};

Checkpoint open_safetensors(const std::string& path) {
  Checkpoint checkpoint = Checkpoint::open(path);
  if (checkpoint.gguf() == nullptr) return checkpoint;
  throw ConfigError("extract", in_quotes(path, path.size()), "a checkpoint in safetensors, whose names PEFT has",
                    "GGUF");
}

void run(const Arguments& arguments) {
  Output output(arguments.output, Output::Kind::folder, arguments.force, belongs_to_adapter);
  const Checkpoint base = open_safetensors(arguments.base);
  const Checkpoint tuned = open_safetensors(arguments.tuned);
  const Extraction extraction(base, tuned, arguments);
  write_peft_directory(output.path(), extraction.config(), extraction.weights());
  output.commit();
  extraction.table().print();
  say(std::to_string(extraction.weights().modules.size()) + " modules in " + arguments.output);
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("extract", "Make an adapter from the difference of two checkpoints");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("base", arguments->base, "Safetensors file, index, or folder")
      ->required()
      ->check(existing_path());
  command->add_option("tuned", arguments->tuned, "The same after training")->required()->check(existing_path());
  command->add_option("output", arguments->output, "New PEFT directory")->required();
  command->add_option("--rank", arguments->rank, "Rank; with --energy, the largest rank")
      ->check(at_least(1))
      ->capture_default_str();
  command
      ->add_option("--energy", arguments->energy,
                   "Use the smallest rank that holds this fraction of the squared difference")
      ->check(fraction());
  command->add_flag("--force", arguments->force, "Overwrite an existing output");
  command->footer("Example: lora extract base.safetensors tuned.safetensors my-adapter --rank 64 --energy 0.99");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools::extract_command
