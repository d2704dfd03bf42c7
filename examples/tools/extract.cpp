// lora extract: the adapter closest to the difference of two checkpoints.
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>

#include "checkpoint.hpp"
#include "commands.hpp"
#include "lora/adapter/truncated_svd.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/model/described_config.hpp"
#include "output.hpp"
#include "progress.hpp"
#include "table.hpp"

namespace lora::tools {
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

Decomposition decompose(const TensorView& base, const TensorView& tuned, Index most) {
  const Eigen::MatrixXd difference = tuned.matrix<double>() - base.matrix<double>();
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

ModuleWeights<float> factors(const Decomposition& decomposition, Index rank) {
  const Eigen::VectorXd roots = decomposition.values().head(rank).cwiseSqrt();
  const auto U = decomposition.svd.U.view().map();
  const auto V = decomposition.svd.V.view().map();
  ModuleWeights<float> module;
  module.A = (roots.asDiagonal() * V.leftCols(rank).transpose()).cast<float>();
  module.B = (U.leftCols(rank) * roots.asDiagonal()).cast<float>();
  return module;
}

void extract_tensor(const std::string& name, const TensorView& base, const TensorView& tuned,
                    const Arguments& arguments, AdapterWeights<float>& weights, Table& table) {
  const bool same = base.dtype == tuned.dtype && std::equal(base.bytes.begin(), base.bytes.end(), tuned.bytes.begin());
  if (same) return;
  if (base.shape.size() != 2 || !name.ends_with(".weight")) {
    SavedTensor<float> saved{tuned.shape, std::vector<float>(static_cast<std::size_t>(tuned.size()))};
    tuned.copy_to(std::span<float>(saved.values));
    weights.saved.emplace(name, std::move(saved));
    table.add({name, "whole", "1"});
    return;
  }
  const Decomposition decomposition = decompose(base, tuned, arguments.rank);
  if (decomposition.energy == 0) return;
  const Index most = std::min({arguments.rank, base.shape[0], base.shape[1]});
  const Index rank = arguments.energy > 0 ? rank_for(decomposition, arguments.energy, most) : most;
  const double held = decomposition.values().head(rank).squaredNorm() / decomposition.energy;
  table.add({name, std::to_string(rank), number(held)});
  weights.modules.emplace(name.substr(0, name.size() - std::string_view(".weight").size()),
                          factors(decomposition, rank));
}

void run(const Arguments& arguments) {
  require_free(arguments.output, arguments.force);
  const Checkpoint base = Checkpoint::open(arguments.base);
  const Checkpoint tuned = Checkpoint::open(arguments.tuned);
  AdapterWeights<float> weights;
  Table table({"tensor", "rank", "energy held"});
  Progress progress("Extracting", base.bytes());
  for (const auto& name : base.names()) {
    const auto a = base.find(name);
    const auto b = tuned.find(name);
    if (!b) throw ConfigError("extract", name, "a tensor of that name in the tuned checkpoint", "none");
    if (a->shape != b->shape) throw ShapeError("extract", name, "equal shapes", "two that differ");
    if (converts_to_real(a->dtype) && converts_to_real(b->dtype))
      extract_tensor(name, *a, *b, arguments, weights, table);
    base.release(*a);
    tuned.release(*b);
    progress.advance(a->bytes.size());
  }
  if (weights.modules.empty()) throw ConfigError("extract", "checkpoints", "weights that differ", "equal ones");
  LoraModelConfig config = described_config(LoraModelConfig{}, weights);
  for (const auto& [name, tensor] : weights.saved) {
    const std::string module = name.substr(0, name.rfind('.'));
    const auto& names = config.modules_to_save;
    if (std::find(names.begin(), names.end(), module) == names.end()) config.modules_to_save.push_back(module);
  }
  write_peft_directory(arguments.output, config, weights, {.overwrite = arguments.force});
  table.print();
  std::printf("%zu modules in %s\n", weights.modules.size(), arguments.output.c_str());
}

}  // namespace

void add_extract(CLI::App& app) {
  auto* command = app.add_subcommand("extract", "Make an adapter from the difference of two checkpoints");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("base", arguments->base, "Safetensors file, index, or folder")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("tuned", arguments->tuned, "The same after training")->required()->check(CLI::ExistingPath);
  command->add_option("output", arguments->output, "New PEFT directory")->required();
  command->add_option("--rank", arguments->rank, "Rank; with --energy, the largest rank")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--energy", arguments->energy,
                   "Use the smallest rank that holds this fraction of the squared difference")
      ->check(CLI::Range(0.0, 1.0));
  command->add_flag("--force", arguments->force, "Overwrite an existing output");
  command->footer("Example: lora extract base.safetensors tuned.safetensors my-adapter --rank 64 --energy 0.99");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools
