// SPDX-License-Identifier: MIT
// PEFT folders with whole files, made of the input's choices: a configuration, and tensors whose names, types and
// shapes mostly fit it. They end in one of the library's errors, or in an adapter whose factors can be multiplied and
// that is written and read again as it is.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/fuzz_input.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/io/safetensors_writer.hpp"

namespace lora::peft_adapter_fuzz {
namespace {

using fuzzing::FuzzFolder;
using fuzzing::FuzzInput;

constexpr std::array<std::string_view, 8> modules{"model.layers.0.q_proj",
                                                  "model.layers.1.q_proj",
                                                  "model.layers.1.v_proj",
                                                  "model.embed_tokens",
                                                  "lm_head",
                                                  "conv",
                                                  "head.modules_to_save",
                                                  "a.lora_A.b"};
constexpr std::array<std::string_view, 8> suffixes{".lora_A.weight",     ".lora_B.weight",    ".lora_B.bias",
                                                   ".lora_embedding_A",  ".lora_embedding_B", ".lora_magnitude_vector",
                                                   ".lora_velora_embed", ".base_layer.bias"};
constexpr std::array<std::string_view, 4> biases{"none", "all", "lora_only", "some"};
constexpr std::array<std::string_view, 4> patterns{"q_proj", "layers\\.1\\..*", ".*_proj", "model.(embed|layers)"};
constexpr std::array<Dtype, 4> real_types{Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64};

/// adapter_config.json, and what the tensors need to know of it.
class Config {
 public:
  explicit Config(FuzzInput& input) : input_(input) {
    rank = static_cast<Index>(1 + input.below(6));
    text = R"({"peft_type":"LORA","r":)" + std::to_string(rank);
    add("lora_alpha", std::to_string(input.byte()));
    dora = add_flag("use_dora");
    lora_bias = add_flag("lora_bias");
    add_flag("use_rslora");
    add("target_modules", input.flag() ? R"(["q_proj","v_proj","embed_tokens","lm_head","conv"])" : pattern());
    add("bias", quoted(biases[input.rarely() ? 3 : input.below(3)]));
    if (input.rarely()) add("rank_pattern", pattern_for(input.below(9)));
    if (input.rarely()) add("alpha_pattern", pattern_for(input.byte()));
    if (input.rarely()) add("modules_to_save", "[" + pattern() + "]");
    if (input.rarely()) add("exclude_modules", pattern());
    if (input.rarely()) add("layers_to_transform", std::to_string(input.below(3)));
    if (input.rarely()) add("layers_pattern", pattern());
    if (input.rarely()) add("qalora_group_size", std::to_string(input.below(5))), add_flag("use_qalora");
    if (input.rarely()) text.append(",").append(input.text());
    text += "}";
  }

 private:
  static std::string quoted(std::string_view value) { return nlohmann::json(value).dump(); }

  std::string pattern() {
    if (!input_.rarely()) return quoted(input_.one_of(patterns));
    const std::string own = input_.text();
    return utf8_prefix(own) == own.size() ? quoted(own) : "0";
  }
  std::string pattern_for(std::size_t value) { return "{" + pattern() + ":" + std::to_string(value) + "}"; }
  void add(std::string_view key, std::string_view value) { text.append(",\"").append(key).append("\":").append(value); }
  bool add_flag(std::string_view key) {
    const bool value = input_.byte() % 4 == 3;
    add(key, value ? "true" : "false");
    return value;
  }

  FuzzInput& input_;

 public:
  Index rank = 0;
  bool dora = false;
  bool lora_bias = false;
  std::string text;
};

/// adapter_model.safetensors
class Tensors {
 public:
  Tensors(FuzzInput& input, const Config& config) : input_(input), config_(config) {
    for (std::size_t left = input.below(6); left > 0; --left) add_module();
    for (std::size_t left = input.below(3); left > 0; --left) {
      const std::string name = peft_module().append(input.one_of(suffixes));
      add(name, {extent(), extent()});
    }
    if (input.flag()) add("base_model.model.model.layers.0.q_proj.base_layer.bias", {extent()});
  }

  [[nodiscard]] const SafetensorsWriter& writer() const { return writer_; }

 private:
  Index extent() { return static_cast<Index>(input_.rarely() ? input_.below(65) : 1 + input_.below(4)); }
  std::string peft_module() { return "base_model.model." + std::string(input_.one_of(modules)); }

