// SPDX-License-Identifier: MIT
// Reads safetensors files without copying them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/little_endian.hpp"
#include "lora/core/types.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/safetensors_error.hpp"
#include "lora/io/safetensors_header.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// One tensor of an open file: row-major values, not necessarily aligned. It owns only its shape; `name` and `bytes`
/// are valid while the SafetensorsFile it came from, or a copy of that, lives.
struct TensorView {
  std::string_view file;             ///< the file's name in error messages
  std::string_view name;             ///< the tensor's
  Dtype dtype = Dtype::U8;           ///< of its elements
  std::vector<Index> shape;          ///< its extents; empty for a scalar
  std::span<const std::byte> bytes;  ///< its elements, little-endian

  /// Number of elements.
  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(bytes.size() * 8 / bits_of(dtype)); }

  /// Writes all values, in row-major order, to `values`. F64, F32, F16 and BF16 convert to float and double: widening
  /// is exact, F64 to float rounds to nearest even. Any other T accepts only its own dtype.
  /// @throws SafetensorsError unexpected_dtype; unexpected_shape unless values.size() == size(). No allocation.
  template <StoredScalar T>
  void copy_to(std::span<T> values) const {
    if (values.size() != static_cast<std::size_t>(size())) {
      refuse(SafetensorsErrorKind::unexpected_shape, std::to_string(values.size()) + " elements",
             shape_text(shape) + ", which has " + std::to_string(size()));
    }
    if constexpr (RealScalar<T>) {
      if (!converts_to_real(dtype)) {
        refuse(SafetensorsErrorKind::unexpected_dtype, "F64, F32, F16 or BF16", name_of(dtype));
      }
      decode(dtype, bytes.data(), values);
    } else {
      static_assert(!std::is_same_v<T, bool>, "a stored BOOL may be a byte that no bool is; read it as bytes");
      require_dtype<T>();
      constexpr std::size_t parts = std::is_same_v<T, std::complex<float>> ? 2 : 1;
      copy_numbers<sizeof(T) / parts>(bytes, values.data());
    }
  }

  /// A copy of the values as a matrix: rank 2 as it is, rank 1 as one row, rank 0 as 1 x 1.
  /// @throws SafetensorsError unexpected_dtype like copy_to, unexpected_shape for rank 3 and more; std::bad_alloc.
  template <RealScalar Scalar>
  [[nodiscard]] Matrix<Scalar> matrix() const {
    return filled<Scalar>(matrix_extents());
  }

  /// A copy of the values as a matrix of so many rows, whatever the shape, for example shape[0].
  /// @throws SafetensorsError unexpected_dtype like copy_to, unexpected_shape unless `rows` divides size();
  /// std::bad_alloc.
  template <RealScalar Scalar>
  [[nodiscard]] Matrix<Scalar> matrix(Index rows) const {
    if (rows < 0 || (rows == 0 ? size() != 0 : size() % rows != 0)) {
      refuse(SafetensorsErrorKind::unexpected_shape, "elements for " + std::to_string(rows) + " rows",
             shape_text(shape));
    }
    return filled<Scalar>({rows, rows == 0 ? 0 : size() / rows});
  }

  /// Whether the stored values can be used in place, as T. On a big-endian machine only bytes can.
  template <StoredScalar T>
  [[nodiscard]] bool mappable() const noexcept {
    if (sizeof(T) > 1 && !is_little_endian) return false;
    return dtype == dtype_of<T> && reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) == 0;
  }

  /// The values in place in the file, without a copy; the shape is that of matrix(). Valid as long as `bytes`.
  /// @throws SafetensorsError unexpected_dtype when the dtype differs or the data is not aligned (see mappable),
  /// unexpected_shape for rank 3 and more. No allocation.
  template <StoredScalar T>
  [[nodiscard]] Eigen::Map<const Matrix<T>> map() const {
    const auto [rows, cols] = matrix_extents();
    require_dtype<T>();
    if (!mappable<T>()) {
      refuse(SafetensorsErrorKind::unexpected_dtype, "data aligned to " + std::to_string(alignof(T)) + " bytes",
             "data at another address (take matrix(), which copies)");
    }
    return {reinterpret_cast<const T*>(bytes.data()), rows, cols};
  }

 private:
  template <std::size_t Size>
  static void copy_numbers(std::span<const std::byte> from, void* to) noexcept {
    if constexpr (is_little_endian) {
      if (!from.empty()) std::memcpy(to, from.data(), from.size());
    } else {
      for (std::size_t i = 0; i < from.size(); i += Size) {
        copy_little_endian(from.data() + i, static_cast<std::byte*>(to) + i, Size);
      }
    }
  }

  [[noreturn]] void refuse(SafetensorsErrorKind kind, std::string_view expected, std::string_view got) const {
    throw SafetensorsError(kind, detail::tensor_argument(file, name), expected, got);
  }

  template <RealScalar Scalar>
  [[nodiscard]] Matrix<Scalar> filled(std::pair<Index, Index> extents) const {
    Matrix<Scalar> values(extents.first, extents.second);
    copy_to(std::span<Scalar>(values.data(), static_cast<std::size_t>(values.size())));
    return values;
  }

  template <class T>
  void require_dtype() const {
    if (dtype != dtype_of<T>) refuse(SafetensorsErrorKind::unexpected_dtype, name_of(dtype_of<T>), name_of(dtype));
  }

  [[nodiscard]] std::pair<Index, Index> matrix_extents() const {
    if (shape.size() > 2) refuse(SafetensorsErrorKind::unexpected_shape, "at most two dimensions", shape_text(shape));
    const Index rows = shape.size() == 2 ? shape.front() : 1;
    const Index cols = shape.empty() ? 1 : shape.back();
    return {rows, cols};
  }
};

