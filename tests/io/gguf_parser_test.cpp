// SPDX-License-Identifier: MIT
// GGUF files built by hand, right and wrong in every way that the format knows.
#include "lora/io/gguf_parser.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf_bytes.hpp"
#include "lora/core/little_endian.hpp"

namespace lora::testing::gguf_parser_test {
namespace {

constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();

/// The message of the FormatError that these bytes raise; empty when they are accepted.
std::string refusal(const std::vector<std::byte>& bytes) {
  try {
    static_cast<void>(parse_gguf(bytes, "file"));
    return "";
  } catch (const FormatError& error) {
    return error.what();
  }
}

std::string refusal(const GgufBytes& file) { return refusal(file.bytes()); }

#define EXPECT_REFUSED(file, words) EXPECT_NE(refusal(file).find(words), std::string::npos) << refusal(file)

TEST(ParseGguf, ReadsWhatTheBytesSay) {
  const GgufBytes file = small_adapter();
  const GgufContents contents = parse_gguf(file.bytes());
  EXPECT_EQ(contents.version, 3U);
  EXPECT_EQ(std::get<std::string>(contents.metadata.at("general.architecture")), "llama");
  EXPECT_EQ(std::get<float>(contents.metadata.at("adapter.lora.alpha")), 8.0F);
  ASSERT_EQ(contents.tensors.size(), 2U);
  EXPECT_EQ(contents.tensors[0].name, "blk.0.attn_v.weight.lora_a");
  EXPECT_EQ(contents.tensors[0].type, GgufType::F32);
  EXPECT_EQ(contents.tensors[0].extents, (std::array<std::uint64_t, 4>{3, 2, 1, 1}));
  EXPECT_EQ(contents.tensors[1].bytes.size(), 8U);
  EXPECT_EQ(load_little_endian<float>(contents.tensors[1].bytes.data() + 4), 8.0F);
}

TEST(ParseGguf, ReadsEveryTypeOfMetadata) {
  GgufBytes file = GgufBytes::header(0, 15);
  file.text("u8").u32(0).u8(255).text("i8").u32(1).u8(255).text("u16").u32(2).u8(1).u8(2).text("i16").u32(3);
  file.u8(255).u8(255).text("u32").u32(4).u32(7).text("i32").u32(5).u32(0xFFFFFFFFU).text("f32").u32(6).f32(1.5F);
  file.text("bool").u32(7).u8(1).text("string").u32(8).text("\xC3\xA4").text("u64").u32(10).u64(huge).text("i64");
  file.u32(11).u64(huge).text("f64").u32(12).u64(0x3FF8000000000000U);
  file.text("numbers").u32(9).u32(4).u64(2).u32(1).u32(2).text("texts").u32(9).u32(8).u64(2).text("a").text("");
  file.text("flags").u32(9).u32(7).u64(2).u8(0).u8(1);
  const GgufMetadata metadata = parse_gguf(file.bytes()).metadata;
  EXPECT_EQ(metadata.at("u8"), GgufValue(std::uint8_t{255}));
  EXPECT_EQ(metadata.at("i8"), GgufValue(std::int8_t{-1}));
  EXPECT_EQ(metadata.at("u16"), GgufValue(std::uint16_t{513}));
  EXPECT_EQ(metadata.at("i16"), GgufValue(std::int16_t{-1}));
  EXPECT_EQ(metadata.at("u32"), GgufValue(std::uint32_t{7}));
  EXPECT_EQ(metadata.at("i32"), GgufValue(std::int32_t{-1}));
  EXPECT_EQ(metadata.at("f32"), GgufValue(1.5F));
  EXPECT_EQ(metadata.at("bool"), GgufValue(true));
  EXPECT_EQ(metadata.at("string"), GgufValue(std::string("\xC3\xA4")));
  EXPECT_EQ(metadata.at("u64"), GgufValue(std::uint64_t{huge}));
  EXPECT_EQ(metadata.at("i64"), GgufValue(std::int64_t{-1}));
  EXPECT_EQ(metadata.at("f64"), GgufValue(1.5));
  EXPECT_EQ(metadata.at("numbers"), GgufValue(std::vector<std::uint32_t>{1, 2}));
  EXPECT_EQ(metadata.at("texts"), GgufValue(std::vector<std::string>{"a", ""}));
  EXPECT_EQ(metadata.at("flags"), GgufValue(std::vector<bool>{false, true}));
}

TEST(ParseGguf, AcceptsVersionTwoWhichLooksTheSame) {
  std::vector<std::byte> bytes = small_adapter().bytes();
  bytes[4] = std::byte{2};
  EXPECT_EQ(refusal(bytes), "");
}

TEST(ParseGguf, AcceptsAFileWithoutAnything) { EXPECT_EQ(refusal(GgufBytes::header(0, 0)), ""); }

TEST(ParseGguf, FollowsTheFilesAlignment) {
  GgufBytes file = GgufBytes::header(2, 1).text("general.alignment").u32(4).u32(8);
  file.tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 8).pad(8).f32(1).pad(8).f32(2);
  const GgufContents contents = parse_gguf(file.bytes());
  EXPECT_EQ(load_little_endian<float>(contents.tensors[1].bytes.data()), 2.0F);
}

// llama.cpp does not look at the padding of the last tensor; everything before it must be there.
TEST(ParseGguf, TruncationAtEveryByteIsFound) {
  const std::vector<std::byte> whole = small_adapter().bytes();
  constexpr std::size_t last_padding = 32 - 8;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    // A copy of that very size, so that the address sanitizer sees a step beyond it.
    const std::vector<std::byte> part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(refusal(part).empty(), size >= whole.size() - last_padding) << size;
  }
}

