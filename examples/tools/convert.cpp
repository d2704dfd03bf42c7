// SPDX-License-Identifier: MIT
// lora convert: adapters from one file format to another.
#include <filesystem>
#include <memory>
#include <string>

#include "adapter_file.hpp"
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
  bool force = false;
};

Dtype parse_real_dtype(const std::string& name) {
  for (const Dtype dtype : {Dtype::F32, Dtype::F16, Dtype::BF16}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw ConfigError("convert", "--dtype", "F32, F16 or BF16", name);
}

GgufOptions gguf_options(const Arguments& arguments, bool writing) {
  GgufOptions options;
  if (!arguments.keep_names) options.rename = writing ? llama_cpp_name : transformers_name;
  if (arguments.heads > 0) {
    options.rope_heads = GgufHeads{arguments.heads, arguments.heads_kv > 0 ? arguments.heads_kv : arguments.heads};
  }
  options.dtype = parse_real_dtype(arguments.dtype);
  return options;
}

AdapterFile read_input(const Arguments& arguments, const GgufOptions& options) {
  AdapterFile read = read_adapter(arguments.input, arguments.adapter_name, options);
  if (is_gguf(arguments.input) && !is_gguf(arguments.output)) leave_out_norms(read);
  for (const auto& warning : read.warnings) warn(warning);
  require_finite(read.weights);
  return read;
}

void to_gguf(const Arguments& arguments, const std::filesystem::path& path) {
  if (arguments.architecture.empty()) {
    throw ConfigError("convert", "--architecture", "llama.cpp's name of the base model's architecture", "none");
  }
  AdapterFile read = read_input(arguments, {});
  require_no_start(read, "convert", arguments.input);
  write_gguf_adapter(path, {std::move(read.weights), {}, arguments.architecture}, gguf_options(arguments, true));
}

void to_peft(const Arguments& arguments, const std::filesystem::path& path) {
  const AdapterFile read = read_input(arguments, gguf_options(arguments, false));
  write_peft_directory(path, described_config(read.config, read.weights), read.weights,
                       {.dtype = parse_real_dtype(arguments.dtype)});
}

void run(const Arguments& arguments) {
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
                      "Base model's architecture, by llama.cpp's name: llama, qwen2");
  command->add_option("--dtype", arguments->dtype, "F32, F16 or BF16")->capture_default_str();
  auto* heads = command->add_option(
      "--heads", arguments->heads,
      "num_attention_heads, for architecture llama: permutes the rows of query and key as llama.cpp does");
  heads->check(at_least(1));
  command->add_option("--heads-kv", arguments->heads_kv, "num_key_value_heads; by default that of --heads")
      ->check(at_least(1))
      ->needs(heads);
  command->add_flag("--keep-names", arguments->keep_names, "Do not translate module names");
  command->add_flag("--force", arguments->force, "Overwrite an existing output");
  command->footer("Example: lora convert my-adapter my-adapter.gguf --architecture llama --heads 32 --heads-kv 8");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace lora::tools::convert_command