/// An open safetensors file whose header has been fully checked. Tensor data is read only when it is used.
/// A copy is cheap and shares the mapping, which lives as long as the last copy.
/// Thread safety: any number of threads may use one object, or copies, at the same time.
class SafetensorsFile {
 public:
  /// Maps the file. A file that is replaced by rename stays readable; one that is shortened in place by another
  /// process does not (see MappedFile).
  /// @throws IoError, SafetensorsError (its kind tells which rule is broken), std::bad_alloc.
  [[nodiscard]] static SafetensorsFile open(const std::filesystem::path& path) {
    MappedFile mapping(path);
    const auto bytes = mapping.bytes();
    return {std::move(mapping), bytes, path_text(path)};
  }

  /// Reads a whole file from the caller's memory, which must outlive this object, its copies and its views.
  /// `label` names it in errors. @throws SafetensorsError, std::bad_alloc.
  [[nodiscard]] static SafetensorsFile from_bytes(std::span<const std::byte> bytes,
                                                  std::string label = "bytes in memory") {
    return {MappedFile(), bytes, std::move(label)};
  }
  static SafetensorsFile from_bytes(std::vector<std::byte>&& bytes, std::string label = {}) = delete;

  /// Number of tensors.
  [[nodiscard]] std::size_t size() const noexcept { return contents_->header.tensors.size(); }

  /// All tensor names, ascending by bytes. Valid while this object or a copy lives.
  [[nodiscard]] std::vector<std::string_view> names() const {
    const SafetensorsHeader& header = contents_->header;
    std::vector<std::string_view> names;
    names.reserve(header.by_name.size());
    for (const std::size_t position : header.by_name) names.emplace_back(header.tensors[position].name);
    return names;
  }

  /// Whether the file has a tensor of that name.
  [[nodiscard]] bool contains(std::string_view name) const noexcept { return find(name) != nullptr; }

  /// The tensor of that name. @throws SafetensorsError tensor_not_found, which lists the nearest names;
  /// unexpected_shape when an empty tensor has an extent beyond 2^63 - 1.
  [[nodiscard]] TensorView tensor(std::string_view name) const {
    const SafetensorsEntry* entry = find(name);
    if (entry == nullptr) {
      throw SafetensorsError(SafetensorsErrorKind::tensor_not_found, contents_->label, "a tensor " + in_quotes(name),
                             describe_names(name));
    }
    TensorView view{contents_->label, entry->name, entry->dtype, {}, {}};
    view.shape.reserve(entry->shape.size());
    for (const std::uint64_t extent : entry->shape) {
      if (extent > static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) {
        throw SafetensorsError(SafetensorsErrorKind::unexpected_shape, detail::tensor_argument(contents_->label, name),
                               "extents of at most 2^63 - 1", std::to_string(extent));
      }
      view.shape.push_back(static_cast<Index>(extent));
    }
    view.bytes = contents_->bytes.subspan(contents_->header.data_begin + static_cast<std::size_t>(entry->begin),
                                          static_cast<std::size_t>(entry->end - entry->begin));
    return view;
  }

  /// tensor(name).matrix<Scalar>(). @throws SafetensorsError like both; std::bad_alloc.
  template <RealScalar Scalar>
  [[nodiscard]] Matrix<Scalar> matrix(std::string_view name) const {
    return tensor(name).template matrix<Scalar>();
  }

  /// Returns the memory of a part of this file's tensor data to the system, if the file is mapped; see
  /// MappedFile::release. The part stays readable.
  void release(std::span<const std::byte> part) const noexcept {
    if (!contents_->mapping.bytes().empty()) contents_->mapping.release(part);
  }

  /// The strings under __metadata__; empty when there are none.
  [[nodiscard]] const std::map<std::string, std::string, std::less<>>& metadata() const noexcept {
    return contents_->header.metadata;
  }

  /// This file's name in error messages.
  [[nodiscard]] const std::string& label() const noexcept { return contents_->label; }

 private:
  struct Contents {
    MappedFile mapping;
    std::span<const std::byte> bytes;
    std::string label;
    SafetensorsHeader header;
  };

  SafetensorsFile(MappedFile mapping, std::span<const std::byte> bytes, std::string label) {
    SafetensorsHeader header = parse_safetensors_header(bytes, label);
    contents_ =
        std::make_shared<const Contents>(Contents{std::move(mapping), bytes, std::move(label), std::move(header)});
  }

  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const noexcept {
    const SafetensorsHeader& header = contents_->header;
    const auto found = std::lower_bound(
        header.by_name.begin(), header.by_name.end(), name,
        [&](std::size_t position, std::string_view wanted) { return header.tensors[position].name < wanted; });
    if (found == header.by_name.end() || header.tensors[*found].name != name) return nullptr;
    return &header.tensors[*found];
  }

  [[nodiscard]] std::string describe_names(std::string_view wanted) const {
    constexpr std::size_t listed = 5;
    if (size() == 0) return "a file without tensors";
    std::string text = size() <= listed ? "only" : std::to_string(size()) + " others, nearest";
    for (const std::string_view name : nearest_names(wanted, names(), listed)) text.append(" ").append(in_quotes(name));
    return text;
  }

  std::shared_ptr<const Contents> contents_;
};

}  // namespace lora
