// build/bin/lora: looks at adapters and checkpoints, merges, compares, extracts, combines and converts them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "commands.hpp"

int main(int argc, char** argv) {
  CLI::App app(
      "Works on LoRA adapters (PEFT directories, GGUF files, safetensors files with pairs of factors) and on the\n"
      "checkpoints they belong to (safetensors files, or folders with an index of shards).");
  app.name("lora");
  app.require_subcommand(1);
  app.footer(
      "lora COMMAND --help shows an example.\n"
      "Exit codes: 0 done, 1 refused or failed (no partial output), 2 wrong usage.");
  lora::tools::add_inspect(app);
  lora::tools::add_merge(app);
  lora::tools::add_diff(app);
  lora::tools::add_extract(app);
  lora::tools::add_combine(app);
  lora::tools::add_convert(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    return app.exit(success);
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "lora: %s\n", error.what());
    return 1;
  }
  return 0;
}
