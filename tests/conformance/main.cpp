// SPDX-License-Identifier: MIT
// Runs reference vectors through the library: every case in the given folders, one line per case.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "conformance/cases.hpp"

namespace lora::conformance {
namespace {

struct Tally {
  int passed = 0;
  int failed = 0;
};

void report(const std::string& name, const std::function<void(Comparison&)>& check, Tally& tally) {
  Comparison comparison;
  std::string trouble;
  try {
    check(comparison);
  } catch (const std::exception& error) {
    trouble = error.what();
  }
  const bool passed = trouble.empty() && comparison.passed();
  passed ? ++tally.passed : ++tally.failed;
  std::printf("%s  %s: %s\n", passed ? "ok  " : "FAIL", name.c_str(),
              trouble.empty() ? comparison.text().c_str() : trouble.c_str());
}

void check_file(const std::filesystem::path& path, Comparison& comparison) {
  static const std::map<std::string, void (*)(GoldenCase&, Comparison&), std::less<>> kinds = {
      {"linear", check_linear},       {"conv1d", check_convolution},
      {"conv2d", check_convolution},  {"conv3d", check_convolution},
      {"embedding", check_embedding}, {"merged_linear", check_merged_linear},
      {"init", check_initialization}, {"combine", check_combination},
      {"training", check_training},   {"number_format", check_number_format},
  };
  GoldenCase golden(path);
  const auto kind = golden.options().get<std::string>("kind");
  const auto check = kinds.find(kind);
  if (check == kinds.end()) throw UnknownCase("unknown kind " + kind);
  golden.options().ignore("source");
  check->second(golden, comparison);
  golden.finish();
}

std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> entries;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

bool is_tensor_file(const std::filesystem::path& path) { return path.extension() == ".safetensors"; }

void check_verdicts(const std::filesystem::path& folder, Tally& tally) {
  std::ifstream file(folder / "expect.json");
  const auto verdicts = nlohmann::json::parse(file);
  for (const auto& item : verdicts.items()) {
    report(
        folder.filename().string() + "/" + item.key(),
        [&](Comparison& comparison) {
          check_malformed(folder / (item.key() + ".safetensors"), item.value().get<std::string>(), comparison);
        },
        tally);
  }
}

void check_folder(const std::filesystem::path& folder, Tally& tally) {
  if (exists(folder / "expect.json")) return check_verdicts(folder, tally);
  if (exists(folder / "adapter_config.json")) {
    return report(
        folder.filename().string(), [&](Comparison& comparison) { check_adapter(folder, comparison); }, tally);
  }
  for (const auto& path : entries_of(folder)) {
    if (is_directory(path)) {
      check_folder(path, tally);
    } else if (is_tensor_file(path)) {
      report(
          path.stem().string(), [&](Comparison& comparison) { check_file(path, comparison); }, tally);
    }
  }
}

int run(const std::vector<std::filesystem::path>& folders) {
  Tally tally;
  for (const auto& folder : folders) {
    if (!is_directory(folder)) {
      std::fprintf(stderr, "conformance: no folder '%s'\n", folder.c_str());
      return 2;
    }
    check_folder(folder, tally);
  }
  std::printf("%d passed, %d failed\n", tally.passed, tally.failed);
  return tally.failed == 0 && tally.passed > 0 ? 0 : 1;
}

}  // namespace
}  // namespace lora::conformance

int main(int argc, char** argv) {
  constexpr std::string_view usage =
      "usage: conformance DIR...\n\n"
      "Runs every case of reference vectors in the folders through the library. Prints one line per case, with its\n"
      "largest error and the bound, and finally \"N passed, M failed\". Exit code 0 if every case passed, 1 if one\n"
      "failed or there was none, 2 for wrong usage.\n\n"
      "A case is a .safetensors file with a description under __metadata__.case, a folder with adapter_config.json,\n"
      "adapter_model.safetensors, model.safetensors and expected.safetensors, or a file named in an expect.json.\n";
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    std::fputs(usage.data(), stdout);
    return 0;
  }
  if (arguments.empty()) {
    std::fputs(usage.data(), stderr);
    return 2;
  }
  try {
    return lora::conformance::run({arguments.begin(), arguments.end()});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "conformance: %s\n", error.what());
    return 2;
  }
}
