// SPDX-License-Identifier: MIT
#include "lora/io/safetensors_writer.hpp"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <vector>

#include "io/files.hpp"
#include "lora/io/safetensors_reader.hpp"

namespace lora::safetensors_writer_test {
namespace {

using testing::bytes_of;
using testing::read_file;
using testing::TemporaryFolder;

// Header and data of a written file, taken apart by the format's description and not by the library's reader.
struct Parsed {
  std::string header_text;
  nlohmann::json header;
  std::vector<std::byte> data;
};

Parsed take_apart(const std::vector<std::byte>& file) {
  std::size_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length * 256 + std::to_integer<std::size_t>(file.at(i));
  std::string text;
  for (std::size_t i = 8; i < 8 + length; ++i) text.push_back(static_cast<char>(std::to_integer<int>(file.at(i))));
  const auto data_begin = file.begin() + static_cast<std::ptrdiff_t>(8 + length);
  return {text, nlohmann::json::parse(text), {data_begin, file.end()}};
}

std::string header_text(const SafetensorsWriter& writer) { return take_apart(writer.to_bytes()).header_text; }

template <class Call>
SafetensorsErrorKind refusal(const Call& call) {
  try {
    call();
  } catch (const SafetensorsError& error) {
    return error.kind();
  }
  throw std::runtime_error("nothing was refused");
}

TEST(SafetensorsWriter, LaysOutByAlignmentThenNameAndPadsTheHeader) {
  SafetensorsWriter writer;
  writer.add("b", Dtype::U8, {3}, bytes_of("xyz"));
  writer.add("c", Dtype::F32, {1}, bytes_of("1234"));
  writer.add("a", Dtype::F32, {1, 1}, bytes_of("5678"));
  writer.add("d", Dtype::I64, {}, bytes_of("ABCDEFGH"));
  writer.add("e", Dtype::BOOL, {1}, bytes_of("t"));
  writer.add_metadata("format", "pt");
  const Parsed parsed = take_apart(writer.to_bytes());
  EXPECT_EQ(parsed.header_text,
            R"({"__metadata__":{"format":"pt"},"d":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
            R"("a":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]},)"
            R"("c":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},)"
            R"("b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]},)"
            R"("e":{"dtype":"BOOL","shape":[1],"data_offsets":[19,20]}}       )");
  EXPECT_EQ(parsed.header_text.size() % 8, 0U);
  EXPECT_EQ(parsed.data, bytes_of("ABCDEFGH56781234xyzt"));
}

TEST(SafetensorsWriter, WritesNothingAsAnEmptyObject) { EXPECT_EQ(header_text(SafetensorsWriter()), "{}      "); }

TEST(SafetensorsWriter, EscapesNamesAsJson) {
  SafetensorsWriter writer;
  const std::string name("\"\\\n\x01\0\x7F\xC3\xA9", 8);
  writer.add(name, Dtype::U8, {1}, bytes_of("x"));
  EXPECT_EQ(header_text(writer).rfind("{\"\\\"\\\\\\n\\u0001\\u0000\x7F\xC3\xA9\":", 0), 0U) << header_text(writer);
  EXPECT_TRUE(take_apart(writer.to_bytes()).header.contains(name));
}

// Golden files come out byte for byte when written again. Those that mix dtypes are left out: the format leaves the
// order free, and not every golden file has the order of the reference implementation there.
TEST(SafetensorsWriter, RepeatsTheReferenceByteForByte) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(LORA_GOLDEN_DIR)) {
    const auto& path = entry.path();
    if (path.extension() != ".safetensors" || path.parent_path().filename() == "malformed") continue;
    const auto file = SafetensorsFile::open(path);
    std::set<Dtype> dtypes;
    for (const auto name : file.names()) dtypes.insert(file.tensor(name).dtype);
    if (dtypes.size() > 1) continue;
    SafetensorsWriter writer;
    for (const auto& [key, value] : file.metadata()) writer.add_metadata(key, value);
    for (const auto name : file.names()) {
      const TensorView tensor = file.tensor(name);
      writer.add_view(std::string(name), tensor.dtype, tensor.shape, tensor.bytes);
    }
    EXPECT_EQ(writer.to_bytes(), read_file(path)) << path;
    ++files;
  }
  EXPECT_GT(files, 0);
}

template <class Scalar>
class SafetensorsWriterScalar : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SafetensorsWriterScalar, Scalars);

