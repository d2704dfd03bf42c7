// SPDX-License-Identifier: MIT
// Any arguments of build/bin/lora end in one of its exit codes; after any but 0 every file is as it was.
//
// The tool is called in this process, in a folder of its own. An argument is a name out of a fixed list, or text that
// cannot name anything outside of the folder: without "/" and without "..".
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/fuzz_input.hpp"
#include "lora/io/gguf_adapter_writer.hpp"
#include "lora/io/gguf_encoder.hpp"
#include "lora/io/gguf_names.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/io/safetensors_writer.hpp"
#include "tools/commands.hpp"

namespace lora::tool_fuzz {
namespace {

namespace fs = std::filesystem;
using fuzzing::FuzzInput;

constexpr std::array<std::string_view, 9> commands{"inspect", "merge",   "unmerge",  "diff",      "extract",
                                                   "combine", "convert", "quantize", "dequantize"};
constexpr std::array<std::string_view, 14> paths{"base.safetensors",
                                                 "tuned.safetensors",
                                                 "base.gguf",
                                                 "adapter",
                                                 "adapter.gguf",
                                                 "factors.safetensors",
                                                 "new",
                                                 "new.gguf",
                                                 "new/deep",
                                                 ".",
                                                 "new.safetensors",
                                                 "none",
                                                 "model",
                                                 "four_bits"};
constexpr std::array<std::string_view, 32> options{"--output",
                                                   "--weights",
                                                   "--type",
                                                   "--density",
                                                   "--svd-rank",
                                                   "--seed",
                                                   "--peft",
                                                   "--force",
                                                   "--adapter",
                                                   "--dtype",
                                                   "--heads",
                                                   "--heads-kv",
                                                   "--all",
                                                   "--json",
                                                   "--rank",
                                                   "--energy",
                                                   "--prefix",
                                                   "--linear",
                                                   "--conv1d",
                                                   "--format",
                                                   "--block",
                                                   "--double-quant",
                                                   "--modules",
                                                   "--keep-names",
                                                   "--architecture",
                                                   "--help",
                                                   "-o",
                                                   "-w",
                                                   "-t",
                                                   "--",
                                                   "--keep-rows",
                                                   "-"};
constexpr std::array<std::string_view, 32> values{"1",
                                                  "2",
                                                  "0",
                                                  "-1",
                                                  "0.5",
                                                  "1000000000",
                                                  "1e308",
                                                  "nan",
                                                  "inf",
                                                  "18446744073709551615",
                                                  "",
                                                  "linear",
                                                  "cat",
                                                  "svd",
                                                  "ties",
                                                  "dare_ties",
                                                  "dare_linear_svd",
                                                  "magnitude_prune",
                                                  "ties_svd",
                                                  "default",
                                                  "F32",
                                                  "F16",
                                                  "BF16",
                                                  "q8_0",
                                                  "q4_0",
                                                  "nf4",
                                                  "fp4",
                                                  "f16",
                                                  "llama",
                                                  "64",
                                                  "q_proj",
                                                  "32"};

/// Texts by paths; the path of a folder ends in a slash.
using Files = std::map<std::string, std::string>;

Files files_in(const fs::path& folder) {
  Files files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).native();
    if (entry.is_directory()) {
      files[name + "/"] = {};
      continue;
    }
    std::ifstream stream(entry.path(), std::ios::binary);
    files[name].assign(std::istreambuf_iterator<char>(stream), {});
  }
  return files;
}

ModuleWeights<float> module_of(Index out, Index in, float value) {
  ModuleWeights<float> module;
  module.A = Matrix<float>::Constant(2, in, value);
  module.B = Matrix<float>::Constant(out, 2, 0.5F);
  module.scaling = 2;
  return module;
}

/// The exit code; the process returns to where it was.
int run_in(const fs::path& folder, std::vector<std::string> arguments) {
  std::vector<char*> pointers;
  for (std::string& text : arguments) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  const fs::path before = fs::current_path();
  fs::current_path(folder);
  const int code = tools::run_command_line(static_cast<int>(arguments.size()), pointers.data());
  fs::current_path(before);
  return code;
}

/// The folder that the tool works in. Another around it takes what is written beside ".".
class Place {
 public:
  Place() {
    fs::create_directory(work());
    make();
    made_ = files_in(work());
    renew();
  }

