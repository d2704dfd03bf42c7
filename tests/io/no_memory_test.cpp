// SPDX-License-Identifier: MIT
// Reading and writing files without memory at any allocation: std::bad_alloc, and no part of a file. What holds an
// object of nlohmann's json is not here: it allocates when it is destroyed, and ends the process if it cannot.
#include <gtest/gtest.h>
#include <new>
#include <optional>
#include <string>

#include "io/files.hpp"
#include "io/peft_files.hpp"
#include "lora/io/bitsandbytes.hpp"
#include "lora/io/gguf_adapter_reader.hpp"
#include "lora/io/gguf_adapter_writer.hpp"
#include "lora/io/gguf_parser.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/peft_directory_writer.hpp"
#include "lora/weight/quantized.hpp"
#include "support/allocation_counter.hpp"
#include "support/random_matrix.hpp"

namespace lora::testing::no_memory_test {
namespace {

class WithoutMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!allocations_can_fail) GTEST_SKIP() << "allocations cannot fail here";
  }
};

// Fails every allocation of `call` in turn, until it needs no more; `check(n)` sees what each failure left.
template <class Call, class Check>
void fail_each_allocation(const Call& call, const Check& check) {
  bool failed = true;
  long failures = 0;
  for (long n = 0; failed; ++n) {
    {
      const FailingAllocation failing(n, Shortage::lasting);
      try {
        call();
      } catch (const std::bad_alloc&) {
        ++failures;
      }
      failed = allocations_left() < 0;
    }
    ASSERT_NO_FATAL_FAILURE(check(n));
    ASSERT_LT(n, 100000) << "never succeeds";
  }
  EXPECT_GT(failures, 0);
}

template <class Call>
void fail_each_allocation(const Call& call) {
  fail_each_allocation(call, [](long /*n*/) {});
}

PeftAdapter<float> golden(const std::string& name) { return read_peft_directory<float>(golden_adapter(name)); }

TEST_F(WithoutMemory, ReadingAnAdapterOfPeftEndsInBadAlloc) {
  for (const std::string name : {"adapter_pattern", "adapter_dora_rslora"}) {
    SCOPED_TRACE(name);
    const std::filesystem::path folder = golden_adapter(name);
    std::optional<PeftAdapter<float>> read;
    fail_each_allocation([&] { read.emplace(read_peft_directory<float>(folder)); });
    const TemporaryFolder copy;
    ASSERT_TRUE(read.has_value());
    write_peft_directory(copy / "read", *read);
    write_peft_directory(copy / "expected", golden(name));
    EXPECT_EQ(read_file(copy / "read/adapter_model.safetensors"),
              read_file(copy / "expected/adapter_model.safetensors"));
  }
}

TEST_F(WithoutMemory, A4BitWeightIsWrittenOrBadAlloc) {
  using Weight = QuantizedWeight<formats::NF4<64>>;
  const auto weight = Weight::quantize(view_of(random_matrix<float>(9, 128, 1)));
  SafetensorsWriter writer;
  add_bitsandbytes_weight(writer, "w", weight, Dtype::F32, BitsandbytesScales::nested);
  const auto bytes = writer.to_bytes();
  std::vector<std::byte> written;
  fail_each_allocation([&] {
    SafetensorsWriter again;
    add_bitsandbytes_weight(again, "w", weight, Dtype::F32, BitsandbytesScales::nested);
    written = again.to_bytes();
  });
  EXPECT_EQ(written, bytes);
}

TEST_F(WithoutMemory, AGgufAdapterIsWrittenAndReadOrBadAlloc) {
  const TemporaryFolder folder;
  const auto path = folder / "adapter.gguf";
  GgufAdapter adapter;
  adapter.architecture = "llama";
  ModuleWeights<float>& module = adapter.weights.modules["blk.0.attn_q"];
  module.A = random_matrix<float>(2, 32, 1);
  module.B = random_matrix<float>(16, 2, 2);
  module.scaling = 2;
  fail_each_allocation([&] { write_gguf_adapter(path, adapter); },
                       [&](long n) {
                         const auto entries = folder.entries();
                         ASSERT_TRUE(entries.empty() || entries == std::vector<std::string>{"adapter.gguf"}) << n;
                       });
  fail_each_allocation([&] { static_cast<void>(read_gguf_adapter(path)); });
}

}  // namespace
}  // namespace lora::testing::no_memory_test
