// SPDX-License-Identifier: MIT
// lora convert: adapters from one file format to another.
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "adapter_file.hpp"
#include "base_names.hpp"
#include "commands.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/model/described_config.hpp"
#include "options.hpp"
#include "output.hpp"
#include "print.hpp"

namespace lora::tools::convert_command {
namespace {

struct Arguments {
  std::string input;
  std::string output;
  std::string adapter_name = "default";
  std::string architecture;
  std::string dtype = "F32";
  Index heads = 0;
  Index heads_kv = 0;
  bool keep_names = false;
  bool keep_rows = false;
  bool force = false;
};

Dtype parse_real_dtype(const std::string& name) {
  for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw ConfigError("convert", "--dtype", "F32, F16 or BF16", name);
}

/// The heads that the call names.
std::optional<GgufHeads> heads_of(const Arguments& arguments) {
  if (arguments.heads == 0) return std::nullopt;
  return GgufHeads{arguments.heads, arguments.heads_kv > 0 ? arguments.heads_kv : arguments.heads};
}

/// The number of rows of each query and key, by its name in the GGUF file.
std::map<std::string, Index> rotary_rows(const AdapterWeights<float>& weights, bool writing) {
  std::map<std::string, Index> rows;
  for (const auto& [name, module] : weights.modules) {
    const std::string stem = writing ? llama_cpp_name(name) : name;
    if (lora::detail::gguf_rope_heads(stem, {.rope_heads = GgufHeads{1, 1}}) > 0) rows[stem] = module.B.rows();
  }
  return rows;
}

/// Wrong numbers of heads mostly divide the rows too, but into heads of different sizes.
void require_heads_of_one_size(const std::map<std::string, Index>& rows, const GgufHeads& heads) {
  const auto size_of = [&](const auto& entry) {
    return entry.second / lora::detail::gguf_rope_heads(entry.first, {.rope_heads = heads});
  };
  for (const auto& entry : rows) {
    const auto& first = *rows.begin();
    if (size_of(entry) == size_of(first)) continue;
    throw ConfigError("convert", "--heads-kv", "heads of one size in query and key",
                      std::to_string(size_of(first)) + " rows a head in " + in_quotes(first.first) + ", " +
                          std::to_string(size_of(entry)) + " in " + in_quotes(entry.first));
  }
}

/// The heads by which the rows of query and key change their order between transformers and llama.cpp; none if they
/// stay. Names that stay keep their rows too.
std::optional<GgufHeads> permuting_heads(const Arguments& arguments, const std::string& architecture,
                                         const AdapterWeights<float>& weights, bool writing) {
  if (arguments.keep_rows || arguments.keep_names) return std::nullopt;
  const auto rows = rotary_rows(weights, writing);
  if (rows.empty()) return std::nullopt;
  const auto heads = heads_of(arguments);
  const auto permutes = tools::detail::permutes_rows(architecture);
  if (!permutes && !heads) {
    throw ConfigError(
        "convert", "architecture",
        tools::detail::known_orders_of_rows() + "; or --heads, to permute the rows of query and key, or --keep-rows",
        in_quotes(architecture));
  }
  if (permutes == true && !heads) {
    throw ConfigError("convert", "--heads", "the number of attention heads, to order the rows of query and key",
                      "none");
  }
  if (permutes == false && heads) {
    throw ConfigError("convert", "--heads", "none, as the rows of " + architecture + " are in one order everywhere",
                      std::to_string(heads->heads));
  }
  if (heads) require_heads_of_one_size(rows, *heads);
  return heads;
}

std::string architecture_of(const Arguments& arguments, const AdapterFile& read) {
  const std::string& named = arguments.architecture;
  const std::string& architecture = read.architecture.empty() ? named : read.architecture;
  if (architecture.empty()) {
    throw ConfigError("convert", "--architecture", "llama.cpp's name of the base model's architecture", "none");
  }
  if (!named.empty() && named != architecture) {
    throw ConfigError("convert", "--architecture", in_quotes(architecture) + ", as the input says", in_quotes(named));
  }
  return architecture;
}

AdapterFile read_input(const Arguments& arguments, const GgufOptions& options = {}) {
  return read_adapter(arguments.input, arguments.adapter_name, options);
}

void check_input(const AdapterFile& read) {
  for (const auto& warning : read.warnings) warn(warning);
  require_finite(read.weights);
}

/// Where the metadata says in which type most tensors are (llama.cpp's LLAMA_FTYPE), that is now `dtype`.
void set_file_type(GgufMetadata& metadata, Dtype dtype) {
  const auto found = metadata.find("general.file_type");
  if (found == metadata.end()) return;
  found->second = dtype == Dtype::F32 ? std::uint32_t{0} : dtype == Dtype::F16 ? std::uint32_t{1} : std::uint32_t{32};
}

void to_gguf(const Arguments& arguments, const std::filesystem::path& path) {
  AdapterFile read = read_input(arguments);
  check_input(read);
  require_no_start(read, "convert", arguments.input);
  const std::string architecture = architecture_of(arguments, read);
  GgufOptions options;
  options.dtype = parse_real_dtype(arguments.dtype);
  if (!is_gguf(arguments.input)) {
    if (!arguments.keep_names) options.rename = llama_cpp_name;
    options.rope_heads = permuting_heads(arguments, architecture, read.weights, true);
  }
  set_file_type(read.metadata, options.dtype);
  write_gguf_adapter(path, {std::move(read.weights), std::move(read.metadata), architecture}, options);
}

/// By the names of transformers, with rows in their order.
AdapterFile read_gguf_input(const Arguments& arguments) {
  const AdapterFile as_stored = read_input(arguments);
  GgufOptions options;
  if (!arguments.keep_names) options.rename = tools::detail::transformers_name_if_any;
  options.rope_heads = permuting_heads(arguments, architecture_of(arguments, as_stored), as_stored.weights, false);
  AdapterFile read = read_input(arguments, options);
  leave_out_norms(read);
  return read;
}

void to_peft(const Arguments& arguments, const std::filesystem::path& path) {
  const AdapterFile read = is_gguf(arguments.input) ? read_gguf_input(arguments) : read_input(arguments);
  check_input(read);
  write_peft_directory(path, described_config(read.config, read.weights), read.weights,
                       {.dtype = parse_real_dtype(arguments.dtype)});
}

void check_heads(const Arguments& arguments) {
  if (arguments.heads == 0 || is_gguf(arguments.input) != is_gguf(arguments.output)) return;
  throw ConfigError("convert", "--heads", "none, as rows change their order between PEFT and GGUF alone",
                    std::to_string(arguments.heads));
}

void run(const Arguments& arguments) {
  check_heads(arguments);
  const bool gguf = is_gguf(arguments.output);
  Output output(arguments.output, gguf ? Output::Kind::file : Output::Kind::folder, arguments.force,
                belongs_to_adapter);
  gguf ? to_gguf(arguments, output.path()) : to_peft(arguments, output.path());
  output.commit();
  say("wrote " + arguments.output);
}

}  // namespace

void add(CLI::App& app) {
  auto* command = app.add_subcommand("convert", "Convert a PEFT directory to llama.cpp's GGUF, or any format to PEFT");
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("input", arguments->input, "PEFT directory, GGUF or safetensors file")
      ->required()
      ->check(existing_path());
  command->add_option("output", arguments->output, "*.gguf for GGUF, otherwise a new PEFT directory")->required();
  command->add_option("--adapter", arguments->adapter_name, "Adapter to read from a directory with several")
      ->capture_default_str();
  command->add_option("--architecture", arguments->architecture,
                      "Base model's architecture, by llama.cpp's name: llama, qwen2; a GGUF input says it");
  command->add_option("--dtype", arguments->dtype, "F32, F16 or BF16")->capture_default_str();
  auto* heads = command->add_option(
      "--heads", arguments->heads,
      "num_attention_heads, for architecture llama between PEFT and GGUF: the rows of query and key are permuted");
  heads->check(at_least(1));
  command->add_option("--heads-kv", arguments->heads_kv, "num_key_value_heads; by default that of --heads")
      ->check(at_least(1))
      ->needs(heads);
  command->add_flag("--keep-names", arguments->keep_names, "Translate neither module names nor the order of rows")
      ->excludes(heads);
  command
      ->add_flag("--keep-rows", arguments->keep_rows,
                 "Do not permute rows: for architectures that the tool does not know and llama.cpp does not permute")
      ->excludes(heads);
  command->add_flag("--force", arguments->force, "Overwrite an existing output");
  command->footer("Example: lora convert my-adapter my-adapter.gguf --architecture llama --heads 32 --heads-kv 8");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools::convert_command
