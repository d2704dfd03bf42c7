// SPDX-License-Identifier: MIT
// Reads gzip-compressed IDX files, the format of the MNIST family of datasets.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"

namespace examples {

/// An array of bytes with its extents, outermost first.
struct IdxArray {
  std::vector<std::size_t> shape;
  std::vector<std::uint8_t> values;  ///< row-major
};

namespace detail {

/// One gzip stream, read from front to back.
class GzipReader {
 public:
  /// @throws lora::IoError
  explicit GzipReader(const std::filesystem::path& path) : name_(path.string()), file_(gzopen(path.c_str(), "rb")) {
    if (file_ == nullptr) throw lora::IoError("read_idx", name_, "a file that can be opened", "none");
  }

  /// Reads up to bytes.size(); fewer only at the end of the stream. @throws lora::FormatError when it is damaged.
  std::size_t read_some(std::span<std::uint8_t> bytes) {
    const int count = gzread(file_.get(), bytes.data(), static_cast<unsigned>(bytes.size()));
    int code = Z_OK;
    const char* text = gzerror(file_.get(), &code);
    if (count < 0 || code == Z_BUF_ERROR) fail("an intact gzip stream", text);
    if (gzdirect(file_.get()) != 0) fail("a gzip stream", "something else");
    return static_cast<std::size_t>(count);
  }

  /// @throws lora::FormatError when the stream ends before.
  void read(std::span<std::uint8_t> bytes, std::string_view what) {
    if (const auto count = read_some(bytes); count != bytes.size()) {
      fail(std::to_string(bytes.size()) + " bytes of " + std::string(what), std::to_string(count));
    }
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw lora::FormatError("read_idx", name_, expected, got);
  }

 private:
  struct Close {
    void operator()(gzFile file) const noexcept { gzclose(file); }
  };

  std::string name_;
  std::unique_ptr<gzFile_s, Close> file_;
};

/// Big-endian.
[[nodiscard]] inline std::size_t read_extent(GzipReader& reader) {
  std::array<std::uint8_t, 4> bytes{};
  reader.read(bytes, "extent");
  std::size_t value = 0;
  for (const auto byte : bytes) value = value << 8U | byte;
  return value;
}

/// The number of elements. @throws lora::FormatError when it is more than `limit`.
[[nodiscard]] inline std::size_t element_count(const GzipReader& reader, const std::vector<std::size_t>& shape,
                                               std::size_t limit) {
  std::size_t count = 1;
  for (const std::size_t extent : shape) {
    if (extent != 0 && count > limit / extent) reader.fail("at most " + std::to_string(limit) + " elements", "more");
    count *= extent;
  }
  return count;
}

/// Believes the header's count only as far as data follows.
[[nodiscard]] inline std::vector<std::uint8_t> read_values(GzipReader& reader, std::size_t count) {
  constexpr std::size_t chunk = std::size_t{1} << 20U;
  std::vector<std::uint8_t> values;
  while (values.size() < count) {
    const std::size_t begin = values.size();
    values.resize(begin + std::min(chunk, count - begin));
    reader.read(std::span(values).subspan(begin), "values");
  }
  return values;
}

}  // namespace detail

/// Reads an array of unsigned bytes with `rank` extents.
///
/// Format: two zero bytes, the type (0x08 stands for unsigned bytes), the rank, one big-endian 32-bit extent per
/// dimension, the values; nothing after them. The checksum of the gzip stream is verified.
/// @throws lora::IoError when the file cannot be opened, lora::FormatError when it breaks one of these rules or
/// declares more than `limit` elements, std::bad_alloc.
/// Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats".
[[nodiscard]] inline IdxArray read_idx(const std::filesystem::path& path, std::size_t rank,
                                       std::size_t limit = std::size_t{1} << 30U) {
  detail::GzipReader reader(path);
  std::array<std::uint8_t, 4> magic{};
  reader.read(magic, "magic number");
  if (magic[0] != 0 || magic[1] != 0) reader.fail("an IDX magic number", "other bytes");
  if (magic[2] != 0x08) reader.fail("type 0x08, unsigned bytes", "type " + std::to_string(magic[2]));
  if (magic[3] != rank) reader.fail("rank " + std::to_string(rank), std::to_string(magic[3]));

  IdxArray array;
  for (std::size_t i = 0; i < rank; ++i) array.shape.push_back(detail::read_extent(reader));
  array.values = detail::read_values(reader, detail::element_count(reader, array.shape, limit));
  std::array<std::uint8_t, 1> rest{};
  if (reader.read_some(rest) != 0) reader.fail("the end of the file after the values", "more data");
  return array;
}

}  // namespace examples
