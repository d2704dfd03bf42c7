// SPDX-License-Identifier: MIT
// GGUF adapters with a whole header, made of the input's choices: they end in one of the library's errors, or in an
// adapter whose factors can be multiplied and that is written and read again as it is.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/fuzz_input.hpp"
#include "lora/io/gguf_adapter_reader.hpp"
#include "lora/io/gguf_adapter_writer.hpp"
#include "lora/io/gguf_encoder.hpp"
#include "lora/io/gguf_names.hpp"

namespace lora::gguf_adapter_fuzz {
namespace {

using fuzzing::FuzzInput;

constexpr std::array<std::string_view, 8> stems{"blk.0.attn_q", "blk.0.attn_k",   "blk.1.ffn_up", "token_embd",
                                                "output",       "blk.9.attn_out", "blk.0.x",      "a.token_embd"};
constexpr std::array<std::string_view, 4> architectures{"llama", "qwen2", "", "\xFF"};

class File {
 public:
  explicit File(FuzzInput& input) : input_(input), encoder_(alignment()) {
    add_text("general.type", "adapter");
    add_text("adapter.type", "lora");
    encoder_.add_metadata("general.architecture", std::string(architectures[input_.rarely() ? input_.below(4) : 0]));
    encoder_.add_metadata("general.alignment", static_cast<std::uint32_t>(alignment_));
    if (input_.flag()) encoder_.add_metadata("adapter.lora.alpha", alpha());
    if (input_.rarely()) add_texts(input_.text());
    if (input_.rarely()) encoder_.add_metadata("adapter.alora.invocation_tokens", std::vector<std::uint32_t>{1});
    const std::size_t modules = input_.below(5);
    for (std::size_t i = 0; i < modules; ++i) add_module();
    if (input_.flag()) add("blk.0.attn_norm.weight", {extent(), input_.rarely() ? extent() : 1});
  }

  [[nodiscard]] std::vector<std::byte> bytes() && { return std::move(encoder_).finish(); }

 private:
  static constexpr std::uint64_t most_elements = 4096;

  std::size_t alignment() {
    alignment_ = input_.rarely() ? std::size_t{1} << input_.below(10) : 32;
    return alignment_;
  }
  float alpha() {
    if (!input_.rarely()) return static_cast<float>(input_.byte());
    float value = 0;
    input_.fill(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
  void add_text(std::string_view key, std::string_view usual) {
    encoder_.add_metadata(key, input_.rarely() ? input_.text() : std::string(usual));
  }
  void add_texts(const std::string& key) {
    encoder_.add_metadata(key, std::vector<std::string>{input_.text(), input_.text()});
  }
  std::uint64_t extent() { return input_.rarely() ? input_.byte() * 32U : 1 + input_.below(8); }
  std::uint64_t row() { return input_.flag() ? 32 * (1 + input_.below(8)) : extent(); }

  void add_module() {
    const std::string stem = input_.rarely() ? input_.text() : std::string(input_.one_of(stems));
    const std::uint64_t rank = row();
    std::vector<std::uint64_t> a{row(), rank};
    if (stem.ends_with("token_embd")) std::swap(a[0], a[1]);
    add(stem + ".weight.lora_a", a);
    add(stem + ".weight.lora_b", {input_.rarely() ? extent() : rank, row()});
  }

  void add(std::string name, std::vector<std::uint64_t> extents) {
    if (input_.rarely()) name = input_.text();
    if (input_.rarely()) extents.push_back(extent());
    if (input_.rarely()) extents[input_.below(extents.size())] = input_.byte();
    const GgufType type = input_.one_of(gguf_types);
    const GgufTypeInfo info = info_of(type);
    std::uint64_t elements = 1;
    for (const std::uint64_t size : extents) elements *= size;
    if (elements > most_elements) return;
    const std::uint64_t bytes = elements / info.block_size * info.block_bytes;
    std::byte* const values = encoder_.add_tensor(name, extents, type, static_cast<std::size_t>(bytes));
    // The first bytes are the input's own, the others repeat one: inputs stay short.
    const std::size_t own = std::min<std::size_t>(static_cast<std::size_t>(bytes), 16);
    input_.fill({values, own});
    std::fill(values + own, values + bytes, std::byte{input_.byte()});
  }

  FuzzInput& input_;
  std::size_t alignment_ = 0;
  detail::GgufEncoder encoder_;
};

void use(const GgufAdapter& adapter) {
  for (const auto& [name, module] : adapter.weights.modules) {
    if (module.A.rows() != module.B.cols() || module.rank() < 1 || module.B.rows() < 1) std::abort();
    // A row of the delta weight: all of it may be far larger than the file.
    const RowVector<float> row = static_cast<float>(module.scaling) * (module.B.row(0) * module.A);
    if (row.size() == 0) std::abort();
  }
}

void write_and_read(const GgufAdapter& adapter) {
  const std::vector<std::byte> bytes = gguf_adapter_bytes(adapter);
  // What was refused in writing has been thrown by now; what was written must be read.
  try {
    if (gguf_adapter_bytes(parse_gguf_adapter(bytes)) != bytes) std::abort();
  } catch (const Error&) {
    std::abort();
  }
}

}  // namespace
}  // namespace lora::gguf_adapter_fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace lora::gguf_adapter_fuzz;
  lora::fuzzing::FuzzInput input(data, size);
  lora::GgufOptions options;
  if (input.rarely()) options.rename = lora::transformers_name;
  if (input.rarely()) options.rope_heads = lora::GgufHeads{input.byte(), input.byte()};
  try {
    const std::vector<std::byte> bytes = File(input).bytes();
    const auto adapter = lora::parse_gguf_adapter(bytes, options);
    use(adapter);
    write_and_read(adapter);
  } catch (const lora::Error&) {
  }
  return 0;
}
