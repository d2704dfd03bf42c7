// SPDX-License-Identifier: MIT
// Adapter directories: read, injected by name, counted, run, merged, and compared with PEFT's results.
#include <algorithm>
#include <set>
#include <string>

#include "conformance/cases.hpp"
#include "lora/io/peft_directory.hpp"
#include "support/golden_network.hpp"

namespace lora::conformance {
namespace adapter_case {
namespace {

void compare_weights(GoldenCase& expected, Comparison& comparison, const testing::GoldenNetwork& network) {
  for (const auto& [name, weight] : network.weights()) {
    comparison.close<float>("merged." + name, weight, expected.matrix<float>("merged." + name));
  }
}

}  // namespace
}  // namespace adapter_case

void check_adapter(const std::filesystem::path& directory, Comparison& comparison) {
  GoldenCase expected(directory / "expected.safetensors");
  auto& options = expected.options();
  const auto base = SafetensorsFile::open(directory / "model.safetensors");
  const auto adapter = read_peft_directory<float>(directory);
  const auto& saved = adapter.config.modules_to_save;
  const bool head_is_saved = std::find(saved.begin(), saved.end(), "head") != saved.end();

  testing::GoldenNetwork network(base, options.get<Index>("layers"), options.get<bool>("gpt2_conv1d_up"),
                                 head_is_saved);
  LoraModel<float> model;
  network.add_to(model);
  model.load(adapter.config, adapter.weights);

  const ParameterCount count = model.parameter_count();
  comparison.equal("trainable parameters", count.trainable, options.get<Index>("trainable"));
  comparison.equal("all parameters", count.all, options.get<Index>("all"));
  comparison.equal("hidden", base.tensor("model.embed.weight").shape.at(1), options.get<Index>("hidden"));

  const auto ids = expected.vector<std::int64_t>("ids");
  const auto y = expected.matrix<float>("y");
  comparison.close<float>("y", network.infer(ids), y);
  model.eval();
  comparison.close<float>("y, merged", network.infer(ids), y);
  adapter_case::compare_weights(expected, comparison, network);
  expected.finish();
}

}  // namespace lora::conformance
