// SPDX-License-Identifier: MIT
// Files made to exhaust their reader: it answers or refuses, in linear time and with a small multiple of their memory.
#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <new>
#include <string>
#include <sys/stat.h>
#include <utility>
#include <vector>

#include "io/files.hpp"
#include "io/peft_files.hpp"
#include "lora/io/gguf.hpp"
#include "lora/io/peft_config_writer.hpp"
#include "lora/io/peft_directory.hpp"
#include "lora/io/safetensors.hpp"

namespace lora::hostile_input_test {
namespace {

std::atomic<std::size_t> bytes_now{0};
std::atomic<std::size_t> bytes_most{0};

void* take(std::size_t size) noexcept {
  void* const block = std::malloc(size);
  const std::size_t now = bytes_now += malloc_usable_size(block);
  std::size_t most = bytes_most;
  while (now > most && !bytes_most.compare_exchange_weak(most, now)) {
  }
  return block;
}

void give_back(void* block) noexcept {
  bytes_now -= malloc_usable_size(block);
  std::free(block);
}

}  // namespace
}  // namespace lora::hostile_input_test

// Every container of this program allocates here.
void* operator new(std::size_t size) {
  if (void* const block = lora::hostile_input_test::take(size)) return block;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return lora::hostile_input_test::take(size);
}
void operator delete(void* block) noexcept { lora::hostile_input_test::give_back(block); }
void operator delete(void* block, std::size_t /*size*/) noexcept { lora::hostile_input_test::give_back(block); }
void operator delete(void* block, const std::nothrow_t& /*tag*/) noexcept {
  lora::hostile_input_test::give_back(block);
}