TYPED_TEST(SafetensorsWriterScalar, TakesAnyEigenExpression) {
  Matrix<TypeParam> row_major(2, 3);
  row_major << 1, 2, 3, 4, 5, 6;
  const Eigen::Matrix<TypeParam, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor> column_major = row_major;
  const Eigen::Matrix<TypeParam, Eigen::Dynamic, 1> column = row_major.col(1);
  SafetensorsWriter writer;
  writer.add("row_major", row_major);
  writer.add("column_major", column_major);
  writer.add("block", row_major.block(0, 1, 2, 2));
  writer.add("product", row_major * row_major.transpose());
  writer.add("column", column);
  writer.add("row", row_major.row(1));
  writer.add("cube", row_major, {1, 3, 2});
  writer.add("empty", Matrix<TypeParam>(0, 3));
  writer.add("empty_rows", Matrix<TypeParam>(3, 0));
  const auto bytes = writer.to_bytes();
  const auto file = SafetensorsFile::from_bytes(bytes);
  const auto read = [&](std::string_view name) { return file.template matrix<TypeParam>(name); };
  EXPECT_EQ(file.tensor("row_major").dtype, dtype_of<TypeParam>);
  EXPECT_EQ(read("row_major"), row_major);
  EXPECT_EQ(read("column_major"), row_major);
  EXPECT_EQ(read("block"), row_major.block(0, 1, 2, 2));
  EXPECT_EQ(read("product"), Matrix<TypeParam>(row_major * row_major.transpose()));
  EXPECT_EQ(file.tensor("column").shape, std::vector<Index>{2});
  EXPECT_EQ(read("column"), Matrix<TypeParam>(column.transpose()));
  EXPECT_EQ(file.tensor("row").shape, std::vector<Index>{3});
  EXPECT_EQ(read("row"), Matrix<TypeParam>(row_major.row(1)));
  EXPECT_EQ(file.tensor("cube").shape, (std::vector<Index>{1, 3, 2}));
  EXPECT_TRUE(std::ranges::equal(file.tensor("cube").bytes, file.tensor("row_major").bytes));
  EXPECT_EQ(file.tensor("empty").shape, (std::vector<Index>{0, 3}));
  EXPECT_EQ(file.tensor("empty_rows").shape, (std::vector<Index>{3, 0}));
}

TYPED_TEST(SafetensorsWriterScalar, RoundsToTheDtypeAskedFor) {
  const RowVector<TypeParam> values{{TypeParam{1} / 3, std::numeric_limits<TypeParam>::infinity(), -0.0}};
  SafetensorsWriter writer;
  writer.add("F16", values, Dtype::F16);
  writer.add("BF16", values, Dtype::BF16);
  writer.add("F32", values, Dtype::F32);
  writer.add("F64", values, Dtype::F64);
  const auto bytes = writer.to_bytes();
  const auto file = SafetensorsFile::from_bytes(bytes);
  const auto third = [&](std::string_view name) {
    EXPECT_EQ(name_of(file.tensor(name).dtype), name);
    const Matrix<double> read = file.matrix<double>(name);
    EXPECT_EQ(read(0, 1), std::numeric_limits<double>::infinity());
    EXPECT_TRUE(read(0, 2) == 0 && std::signbit(read(0, 2)));
    return read(0, 0);
  };
  EXPECT_EQ(third("F16"), 1365.0 / 4096);
  EXPECT_EQ(third("BF16"), 171.0 / 512);
  EXPECT_EQ(third("F32"), static_cast<double>(1.0F / 3));
  EXPECT_EQ(third("F64"), static_cast<double>(TypeParam{1} / 3));
}

TYPED_TEST(SafetensorsWriterScalar, ViewsMemoryWithoutCopying) {
  Matrix<TypeParam> values = Matrix<TypeParam>::Constant(4, 3, TypeParam{1});
  SafetensorsWriter writer;
  writer.add_view("values", values);
  writer.add_view("rows", values.middleRows(1, 2));
  values(1, 2) = TypeParam{7};
  const auto bytes = writer.to_bytes();
  const auto file = SafetensorsFile::from_bytes(bytes);
  EXPECT_EQ(file.template matrix<TypeParam>("values"), values);
  EXPECT_EQ(file.template matrix<TypeParam>("rows"), values.middleRows(1, 2));
  EXPECT_EQ(refusal([&] { writer.add_view("gaps", values.leftCols(2)); }), SafetensorsErrorKind::unexpected_shape);
}

TEST(SafetensorsWriter, RefusesWhatNoFileMayHoldAndStaysAsItWas) {
  constexpr Index greatest = std::numeric_limits<Index>::max();
  SafetensorsWriter writer;
  writer.add("a", Dtype::U8, {2}, bytes_of("ab"));
  writer.add_metadata("k", "v");
  const auto before = writer.to_bytes();
  using enum SafetensorsErrorKind;
  const auto add = [&](const std::string& name, Dtype dtype, const std::vector<Index>& shape, std::string_view text) {
    const auto copied = refusal([&] { writer.add(name, dtype, shape, bytes_of(text)); });
    const auto viewed = refusal([&] { writer.add_view(name, dtype, shape, std::as_bytes(std::span(text))); });
    EXPECT_EQ(copied, viewed);
    return copied;
  };
  EXPECT_EQ(add("a", Dtype::U8, {2}, "ab"), duplicate_name);
  EXPECT_EQ(add("__metadata__", Dtype::U8, {2}, "ab"), reserved_name);
  EXPECT_EQ(add("\xFF", Dtype::U8, {2}, "ab"), invalid_header);
  EXPECT_EQ(add("b", Dtype::U8, {3}, "ab"), invalid_tensor_view);
  EXPECT_EQ(add("b", Dtype::F32, {}, "ab"), invalid_tensor_view);
  EXPECT_EQ(add("b", Dtype::U8, {-1, -2}, "ab"), invalid_tensor_view);
  EXPECT_EQ(add("b", Dtype::F4, {3}, "ab"), misaligned_slice);
  EXPECT_EQ(add("b", Dtype::U8, {greatest, greatest, greatest}, "ab"), validation_overflow);
  EXPECT_EQ(refusal([&] { writer.add("b", RowVector<float>(2), Dtype::I32); }), unexpected_dtype);
  EXPECT_EQ(refusal([&] { writer.add("b", RowVector<float>(2), std::vector<Index>{3}); }), invalid_tensor_view);
  EXPECT_EQ(refusal([&] { writer.add_metadata("k", "w"); }), duplicate_name);
  EXPECT_EQ(refusal([&] { writer.add_metadata("\xFF", "w"); }), invalid_header);
  EXPECT_EQ(refusal([&] { writer.add_metadata("l", "\xC3"); }), invalid_header);
  EXPECT_EQ(writer.to_bytes(), before);
}