  [[nodiscard]] fs::path work() const { return folder_ / "work"; }
  [[nodiscard]] bool is_as_made() const { return files_in(work()) == made_; }
  /// Whether nothing is left beside the folder.
  [[nodiscard]] bool is_alone() const {
    return std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()) == 1;
  }
  void renew() const {
    fs::remove_all(work());
    fs::create_directory(work());
    for (const auto& [name, text] : made_) {
      if (name.ends_with('/')) {
        fs::create_directory(work() / name);
      } else {
        std::ofstream(work() / name, std::ios::binary) << text;
      }
    }
  }

 private:
  static constexpr Index out = 4;
  static constexpr Index in = 64;

  void make() const {
    const std::string name = "model.layers.0.self_attn.q_proj";
    for (const float value : {1.0F, 1.25F}) {
      SafetensorsWriter writer;
      writer.add(name + ".weight", Matrix<float>(Matrix<float>::Constant(out, in, value)));
      writer.add(name + ".bias", RowVector<float>(RowVector<float>::Ones(out)));
      writer.write(work() / (value == 1.0F ? "base.safetensors" : "tuned.safetensors"));
    }
    SafetensorsWriter factors;
    factors.add(name + ".lora_A.weight", module_of(out, in, 1).A);
    factors.add(name + ".lora_B.weight", module_of(out, in, 1).B);
    factors.write(work() / "factors.safetensors");
    GgufAdapter adapter;
    adapter.architecture = "llama";
    adapter.weights.modules[name] = module_of(out, in, 0.25F);
    write_peft_directory(work() / "adapter",
                         {.lora = {.rank = 2, .alpha = 4}, .target_modules = ModuleSelector{"q_proj"}},
                         adapter.weights);
    write_gguf_adapter(work() / "adapter.gguf", adapter, {.rename = llama_cpp_name});
    write_base_gguf();
    write_model();
    const int code = run_in(work(), {"lora", "quantize", "model", "four_bits", "--format", "nf4", "--double-quant"});
    if (code != 0) std::abort();
  }

  void write_text(const fs::path& path, std::string_view text) const {
    std::ofstream(work() / path, std::ios::binary) << text;
  }

  /// A checkpoint of transformers, in two shards: an embedding, a Conv1D that only its bias and the configuration tell
  /// from a linear layer, and the module of the adapter.
  void write_model() const {
    fs::create_directory(work() / "model");
    SafetensorsWriter first;
    first.add("wte.weight", Matrix<float>(Matrix<float>::Constant(8, in, 0.5F)));
    first.add("h.0.attn.c_attn.weight", Matrix<float>(Matrix<float>::Constant(in, 2 * in, 0.25F)));
    first.add("h.0.attn.c_attn.bias", RowVector<float>(RowVector<float>::Zero(2 * in)));
    first.write(work() / "model" / "model-00001-of-00002.safetensors");
    SafetensorsWriter second;
    second.add("model.layers.0.self_attn.q_proj.weight", Matrix<float>(Matrix<float>::Ones(out, in)), Dtype::BF16);
    second.write(work() / "model" / "model-00002-of-00002.safetensors");
    write_text("model/config.json", R"({"model_type":"gpt2","vocab_size":8,"tie_word_embeddings":true,"x":Infinity})");
    write_text("model/model.safetensors.index.json",
               R"({"metadata":{"total_size":35584},"weight_map":{)"
               R"("wte.weight":"model-00001-of-00002.safetensors",)"
               R"("h.0.attn.c_attn.weight":"model-00001-of-00002.safetensors",)"
               R"("h.0.attn.c_attn.bias":"model-00001-of-00002.safetensors",)"
               R"("model.layers.0.self_attn.q_proj.weight":"model-00002-of-00002.safetensors"}})");
  }

  void write_base_gguf() const {
    detail::GgufEncoder encoder(detail::gguf_default_alignment);
    encoder.add_metadata("general.architecture", std::string("llama"));
    encoder.add_metadata("llama.attention.head_count", std::uint32_t{2});
    (void)encoder.add_tensor("blk.0.attn_q.weight", std::array<std::uint64_t, 2>{in, out}, GgufType::F32, in * out * 4);
    const std::vector<std::byte> bytes = std::move(encoder).finish();
    std::ofstream(work() / "base.gguf", std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }

  fuzzing::FuzzFolder folder_;
  Files made_;
};

/// Text of the input's own that stays in the folder.
std::string harmless(std::string text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '/' || text[i] == '\0' || (text[i] == '.' && i > 0 && text[i - 1] == '.')) text[i] = '_';
  }
  return text;
}

std::string argument(FuzzInput& input) {
  switch (input.below(8)) {
    case 0:
    case 1:
      return std::string(input.one_of(paths));
    case 2:
    case 3:
      return std::string(input.one_of(options));
    case 4:
      return std::string(input.one_of(values));
    case 5:
      return std::string(input.one_of(options)).append("=").append(input.one_of(values));
    case 6:
      return std::string(input.one_of(options)).append("=").append(input.one_of(paths));
    default:
      return harmless(input.text_until(0));
  }
}

std::vector<std::string> command_line(FuzzInput& input) {
  std::vector<std::string> arguments{"lora"};
  arguments.emplace_back(input.rarely() ? harmless(input.text_until(0)) : std::string(input.one_of(commands)));
  while (!input.empty() && arguments.size() < 16) arguments.push_back(argument(input));
  return arguments;
}

}  // namespace
}  // namespace lora::tool_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lora::tool_fuzz;
  static const Place place;
  lora::fuzzing::FuzzInput input(data, size);
  const int code = run_in(place.work(), command_line(input));
  if (code < 0 || code > 2 || !place.is_alone()) std::abort();
  const bool same = place.is_as_made();
  if (code != 0 && !same) std::abort();
  if (!same) place.renew();
  return 0;
}
