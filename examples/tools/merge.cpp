// lora merge, lora unmerge: adds an adapter to a checkpoint's weights, or subtracts it again.
#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "adapter_file.hpp"
#include "checkpoint.hpp"
#include "checkpoint_writer.hpp"
#include "commands.hpp"
#include "table.hpp"
#include "tensor_update.hpp"

namespace lora::tools {
namespace {

struct Arguments {
  std::string base;
  std::string adapter;
  std::string output;
  std::string adapter_name = "default";
  std::string prefix;
  bool force = false;
  bool unmerge = false;
};

// The change of every tensor of the checkpoint, determined before anything is written.
class Merge {
 public:
  Merge(const Checkpoint& base, const AdapterFile& adapter, const Arguments& arguments)
      : base_(base), adapter_(adapter), prefix_(arguments.prefix), sign_(arguments.unmerge ? -1.0 : 1.0) {
    for (const auto& [name, module] : adapter.weights.modules) plan_module(name, module);
    for (const auto& [name, tensor] : adapter.weights.saved) plan_saved(name, tensor);
    if (!missing_.empty()) {
      throw ConfigError("merge", "checkpoint", "a tensor for every module of the adapter (--prefix may help)",
                        "none of " + missing_);
    }
  }

  [[nodiscard]] const std::map<std::string, Producer>& changed() const noexcept { return changed_; }
  [[nodiscard]] const RoundingError& error() const noexcept { return error_; }

 private:
  std::optional<TensorView> find(const std::string& name) {
    auto tensor = base_.find(name);
    if (!tensor) missing_.append(missing_.empty() ? "" : ", ").append(name);
    return tensor;
  }

  void plan_module(const std::string& name, const ModuleWeights<float>& module) {
    if (sign_ < 0 && module.magnitude.size() > 0) {
      throw ConfigError("unmerge", name, "an adapter without DoRA: the norms it divided by are not in the checkpoint",
                        "one with it");
    }
    const std::string weight = prefix_ + name + ".weight";
    const auto tensor = find(weight);
    if (!tensor) return;
    const bool transposed = module.kind == ModuleKind::embedding ||
                            (module.kind == ModuleKind::linear && adapter_.config.lora.fan_in_fan_out);
    if (tensor->dtype == Dtype::F64) {
      update<double>(weight, *tensor, module, transposed);
    } else {
      update<float>(weight, *tensor, module, transposed);
    }
    if (module.lora_bias.size() > 0) plan_bias(prefix_ + name + ".bias", module);
  }

  template <class Scalar>
  void update(const std::string& name, const TensorView& tensor, const ModuleWeights<float>& module, bool transposed) {
    const auto step = std::make_shared<TensorUpdate<Scalar>>(name, tensor, module, transposed, sign_);
    changed_[name] = [this, step](const SafetensorsWriter::Sink& sink) { step->produce(sink, error_); };
  }

  void plan_bias(const std::string& name, const ModuleWeights<float>& module) {
    const auto tensor = find(name);
    if (!tensor) return;
    changed_[name] = [this, tensor = *tensor, &module](const SafetensorsWriter::Sink& sink) {
      RowVector<double> bias = tensor.matrix<double>();
      bias += sign_ * module.scaling * module.lora_bias.cast<double>();
      emit(tensor.dtype, bias, sink);
    };
  }

  void plan_saved(const std::string& name, const SavedTensor<float>& saved) {
    if (sign_ < 0) {
      throw ConfigError("unmerge", name,
                        "an adapter that replaces no tensor whole: what was there is not in the checkpoint",
                        "one that does");
    }
    const auto tensor = find(prefix_ + name);
    if (!tensor) return;
    if (tensor->shape != saved.shape) {
      throw ShapeError("merge", name, "the checkpoint's shape", "another");
    }
    changed_[prefix_ + name] = [dtype = tensor->dtype, &saved](const SafetensorsWriter::Sink& sink) {
      const Eigen::Map<const RowVector<float>> values(saved.values.data(), static_cast<Index>(saved.values.size()));
      emit(dtype, RowVector<double>(values.cast<double>()), sink);
    };
  }

  static void emit(Dtype dtype, const RowVector<double>& values, const SafetensorsWriter::Sink& sink) {
    const auto count = static_cast<std::size_t>(values.size());
    std::vector<std::byte> bytes(count * bits_of(dtype) / 8);
    encode(dtype, std::span<const double>(values.data(), count), bytes.data());
    sink(bytes);
  }

  const Checkpoint& base_;
  const AdapterFile& adapter_;
  std::string prefix_;
  double sign_;
  std::string missing_;
  std::map<std::string, Producer> changed_;
  RoundingError error_;
};

void run(const Arguments& arguments) {
  const Checkpoint base = Checkpoint::open(arguments.base);
  const AdapterFile adapter = read_adapter(arguments.adapter, arguments.adapter_name);
  for (const auto& warning : adapter.warnings) std::fprintf(stderr, "warning: %s\n", warning.c_str());
  const Merge merge(base, adapter, arguments);
  write_checkpoint(base, arguments.output, arguments.force, merge.changed(),
                   arguments.unmerge ? "Unmerging" : "Merging");
  std::printf("%s %zu modules and %zu whole tensors into %s (%s)\n", arguments.unmerge ? "unmerged" : "merged",
              adapter.weights.modules.size(), adapter.weights.saved.size(), arguments.output.c_str(),
              size_text(base.bytes()).c_str());
  std::printf("rounding to the checkpoint's dtype: largest error %s, %s of what was added (root mean square)\n",
              number(merge.error().largest).c_str(), number(merge.error().relative()).c_str());
}

void add_one(CLI::App& app, bool unmerge) {
  auto* command = app.add_subcommand(unmerge ? "unmerge" : "merge",
                                     unmerge ? "Remove an adapter from a checkpoint it was merged into (up to rounding)"
                                             : "Add an adapter to a checkpoint's weights");
  const auto arguments = std::make_shared<Arguments>();
  arguments->unmerge = unmerge;
  command->add_option("checkpoint", arguments->base, "Safetensors file, index, or folder")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("adapter", arguments->adapter, "PEFT directory, GGUF or safetensors file")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("output", arguments->output, "New file; new folder for a checkpoint with an index")->required();
  command->add_option("--adapter", arguments->adapter_name, "Adapter to read from a directory with several")
      ->capture_default_str();
  command->add_option("--prefix", arguments->prefix, "Prefix of the adapter's module names in the checkpoint");
  command->add_flag("--force", arguments->force, "Overwrite an existing output");
  command->footer(unmerge ? "Example: lora unmerge merged.safetensors my-adapter base.safetensors"
                          : "Example: lora merge base-model my-adapter merged-model");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace

void add_merge(CLI::App& app) {
  add_one(app, false);
  add_one(app, true);
}

}  // namespace lora::tools