TEST(ParseGgufRefuses, OtherMagicAndVersions) {
  EXPECT_REFUSED(GgufBytes().raw("GGML").u32(3).u64(0).u64(0), "magic: expected \"GGUF\"");
  EXPECT_REFUSED(GgufBytes().raw("GGUF").u32(1).u64(0).u64(0), "version: expected 2 or 3, little-endian, got 1");
  EXPECT_REFUSED(GgufBytes().raw("GGUF").u32(4).u64(0).u64(0), "got 4");
  EXPECT_REFUSED(GgufBytes().raw("GGUF").u32(0x03000000U).u64(0).u64(0), "got a big-endian file");
}

TEST(ParseGgufRefuses, CountsThatTheFileCannotHold) {
  EXPECT_REFUSED(GgufBytes::header(0, huge), "metadata values");
  EXPECT_REFUSED(GgufBytes::header(huge, 0), "tensors");
  EXPECT_REFUSED(GgufBytes::header(1, 0), "tensors");
}

TEST(ParseGgufRefuses, LengthsThatTheFileCannotHold) {
  EXPECT_REFUSED(GgufBytes::header(0, 1).u64(huge).raw("abcdefgh"), "metadata key: expected at most the 8 bytes left");
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("k").u32(8).u64(huge), "value of \"k\"");
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("k").u32(9).u32(4).u64(huge / 4), "value of \"k\"");
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("k").u32(9).u32(8).u64(std::uint64_t{1} << 60U), "value of \"k\"");
}

TEST(ParseGgufRefuses, KeysAndValuesOutOfOrder) {
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("").u32(0).u8(0).u64(0), "expected a key, got an empty one");
  EXPECT_REFUSED(GgufBytes::header(0, 2).text("k").u32(0).u8(0).text("k").u32(0).u8(0), "\"k\" twice");
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("k").u32(13).u64(0), "got 13");
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("k").u32(9).u32(9).u64(0), "no array in an array, got 9");
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("k").u32(7).u8(2).u64(0), "a bool, 0 or 1, got 2");
}

TEST(ParseGgufRefuses, TextThatIsNotUtf8) {
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("\xFF").u32(0).u8(0).u64(0), "metadata key: expected UTF-8");
}

// One token that is a part of a character made a whole model unreadable, which llama.cpp reads.
TEST(ParseGguf, StringsInTheMetadataAreBytes) {
  const auto file =
      GgufBytes::header(0, 2).string_value("k", "\xC0\x80").text("tokens").u32(9).u32(8).u64(1).text("\xFF");
  const auto contents = parse_gguf(file.bytes());
  EXPECT_EQ(contents.metadata.at("k"), GgufValue(std::string("\xC0\x80")));
  EXPECT_EQ(contents.metadata.at("tokens"), GgufValue(std::vector<std::string>{"\xFF"}));
}

TEST(ParseGgufRefuses, AlignmentsThatAreNoPowerOfTwo) {
  for (const std::uint32_t alignment : {0U, 24U}) {
    EXPECT_REFUSED(GgufBytes::header(0, 1).text("general.alignment").u32(4).u32(alignment), "a power of two");
  }
  EXPECT_REFUSED(GgufBytes::header(0, 1).text("general.alignment").u32(10).u64(32), "got another type");
}