namespace lora::hostile_input_test {
namespace {

using testing::bytes_of;
using testing::HandmadeAdapter;
using testing::TemporaryFolder;
using testing::write_file;
namespace fs = std::filesystem;

struct Outcome {
  std::string error;  ///< empty if there was none
  std::size_t bytes;  ///< of memory at most
};

template <class Read>
Outcome outcome(Read read) {
  const std::size_t before = bytes_now;
  bytes_most = before;
  std::string error;
  try {
    static_cast<void>(read());
  } catch (const Error& thrown) {
    error = thrown.what();
  }
  return {error, bytes_most - before};
}

std::string repeated(const std::string& text, std::size_t count) {
  std::string result;
  result.reserve(text.size() * count);
  for (std::size_t i = 0; i < count; ++i) result += text;
  return result;
}

/// `make(0), make(1), ...` with commas between, of at least that many bytes.
template <class Make>
std::string listed(std::size_t bytes, Make make) {
  std::string result = make(std::size_t{0});
  for (std::size_t i = 1; result.size() < bytes; ++i) result.append(",").append(make(i));
  return result;
}

constexpr std::size_t config_bytes = std::size_t{2} << 20;

Outcome read_config(const std::string& text) {
  return outcome([&] { return parse_peft_config(text); });
}

std::string config_with(const std::string& rest) { return R"({"peft_type":"LORA","r":2,)" + rest + "}"; }

TEST(HostileInput, AConfigurationOfBracketsTakesNoMemory) {
  const Outcome list = read_config(std::string(config_bytes, '['));
  EXPECT_NE(list.error.find("expected an object, got a JSON array"), std::string::npos) << list.error;
  EXPECT_LT(list.bytes, 10000U);
  const Outcome deep = read_config(config_with("\"zzz\":" + std::string(config_bytes, '[')));
  EXPECT_NE(deep.error.find("at most 127 levels of nesting"), std::string::npos) << deep.error;
  EXPECT_LT(deep.bytes, 10000U);
}

// A parser that filters values walks back over all earlier siblings at the end of each: minutes for these.
TEST(HostileInput, AConfigurationOfManyObjectsTakesLinearTime) {
  const std::string objects = "[" + listed(config_bytes, [](std::size_t) { return "{}"; }) + "]";
  const Outcome unknown = read_config(config_with("\"zzz\":" + objects));
  EXPECT_EQ(unknown.error, "");
  EXPECT_LT(unknown.bytes, 4 * config_bytes) << "what is not known is not stored";
  const Outcome known = read_config(config_with("\"layer_replication\":" + objects));
  EXPECT_NE(known.error.find("at most 262144 names and values"), std::string::npos) << known.error;
  EXPECT_LT(known.bytes, 16 * config_bytes);
}

TEST(HostileInput, AConfigurationTakesASmallMultipleOfItsSize) {
  const std::string names = "[" + listed(config_bytes, [](std::size_t) { return "\"\""; }) + "]";
  const std::string pattern =
      "{" + listed(config_bytes, [](std::size_t i) { return "\"" + std::to_string(i) + "\":1"; }) + "}";
  for (const std::string& text :
       {config_with("\"target_modules\":" + names), config_with("\"modules_to_save\":" + names),
        config_with("\"rank_pattern\":" + pattern), config_with("\"eva_config\":" + pattern)}) {
    EXPECT_LT(read_config(text).bytes, 16 * text.size()) << text.substr(0, 50);
  }
  const std::string word(config_bytes, 'w');
  EXPECT_LT(read_config(config_with("\"revision\":\"" + word + "\"")).bytes, 6 * word.size());
  EXPECT_LT(read_config(config_with("\"" + word + "\":1")).bytes, 6 * word.size());
}

TEST(HostileInput, ManyUnknownKeysAreCountedInOneWarning) {
  const std::string keys = listed(config_bytes, [](std::size_t i) { return "\"" + std::to_string(i) + "\":1"; });
  const Outcome read = read_config(config_with(keys));
  EXPECT_EQ(read.error, "");
  EXPECT_LT(read.bytes, 100000U);
  const auto warnings = parse_peft_config(config_with(listed(1000, [](std::size_t i) {
                          return "\"" + std::to_string(100 + i) + "\":1";
                        }))).warnings;
  ASSERT_EQ(warnings.size(), 51U);
  EXPECT_EQ(warnings.front(), "adapter_config.json: unknown key \"100\" = 1 is ignored");
  EXPECT_EQ(warnings.back(), "adapter_config.json: 76 more unknown keys are ignored");
}

TEST(HostileInput, NothingFollowsANulByteOrPrecedesTheText) {
  const std::string good = config_with("\"lora_alpha\":3");
  EXPECT_EQ(read_config(good).error, "");
  EXPECT_NE(read_config(good + std::string(1, '\0') + "rest").error.find("a NUL byte"), std::string::npos);
  EXPECT_NE(read_config("\xEF\xBB\xBF" + good).error.find("a byte order mark"), std::string::npos);
}

TEST(HostileInput, ASafetensorsHeaderTakesASmallMultipleOfItsSize) {
  constexpr std::size_t header_bytes = std::size_t{4} << 20;
  const auto tensor = [](std::size_t i) {
    return "\"" + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  };
  const std::vector<std::pair<std::string, std::size_t>> headers{
      {"{" + listed(header_bytes, tensor) + "}", 6},
      {R"({"a":{"dtype":"U8","data_offsets":[0,0],"shape":[)" + listed(header_bytes, [](std::size_t) { return "0"; }) +
           "]}}",
       16},
      {R"({"__metadata__":{)" +
           listed(header_bytes, [](std::size_t i) { return "\"" + std::to_string(i) + "\":\"\""; }) + "}}",
       16}};
  for (const auto& [header, multiple] : headers) {
    const auto file = testing::safetensors_bytes(header);
    const Outcome read = outcome([&] { return SafetensorsFile::from_bytes(file).size(); });
    EXPECT_EQ(read.error, "");
    EXPECT_LT(read.bytes, multiple * file.size()) << header.substr(0, 50);
  }
}

TEST(HostileInput, AnIndexOfWhatIsNoNameIsRefused) {
  const auto error = [](const std::string& text) {
    const Outcome read = outcome([&] { return parse_safetensors_index(text, "index"); });
    EXPECT_LT(read.bytes, 10000U);
    return read.error;
  };
  const std::string nested = R"({"weight_map":{"a":)" + std::string(200000, '[');
  EXPECT_EQ(error(nested), "read safetensors index: index: expected the name of a file beside the index, got a list");
  EXPECT_NE(error(R"({"metadata":)" + std::string(200000, '[')).find("127 levels"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"a":{}}})").find("got an object"), std::string::npos);
  for (const char* name : {"", ".", "..", "../a", "a/b", "/a", "a\\u0000b"}) {
    EXPECT_NE(error(R"({"weight_map":{"a":")" + std::string(name) + "\"}}").find("a file beside the index"),
              std::string::npos)
        << name;
  }
  EXPECT_NE(error("[]").find("expected an object with weight_map, got a list"), std::string::npos);
  EXPECT_NE(error("{}").find("expected an object with weight_map, got none"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":[]})").find("weight_map as an object"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{}})").find("one tensor or more"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"a":"b"},"weight_map":{"a":"c"}})").find("one weight_map"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"a":"b"}}x)").find("expected JSON"), std::string::npos);
}