TEST(SafetensorsWriter, RefusesAHeaderOverTheCap) {
  SafetensorsWriter writer;
  writer.add_metadata("k", std::string(100'000'000, 'a'));
  const TemporaryFolder folder;
  EXPECT_EQ(refusal([&] { writer.write(folder / "file"); }), SafetensorsErrorKind::header_too_large);
  EXPECT_TRUE(folder.entries().empty());
}

TEST(SafetensorsWriter, WritesTheSameBytesToDisk) {
  SafetensorsWriter writer;
  writer.add("a", Matrix<double>{{1, 2}, {3, 4}});
  writer.add("b", Dtype::U8, {0}, {});
  const TemporaryFolder folder;
  writer.write(folder / "file");
  EXPECT_EQ(read_file(folder / "file"), writer.to_bytes());
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"file"});
}

TEST(SafetensorsWriter, ReplacesTheFileItsTensorsAreMappedFrom) {
  const TemporaryFolder folder;
  SafetensorsWriter first;
  first.add("a", Matrix<float>{{1, 2}, {3, 4}});
  first.write(folder / "file");
  const auto mapped = SafetensorsFile::open(folder / "file");
  SafetensorsWriter second;
  second.add_view("copy", Dtype::F32, {2, 2}, mapped.tensor("a").bytes);
  second.write(folder / "file");
  EXPECT_EQ(SafetensorsFile::open(folder / "file").matrix<float>("copy"), mapped.matrix<float>("a"));
}

TEST(SafetensorsWriter, AFullDiskLeavesTheOldFile) {
  const TemporaryFolder folder;
  testing::write_file(folder / "file", "old");
  SafetensorsWriter writer;
  writer.add("a", Matrix<float>::Zero(100, 100));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_THROW(writer.write(folder / "file"), IoError);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(folder / "file"), bytes_of("old"));
  EXPECT_EQ(folder.entries(), std::vector<std::string>{"file"});
}

TEST(SafetensorsWriterStream, WritesWhatAddWouldHaveWritten) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const auto bytes = std::as_bytes(std::span(values));
  SafetensorsWriter whole;
  whole.add("w", Dtype::F32, {2, 3}, bytes);
  SafetensorsWriter streamed;
  streamed.add_stream("w", Dtype::F32, {2, 3}, [bytes](const SafetensorsWriter::Sink& sink) {
    sink(bytes.first(4));
    sink(bytes.subspan(4, 0));
    sink(bytes.subspan(4));
  });
  EXPECT_EQ(streamed.to_bytes(), whole.to_bytes());
}

TEST(SafetensorsWriterStream, RefusesAProducerThatGivesTooMuchOrTooLittle) {
  const std::vector<float> values = {1, 2, 3};
  const auto bytes = std::as_bytes(std::span(values));
  for (const std::size_t given : {std::size_t{4}, std::size_t{12}}) {
    SafetensorsWriter writer;
    writer.add_stream("w", Dtype::F32, {2}, [&](const SafetensorsWriter::Sink& sink) { sink(bytes.first(given)); });
    try {
      static_cast<void>(writer.to_bytes());
      FAIL() << given;
    } catch (const SafetensorsError& error) {
      EXPECT_EQ(error.kind(), SafetensorsErrorKind::invalid_tensor_view);
      EXPECT_NE(std::string(error.what()).find("8 bytes from its producer"), std::string::npos) << error.what();
    }
  }
}

TEST(SafetensorsWriterStream, LeavesTheTargetAloneWhenTheProducerFails) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "t.safetensors";
  SafetensorsWriter good;
  good.add("w", RowVector<float>(RowVector<float>::Ones(3)));
  good.write(path);
  const auto before = read_file(path);
  SafetensorsWriter bad;
  bad.add_stream("w", Dtype::F32, {2}, [](const SafetensorsWriter::Sink&) { throw std::runtime_error("gone"); });
  EXPECT_THROW(bad.write(path), std::runtime_error);
  EXPECT_EQ(read_file(path), before);
  EXPECT_THROW(bad.add_stream("x", Dtype::F32, {-1}, {}), SafetensorsError);
}

}  // namespace
}  // namespace lora::safetensors_writer_test
