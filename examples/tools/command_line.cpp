// SPDX-License-Identifier: MIT
// The command line of build/bin/lora: its commands, what it reports and its exit codes.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "commands.hpp"
#include "lora/core/error.hpp"
#include "print.hpp"

namespace {

constexpr int done = 0;
constexpr int failed = 1;
constexpr int wrong_usage = 2;
constexpr int done_unreported = 3;

int report(int code, const std::string& text) {
  std::fprintf(stderr, "lora: %s\n", lora::tools::printable(text, true).c_str());
  return code;
}

std::string names_of_commands(const CLI::App& app) {
  std::string names;
  for (const auto* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.append(names.empty() ? "" : ", ").append(command->get_name());
  }
  return names;
}

bool has_output(const CLI::App& app) {
  const auto commands = app.get_subcommands();
  return std::any_of(commands.begin(), commands.end(), [](const CLI::App* command) {
    return command->get_option_no_throw("output") != nullptr || command->get_option_no_throw("--output") != nullptr;
  });
}

int finish(bool has_written) {
  try {
    lora::tools::finish_printing();
  } catch (const lora::IoError& error) {
    if (!has_written) throw;
    return report(done_unreported, std::string(error.what()) + "; the output itself is written, and complete");
  }
  return done;
}

int run(CLI::App& app, int argc, char** argv) {
  const std::string first = argc < 2 ? "" : argv[1];
  const bool asks_for_help = first == "--help" || first == "-h";
  if (first.empty() || (first.starts_with('-') && !asks_for_help)) {
    return report(wrong_usage, "expected a command: " + names_of_commands(app) + " (see lora --help)");
  }
  const auto has_name = [&](const CLI::App* command) { return command->get_name() == first; };
  if (!asks_for_help && app.get_subcommands(has_name).empty()) {
    return report(wrong_usage, "there is no command \"" + first + "\"; the commands are " + names_of_commands(app));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    app.exit(help);
    return finish(false);
  }
  return finish(has_output(app));
}

}  // namespace

int lora::tools::run_command_line(int argc, char** argv) {
  CLI::App app(
      "Works on LoRA adapters (PEFT directories, GGUF files, safetensors files with pairs of factors) and on the\n"
      "checkpoints they belong to (safetensors files, also with 4-bit weights of bitsandbytes; folders with an index\n"
      "of shards; GGUF files of F32, F16, BF16 and the block formats of llama.cpp).");
  app.name("lora");
  app.require_subcommand(1);
  app.footer(
      "lora COMMAND --help shows an example.\n"
      "Exit codes: 0 done; 1 refused or failed, the output is as it was before; 2 wrong usage;\n"
      "3 done, but what was to be printed of it is not complete.");
  lora::tools::inspect_command::add(app);
  lora::tools::merge_command::add(app);
  lora::tools::diff_command::add(app);
  lora::tools::extract_command::add(app);
  lora::tools::combine_command::add(app);
  lora::tools::convert_command::add(app);
  lora::tools::quantize_command::add(app);
  lora::tools::dequantize_command::add(app);
  try {
    return run(app, argc, argv);
  } catch (const CLI::ParseError& error) {
    return report(wrong_usage, std::string(error.what()) + " (see --help)");
  } catch (const std::bad_alloc&) {
    return report(failed, "not enough memory");
  } catch (const std::exception& error) {
    return report(failed, error.what());
  }
}