// A tool that lays such a file out anew pads its head to the alignment: 135 bytes became a gigabyte.
TEST(ParseGgufRefuses, AlignmentsBeyondTheLargestPage) {
  const auto aligned = [](std::uint32_t alignment) {
    return GgufBytes::header(0, 1).text("general.alignment").u32(4).u32(alignment);
  };
  EXPECT_EQ(refusal(aligned(65536)), "");
  EXPECT_REFUSED(aligned(131072), "a power of two up to 65536, as u32, got 131072");
  EXPECT_REFUSED(aligned(std::uint32_t{1} << 30), "a power of two up to 65536");
}

/// One tensor of these properties, and 64 bytes of data.
GgufBytes one_tensor(std::string_view name, const std::vector<std::uint64_t>& extents, std::uint32_t type = 0,
                     std::uint64_t offset = 0) {
  GgufBytes file = GgufBytes::header(1, 0).tensor(name, extents, type, offset).pad(32);
  for (int i = 0; i < 16; ++i) file.f32(1);
  return file;
}

TEST(ParseGguf, ATensorMayHaveUpToFourExtentsAndFillTheFile) {
  EXPECT_EQ(refusal(one_tensor("t", {})), "");
  EXPECT_EQ(refusal(one_tensor("t", {16})), "");
  EXPECT_EQ(refusal(one_tensor("t", {2, 2, 2, 2})), "");
  EXPECT_EQ(refusal(one_tensor("t", {32}, 1)), "");
  EXPECT_EQ(refusal(one_tensor("t", {32}, 30)), "");
  EXPECT_EQ(refusal(one_tensor("t", {0, 5})), "");
}

TEST(ParseGgufRefuses, TensorsThatTheFileCannotHold) {
  EXPECT_REFUSED(one_tensor("t", {17}), "data of tensor \"t\"");
  EXPECT_REFUSED(one_tensor("t", {33}, 1), "data of tensor \"t\"");
  EXPECT_REFUSED(one_tensor("t", {std::uint64_t{1} << 40U}), "tensor \"t\": expected at most");
}

TEST(ParseGgufRefuses, ExtentsThatOverflow) {
  EXPECT_REFUSED(one_tensor("t", {huge}), "a number of elements below 2^63");
  EXPECT_REFUSED(one_tensor("t", {std::uint64_t{1} << 32U, std::uint64_t{1} << 32U}), "below 2^63");
  EXPECT_REFUSED(one_tensor("t", {0, std::uint64_t{1} << 62U, 4}), "below 2^63");
  EXPECT_REFUSED(one_tensor("t", {std::uint64_t{1} << 61U}), "expected at most");
  EXPECT_REFUSED(one_tensor("t", {1, 1, 1, 1, 1}), "number of extents: expected at most 4, got 5");
}

TEST(ParseGgufRefuses, TypesThatAreNotRead) {
  // 9 is Q8_1, 16 is IQ2_XXS, 24 is I8.
  for (const std::uint32_t type : {4U, 9U, 16U, 24U, 40U, 0xFFFFFFFFU}) {
    EXPECT_REFUSED(one_tensor("t", {256}, type), "tensor \"t\", type: expected the number of one of F32, F16, Q4_0");
    EXPECT_REFUSED(one_tensor("t", {256}, type), ", got " + std::to_string(type));
  }
}

/// Number, elements and bytes of a block. Source: ggml-common.h.
struct BlockOfGgml {
  std::uint32_t number;
  const char* name;
  std::uint64_t size;
  std::uint64_t bytes;
};

constexpr std::array<BlockOfGgml, 16> blocks_of_ggml{{{0, "F32", 1, 4},
                                                      {1, "F16", 1, 2},
                                                      {2, "Q4_0", 32, 18},
                                                      {3, "Q4_1", 32, 20},
                                                      {6, "Q5_0", 32, 22},
                                                      {7, "Q5_1", 32, 24},
                                                      {8, "Q8_0", 32, 34},
                                                      {10, "Q2_K", 256, 84},
                                                      {11, "Q3_K", 256, 110},
                                                      {12, "Q4_K", 256, 144},
                                                      {13, "Q5_K", 256, 176},
                                                      {14, "Q6_K", 256, 210},
                                                      {20, "IQ4_NL", 32, 18},
                                                      {23, "IQ4_XS", 256, 136},
                                                      {30, "BF16", 1, 2},
                                                      {39, "MXFP4", 32, 17}}};