TEST(HostileInput, AnIndexIsReadOnceForEachFile) {
  EXPECT_EQ(parse_safetensors_index(R"({"metadata":{"total_size":8,"weight_map":{"a":1}},)"
                                    R"("weight_map":{"a":"2.safetensors","b":"1.safetensors","c":"2.safetensors"}})",
                                    "index"),
            (std::vector<std::string>{"1.safetensors", "2.safetensors"}));
  const std::string map = listed(config_bytes, [](std::size_t i) { return "\"" + std::to_string(i) + "\":\"a\""; });
  const Outcome read = outcome([&] { return parse_safetensors_index(R"({"weight_map":{)" + map + "}}", "index"); });
  EXPECT_EQ(read.error, "");
  EXPECT_LT(read.bytes, 4 * map.size()) << "the text itself is twice among them";
  const std::string files = listed(config_bytes, [](std::size_t i) { return "\"a\":\"" + std::to_string(i) + "\""; });
  const Outcome many = outcome([&] { return parse_safetensors_index(R"({"weight_map":{)" + files + "}}", "index"); });
  EXPECT_NE(many.error.find("at most 65536 files"), std::string::npos);
}

TEST(HostileInput, AnIndexIsReadFromItsFile) {
  const TemporaryFolder folder;
  std::ofstream(folder / "model.safetensors.index.json") << R"({"weight_map":{"a":"2.safetensors"}})";
  EXPECT_EQ(read_safetensors_index(folder / "model.safetensors.index.json"), std::vector<std::string>{"2.safetensors"});
}

TEST(HostileInput, WhatIsNoRegularFileIsRefusedAtOnce) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "folder");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  fs::create_symlink("/dev/zero", folder / "device");
  fs::create_symlink(folder / "pipe", folder / "link to pipe");
  fs::create_symlink(folder / "folder", folder / "link to folder");
  fs::create_symlink(folder / "link to itself", folder / "link to itself");
  for (const char* name : {"folder", "pipe", "device", "link to pipe", "link to folder", "link to itself", "missing"}) {
    SCOPED_TRACE(name);
    EXPECT_THROW(static_cast<void>(read_safetensors_index(folder / name)), IoError);
    EXPECT_THROW(static_cast<void>(read_peft_config(folder / name)), IoError);
    EXPECT_THROW(static_cast<void>(SafetensorsFile::open(folder / name)), IoError);
    EXPECT_THROW(static_cast<void>(read_gguf_adapter(folder / name)), IoError);
  }
}

// A minute of matching, before what all patterns and names take together was bounded.
TEST(HostileInput, PatternsTimesModulesAreBounded) {
  nlohmann::json config = {{"rank_pattern", nlohmann::json::object()}};
  for (int i = 0; i < 20; ++i) config["rank_pattern"]["x" + std::to_string(i) + repeated("(a|b|.)*", 400)] = 2;
  HandmadeAdapter adapter(config);
  for (int i = 0; i < 50; ++i) {
    const std::string module = "base_model.model.l." + repeated("ab", 490) + std::to_string(i);
    adapter.add(module + ".lora_A.weight", {2, 3}).add(module + ".lora_B.weight", {3, 2});
  }
  const TemporaryFolder folder;
  adapter.write(folder.path());
  const Outcome read = outcome([&] { return read_peft_directory<float>(folder.path()); });
  EXPECT_NE(read.error.find("at most 2^27 steps"), std::string::npos) << read.error;
}

// Comparing every key with all before it takes minutes.
TEST(HostileInput, ManyPatternsAreReadAndWrittenInLinearTime) {
  const std::string pattern =
      "{" + listed(std::size_t{1} << 20, [](std::size_t i) { return "\"" + std::to_string(i) + "\":1"; }) + "}";
  const LoraModelConfig config = parse_peft_config(config_with("\"rank_pattern\":" + pattern)).config;
  EXPECT_GT(config.rank_pattern.size(), 100000U);
  const std::string text = peft_config_text(config);
  EXPECT_EQ(parse_peft_config(text).config.rank_pattern, config.rank_pattern);
}

TEST(HostileInput, PatternsThatExpandAreBoundedTogether) {
  LoraModelConfig config;
  for (int i = 0; i < 1000; ++i) config.rank_pattern.emplace_back("a{19000}" + std::to_string(i), 2);
  const Outcome made = outcome([&] { return ModuleMatcher(config).config_for("a").rank; });
  EXPECT_NE(made.error.find("at most 2^27 steps"), std::string::npos) << made.error;
  EXPECT_LT(made.bytes, std::size_t{200} << 20);
}

}  // namespace
}  // namespace lora::hostile_input_test
