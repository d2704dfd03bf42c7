// SPDX-License-Identifier: MIT
#include "lora/io/safetensors_header.hpp"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "io/files.hpp"
#include "lora/core/little_endian.hpp"

namespace lora::safetensors_header_test {
namespace {

using namespace std::string_view_literals;
using testing::bytes_of;
using testing::read_file;
using testing::safetensors_bytes;

struct Verdict {
  std::string kind;
  std::string message;
};

Verdict verdict(std::span<const std::byte> file) {
  try {
    static_cast<void>(parse_safetensors_header(file, "file"));
  } catch (const SafetensorsError& error) {
    return {std::string(name_of(error.kind())), error.what()};
  }
  return {"ok", ""};
}

// A header of one tensor with this dtype, shape and end of data.
std::string one_tensor(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  std::string text = R"({"a":{"dtype":")";
  text.append(dtype).append(R"(","shape":)").append(shape).append(R"(,"data_offsets":)").append(offsets);
  return text + "}}";
}

TEST(SafetensorsHeader, EveryMalformedFileGetsTheReferenceVerdict) {
  const auto folder = std::filesystem::path(LORA_GOLDEN_DIR) / "malformed";
  std::ifstream stream(folder / "expect.json");
  const auto expected = nlohmann::json::parse(stream).get<std::map<std::string, std::string>>();
  std::set<std::string> seen;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::string name = entry.path().stem();
    seen.insert(name);
    ASSERT_TRUE(expected.contains(name)) << name << " has no verdict";
    const Verdict ours = verdict(read_file(entry.path()));
    EXPECT_EQ(ours.kind, expected.at(name)) << name << ": " << ours.message;
  }
  EXPECT_FALSE(seen.empty());
  for (const auto& [name, kind] : expected) EXPECT_TRUE(seen.contains(name)) << name << " has no file";
}

TEST(SafetensorsHeader, SaysThatAFileIsALfsPointer) {
  const Verdict ours = verdict(read_file(std::filesystem::path(LORA_GOLDEN_DIR) / "malformed/lfs_pointer.safetensors"));
  EXPECT_EQ(ours.kind, "HeaderTooLarge");
  EXPECT_NE(ours.message.find("Git LFS pointer"), std::string::npos) << ours.message;
  EXPECT_NE(ours.message.find("git lfs pull"), std::string::npos) << ours.message;
}

TEST(SafetensorsHeader, LengthIsBelievedUpToTheCapAlone) {
  for (const std::uint64_t length : {100'000'000ULL, 100'000'001ULL, ~0ULL}) {
    std::vector<std::byte> file(10);
    store_little_endian(length, file.data());
    EXPECT_EQ(verdict(file).kind, length > 100'000'000 ? "HeaderTooLarge" : "InvalidHeaderLength") << length;
  }
}

struct JsonCase {
  const char* what;
  std::string header;
  std::size_t data_bytes;
  const char* kind;
};

// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest looks for this name.
void PrintTo(const JsonCase& example, std::ostream* stream) { *stream << example.what; }

class SafetensorsHeaderJson : public ::testing::TestWithParam<JsonCase> {};

TEST_P(SafetensorsHeaderJson, HasItsVerdict) {
  const JsonCase& example = GetParam();
  const Verdict ours = verdict(safetensors_bytes(example.header, example.data_bytes));
  EXPECT_EQ(ours.kind, example.kind) << example.what << ": " << ours.message;
}

const char* const bad_json = "InvalidHeaderDeserialization";
const std::string good = R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})";

std::string with_field(const std::string& field) {
  return R"({"a":{"dtype":"U8",)" + field + R"(,"shape":[2],"data_offsets":[0,2]}})";
}

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