  void add_module() {
    const std::string name = peft_module();
    const bool embedding = input_.byte() % 4 == 3;
    const std::size_t kernel = embedding ? 0 : input_.byte() % 8 < 4 ? 0 : input_.below(4);
    const Index out = extent();
    std::vector<Index> A{config_.rank, extent()};
    std::vector<Index> B{out, config_.rank};
    if (kernel > 0 && input_.rarely()) B[1] = extent();  // groups
    for (std::size_t d = 0; d < kernel; ++d) A.push_back(extent()), B.push_back(1);
    add(name + (embedding ? ".lora_embedding_A" : ".lora_A.weight"), A);
    add(name + (embedding ? ".lora_embedding_B" : ".lora_B.weight"), B);
    if (config_.lora_bias && !embedding) add(name + ".lora_B.bias", {out});
    if (!config_.dora) return;
    std::vector<Index> magnitude(kernel > 0 ? kernel + 2 : 1, 1);
    magnitude[kernel > 0 ? 1 : 0] = out;
    add(name + ".lora_magnitude_vector", magnitude);
  }

  void add(std::string name, std::vector<Index> shape) {
    if (input_.rarely()) name = input_.flag() ? input_.text() : peft_module() + ".weight";
    if (input_.rarely()) shape[input_.below(shape.size())] = extent();
    if (input_.rarely()) shape.push_back(extent());
    const Dtype dtype =
        input_.rarely() ? dtype_table[input_.below(dtype_table.size())].dtype : input_.one_of(real_types);
    std::size_t elements = 1;
    for (const Index size : shape) elements *= static_cast<std::size_t>(size);
    if (elements > 4096) return;
    std::vector<std::byte> values((elements * bits_of(dtype) + 7) / 8);
    // The first bytes are the input's own, the others repeat one: inputs stay short.
    const std::size_t own = std::min<std::size_t>(values.size(), 8);
    input_.fill({values.data(), own});
    std::fill(values.begin() + static_cast<std::ptrdiff_t>(own), values.end(), std::byte{input_.byte()});
    writer_.add(std::move(name), dtype, std::move(shape), std::move(values));
  }

  FuzzInput& input_;
  const Config& config_;
  SafetensorsWriter writer_;
};

template <class Derived>
void require_same(const Eigen::PlainObjectBase<Derived>& a, const Eigen::PlainObjectBase<Derived>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) std::abort();
  const auto bytes = static_cast<std::size_t>(a.size()) * sizeof(typename Derived::Scalar);
  if (bytes > 0 && std::memcmp(a.data(), b.data(), bytes) != 0) std::abort();
}

void require_same(const AdapterWeights<double>& a, const AdapterWeights<double>& b) {
  if (a.modules.size() != b.modules.size() || a.saved.size() != b.saved.size()) std::abort();
  for (const auto& [name, module] : a.modules) {
    const ModuleWeights<double>& other = b.modules.at(name);
    require_same(module.A, other.A);
    require_same(module.B, other.B);
    require_same(module.lora_bias, other.lora_bias);
    require_same(module.magnitude, other.magnitude);
    const bool same = module.kind == other.kind && module.kernel_size == other.kernel_size &&
                      module.scaling == other.scaling && module.qalora_group_size == other.qalora_group_size;
    if (!same) std::abort();
  }
  for (const auto& [name, tensor] : a.saved) {
    const SavedTensor<double>& other = b.saved.at(name);
    if (tensor.shape != other.shape || tensor.values.size() != other.values.size()) std::abort();
    const std::size_t bytes = tensor.values.size() * sizeof(double);
    if (bytes > 0 && std::memcmp(tensor.values.data(), other.values.data(), bytes) != 0) std::abort();
  }
}

void use(const PeftAdapter<double>& adapter) {
  for (const auto& [name, module] : adapter.weights.modules) {
    if (module.rank() < 1 || module.rank() != module.B.cols() * peft_groups(module)) std::abort();
    if (peft_groups(module) == 1 && (module.scaling * (module.B * module.A)).eval().size() == 0) std::abort();
  }
}

void write_and_read(const PeftAdapter<double>& adapter, const FuzzFolder& folder) {
  write_peft_directory(folder / "again", adapter, {.overwrite = true});
  // What was refused in writing has been thrown by now; what was written must be read.
  try {
    require_same(adapter.weights, read_peft_directory<double>(folder / "again").weights);
  } catch (const Error&) {
    std::abort();
  }
}

}  // namespace
}  // namespace lora::peft_adapter_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lora::peft_adapter_fuzz;
  static const lora::fuzzing::FuzzFolder folder;
  lora::fuzzing::FuzzInput input(data, size);
  try {
    const bool strict = !input.rarely();
    const Config config(input);
    folder.write("adapter_config.json", config.text);
    const std::vector<std::byte> tensors = Tensors(input, config).writer().to_bytes();
    folder.write("adapter_model.safetensors", {reinterpret_cast<const char*>(tensors.data()), tensors.size()});
    const auto adapter = lora::read_peft_directory<double>(folder.path(), {.strict = strict});
    use(adapter);
    write_and_read(adapter, folder);
  } catch (const lora::Error&) {
  }
  return 0;
}