/// A tensor of two rows of two blocks with as many bytes, of which the last `missing` are not there.
GgufBytes two_rows(const BlockOfGgml& block, std::uint64_t missing = 0) {
  GgufBytes file = GgufBytes::header(1, 0).tensor("t", {2 * block.size, 2}, block.number, 0).pad(32);
  for (std::uint64_t i = 0; i < 4 * block.bytes - missing; ++i) file.u8(1);
  return file;
}

TEST(ParseGguf, ReadsEveryTypeOfBlocks) {
  for (const BlockOfGgml& block : blocks_of_ggml) {
    const GgufBytes file = two_rows(block);
    const GgufContents contents = parse_gguf(file.bytes());
    EXPECT_EQ(name_of(contents.tensors[0].type), block.name);
    EXPECT_EQ(contents.tensors[0].bytes.size(), 4 * block.bytes) << block.name;
    EXPECT_EQ(contents.tensors[0].rows(), 2U);
    EXPECT_REFUSED(two_rows(block, 1), "data of tensor \"t\"") << block.name;
    EXPECT_EQ(parse_gguf_type(block.name), contents.tensors[0].type);
    const GgufTypeInfo info = info_of(contents.tensors[0].type);
    EXPECT_EQ(info.block_size, block.size);
    EXPECT_EQ(info.block_bytes, block.bytes);
  }
  EXPECT_EQ(blocks_of_ggml.size(), gguf_types.size());
}

TEST(ParseGgufRefuses, RowsThatAreNotWholeBlocks) {
  for (const BlockOfGgml& block : blocks_of_ggml) {
    if (block.size == 1) continue;
    for (const std::uint64_t cols : {block.size - 1, block.size / 2, 3 * block.size + 1}) {
      // The number of elements is a multiple all the same.
      EXPECT_REFUSED(one_tensor("t", {cols, block.size}, block.number),
                     "tensor \"t\", extents: expected rows of a multiple of " + std::to_string(block.size) +
                         " elements, the block size of " + block.name + ", got " + std::to_string(cols));
    }
  }
}

TEST(ParseGgufRefuses, BlocksThatTheFileCannotHold) {
  for (const BlockOfGgml& block : blocks_of_ggml) {
    const std::uint64_t most = std::numeric_limits<std::int64_t>::max();
    EXPECT_REFUSED(one_tensor("t", {most / block.size * block.size}, block.number), "expected at most");
    EXPECT_REFUSED(one_tensor("t", {block.size, most / block.size}, block.number), "expected at most");
  }
}

TEST(VisitFormat, HasNoFormatForFloatsThemselves) {
  EXPECT_THROW(static_cast<void>(visit_format(GgufType::F32, [](auto) { return 0; })), ConfigError);
  EXPECT_EQ(gguf_type_of_format<formats::NF4<64>>(), std::nullopt);
  EXPECT_EQ(gguf_type_of_format<formats::IQ4_XS>(), GgufType::IQ4_XS);
}

TEST(ParseGgufRefuses, Names) {
  EXPECT_EQ(refusal(one_tensor(std::string(63, 'n'), {16})), "");
  EXPECT_REFUSED(one_tensor(std::string(64, 'n'), {16}), "less than 64 bytes");
  EXPECT_REFUSED(one_tensor(std::string_view("a\0b", 3), {16}), "none of them 0");
  EXPECT_REFUSED(one_tensor("\xFF", {16}), "UTF-8");
  GgufBytes twice = GgufBytes::header(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).pad(32);
  for (int i = 0; i < 16; ++i) twice.f32(1);
  EXPECT_REFUSED(twice, "\"t\" twice");
}

TEST(ParseGgufRefuses, OffsetsThatOverlapLeaveGapsOrAreNotAligned) {
  EXPECT_REFUSED(one_tensor("t", {1}, 0, 4), "offset: expected 0");
  EXPECT_REFUSED(one_tensor("t", {1}, 0, huge), "offset: expected 0");
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{4}, std::uint64_t{64}, huge - 31}) {
    GgufBytes file = GgufBytes::header(2, 0).tensor("a", {1}, 0, 0).tensor("b", {1}, 0, offset).pad(32);
    for (int i = 0; i < 32; ++i) file.f32(1);
    EXPECT_REFUSED(file, "tensor \"b\", offset: expected 32");
  }
}

TEST(ParseGgufRefuses, NamesTheFileTheByteAndTheItem) {
  EXPECT_REFUSED(GgufBytes::header(0, 1).u64(huge).raw("abcdefgh"), "parse_gguf: file, byte 32, metadata key");
}

}  // namespace
}  // namespace lora::testing::gguf_parser_test