const std::vector<JsonCase> json_cases{
    {"white space around", " \t\r\n{} \t\r\n", 0, "ok"},
    {"form feed is no white space", "{}\f", 0, bad_json},
    {"byte order mark", "\xEF\xBB\xBF{}", 0, bad_json},
    {"NUL after the object", std::string("{}\0", 3), 0, bad_json},
    {"NUL and more after the object", std::string("{}\0{}", 5), 0, bad_json},
    {"two objects", "{}{}", 0, bad_json},
    {"comment", "{}//", 0, bad_json},
    {"trailing comma", "{" + good + ",}", 2, bad_json},
    {"unterminated", "{" + good, 2, bad_json},
    {"null", "null", 0, bad_json},
    {"number", "1", 0, bad_json},
    {"string", "\"a\"", 0, bad_json},
    {"tensor null", R"({"a":null})", 0, bad_json},
    {"tensor array", R"({"a":["U8",[2],[0,2]]})", 2, bad_json},
    {"tensor number", R"({"a":1})", 0, bad_json},
    {"tensor true", R"({"a":true})", 0, bad_json},
    {"tensor empty", R"({"a":{}})", 0, bad_json},
    {"no dtype", R"({"a":{"shape":[2],"data_offsets":[0,2]}})", 2, bad_json},
    {"no offsets", R"({"a":{"dtype":"U8","shape":[2]}})", 2, bad_json},
    {"same name twice", "{" + good + "," + good + "}", 2, bad_json},
    {"same name twice, one escaped", "{" + good + R"(,"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})", 2,
     bad_json},
    {"dtype twice", with_field(R"("dtype":"U8")"), 2, bad_json},
    {"shape twice", with_field(R"("shape":[2])"), 2, bad_json},
    {"offsets twice", with_field(R"("data_offsets":[0,2])"), 2, bad_json},
    {"dtype number", R"({"a":{"dtype":1,"shape":[2],"data_offsets":[0,2]}})", 2, bad_json},
    {"dtype null", R"({"a":{"dtype":null,"shape":[2],"data_offsets":[0,2]}})", 2, bad_json},
    {"dtype object", R"({"a":{"dtype":{"U8":null},"shape":[2],"data_offsets":[0,2]}})", 2, bad_json},
    {"shape number", one_tensor("U8", "2", "[0,2]"), 2, bad_json},
    {"shape object", one_tensor("U8", "{}", "[0,2]"), 2, bad_json},
    {"shape nested", one_tensor("U8", "[[2]]", "[0,2]"), 2, bad_json},
    {"shape of a string", one_tensor("U8", "[\"2\"]", "[0,2]"), 2, bad_json},
    {"shape of null", one_tensor("U8", "[null]", "[0,2]"), 2, bad_json},
    {"shape of true", one_tensor("U8", "[true]", "[0,1]"), 1, bad_json},
    {"shape with a point", one_tensor("U8", "[2.0]", "[0,2]"), 2, bad_json},
    {"shape with an exponent", one_tensor("U8", "[2e0]", "[0,2]"), 2, bad_json},
    {"shape of minus zero", one_tensor("U8", "[-0]", "[0,0]"), 0, bad_json},
    {"shape with a leading zero", one_tensor("U8", "[02]", "[0,2]"), 2, bad_json},
    {"shape beyond 64 bits", one_tensor("U8", "[18446744073709551616]", "[0,2]"), 2, bad_json},
    {"shape beyond a double", one_tensor("U8", "[1e999]", "[0,2]"), 2, bad_json},
    {"one offset", one_tensor("U8", "[2]", "[2]"), 2, bad_json},
    {"three offsets", one_tensor("U8", "[2]", "[0,2,2]"), 2, bad_json},
    {"no offset", one_tensor("U8", "[2]", "[]"), 2, bad_json},
    {"offsets object", one_tensor("U8", "[2]", "{\"0\":0}"), 2, bad_json},
    {"offsets negative", one_tensor("U8", "[2]", "[-2,0]"), 2, bad_json},
    {"unknown field", with_field(R"("note":"x")"), 2, "ok"},
    {"unknown field number", with_field(R"("note":-1.5)"), 2, "ok"},
    {"unknown field null", with_field(R"("note":null)"), 2, "ok"},
    {"unknown field tree", with_field(R"("note":{"dtype":[{"shape":1},true,[]],"b":{}})"), 2, "ok"},
    {"unknown field with bad JSON", with_field(R"("note":[1,])"), 2, bad_json},
    {"unknown field nested as deep as allowed", with_field("\"note\":" + nested(125)), 2, "ok"},
    {"unknown field nested too deep", with_field("\"note\":" + nested(126)), 2, bad_json},
    {"unknown field nested beyond any stack", with_field("\"note\":" + nested(1'000'000)), 2, bad_json},
    {"metadata", R"({"__metadata__":{"a":"b","":""}})", 0, "ok"},
    {"metadata empty", R"({"__metadata__":{}})", 0, "ok"},
    {"metadata null", R"({"__metadata__":null})", 0, "ok"},
    {"metadata string", R"({"__metadata__":"a"})", 0, bad_json},
    {"metadata array", R"({"__metadata__":[]})", 0, bad_json},
    {"metadata of null", R"({"__metadata__":{"a":null}})", 0, bad_json},
    {"metadata of object", R"({"__metadata__":{"a":{}}})", 0, bad_json},
    {"metadata of array", R"({"__metadata__":{"a":[]}})", 0, bad_json},
    {"metadata like a tensor", R"({"__metadata__":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2, bad_json},
    {"metadata twice", R"({"__metadata__":{},"__metadata__":{}})", 0, bad_json},
    {"metadata null and again", R"({"__metadata__":null,"__metadata__":{}})", 0, bad_json},
    {"metadata key twice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, bad_json},
    {"lone surrogate", R"({"__metadata__":{"a":"\ud800"}})", 0, bad_json},
    {"raw control character", "{\"__metadata__\":{\"a\":\"\n\"}}", 0, bad_json},
    {"escaped control characters", R"({"__metadata__":{"\u0000\u001f":"\n"}})", 0, "ok"},
    {"overlong UTF-8", "{\"\xC0\x80\":1}", 0, "InvalidHeader"},
    {"UTF-8 surrogate", "{\"\xED\xA0\x80\":1}", 0, "InvalidHeader"},
    {"UTF-8 cut at the end", "{}\xC3", 0, "InvalidHeader"},
    {"scalar", one_tensor("F64", "[]", "[0,8]"), 8, "ok"},
    {"half byte", one_tensor("F4", "[1]", "[0,1]"), 1, "MisalignedSlice"},
    {"four-bit", one_tensor("F4", "[2,3]", "[0,3]"), 3, "ok"},
    {"six-bit", one_tensor("F6_E2M3", "[4]", "[0,3]"), 3, "ok"},
    {"six-bit misaligned", one_tensor("F6_E3M2", "[3]", "[0,3]"), 3, "MisalignedSlice"},
    {"product over 64 bits", one_tensor("U8", "[2,18446744073709551614]", "[0,16]"), 16, "ValidationOverflow"},
    {"bits over 64 bits", one_tensor("I32", "[2,9223372036854775807]", "[0,16]"), 16, "ValidationOverflow"},
    {"zero before the overflow", one_tensor("U8", "[0,18446744073709551615,2]", "[0,0]"), 0, "ok"},
    {"zero after the overflow", one_tensor("U8", "[18446744073709551615,2,0]", "[0,0]"), 0, "ValidationOverflow"},
    {"zero with bytes", one_tensor("U8", "[0]", "[0,1]"), 1, "TensorInvalidInfo"},
    {"end past 64 bits of file", one_tensor("U8", "[2305843009213693951]", "[0,2305843009213693951]"), 2,
     "MetadataIncompleteBuffer"},
    {"end at the last offset", one_tensor("U8", "[2]", "[0,18446744073709551615]"), 2, "TensorInvalidInfo"},
    {"data without tensors", "{}", 1, "MetadataIncompleteBuffer"},
    {"offset is judged before shape", one_tensor("U8", "[3]", "[1,2]"), 2, "InvalidOffset"},
};

INSTANTIATE_TEST_SUITE_P(Cases, SafetensorsHeaderJson, ::testing::ValuesIn(json_cases));

TEST(SafetensorsHeader, EveryDtypeIsAccepted) {
  for (const DtypeInfo& info : dtype_table) {
    const std::string offsets = "[0," + std::to_string(info.bits) + "]";
    const auto file = safetensors_bytes(one_tensor(info.name, "[8]", offsets), info.bits);
    const SafetensorsHeader header = parse_safetensors_header(file, "file");
    ASSERT_EQ(header.tensors.size(), 1U);
    EXPECT_EQ(header.tensors[0].dtype, info.dtype);
  }
}

TEST(SafetensorsHeader, HoldsWhatTheTextSays) {
  const auto file =
      safetensors_bytes(R"({"z":{"shape":[1,2],"data_offsets":[1,5],"dtype":"I16"},"__metadata__":{"k":"v"},)"
                        R"("b\u0000":{"dtype":"BOOL","shape":[],"data_offsets":[0,1]}}  )",
                        5);
  const SafetensorsHeader header = parse_safetensors_header(file, "file");
  ASSERT_EQ(header.tensors.size(), 2U);
  EXPECT_EQ(header.tensors[0].name, "b\0"sv);
  EXPECT_EQ(header.tensors[1].name, "z");
  EXPECT_EQ(header.tensors[1].shape, (std::vector<std::uint64_t>{1, 2}));
  EXPECT_EQ(header.tensors[1].begin, 1U);
  EXPECT_EQ(header.tensors[1].end, 5U);
  EXPECT_EQ(header.by_name, (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(header.metadata.at("k"), "v");
  EXPECT_EQ(header.data_begin, file.size() - 5);
}

TEST(SafetensorsHeader, ErrorsNameFileTensorExpectedAndGot) {
  const Verdict ours = verdict(safetensors_bytes(one_tensor("F32", "[3]", "[0,8]"), 8));
  EXPECT_EQ(ours.message,
            "safetensors TensorInvalidInfo: file: tensor \"a\": expected 12 bytes, as shape and dtype F32 say, got 8 "
            "bytes between data_offsets");
}

TEST(SafetensorsHeader, AHugeTokenDoesNotMakeAHugeMessage) {
  const std::string name(1'000'000, 'n');
  EXPECT_LT(verdict(safetensors_bytes("{\"" + name + "\":1}")).message.size(), 1000U);
  EXPECT_LT(verdict(safetensors_bytes(one_tensor(name, "[2]", "[0,2]"), 2)).message.size(), 1000U);
  EXPECT_LT(verdict(safetensors_bytes("{\"" + name)).message.size(), 1000U);
  EXPECT_LT(
      verdict(safetensors_bytes(one_tensor("U8", "[1" + std::string(1'000'000, '0') + "]", "[0,2]"), 2)).message.size(),
      1000U);
}

}  // namespace
}  // namespace lora::safetensors_header_test
