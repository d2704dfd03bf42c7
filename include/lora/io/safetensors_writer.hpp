// SPDX-License-Identifier: MIT
// Writes safetensors files, byte for byte as the reference implementation lays them out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/little_endian.hpp"
#include "lora/core/types.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/dtype.hpp"
#include "lora/io/dtype_conversion.hpp"
#include "lora/io/safetensors_error.hpp"
#include "lora/io/safetensors_header.hpp"
#include "lora/io/text.hpp"

namespace lora {

/// An Eigen type of float or double whose elements are in memory, row after row.
template <class Derived>
concept StoredByRows = RealScalar<typename Derived::Scalar> &&(Derived::Flags& Eigen::DirectAccessBit) != 0 &&
                       static_cast<bool>(Derived::IsRowMajor || Derived::IsVectorAtCompileTime);

/// Collects tensors and writes them as one file. Tensors are laid out by descending alignment of their dtype, then by
/// name, and the header is padded with spaces to a multiple of 8 bytes, so that in a mapped file all data is aligned.
/// Every add either succeeds or throws and changes nothing. One thread at a time.
class SafetensorsWriter {
 public:
  /// Adds a copy of `bytes`, the row-major values of a tensor of that dtype and shape.
  /// @throws SafetensorsError invalid_tensor_view unless bytes and shape match, validation_overflow, misaligned_slice,
  /// duplicate_name, reserved_name, invalid_header for a name that is not UTF-8.
  void add(std::string name, Dtype dtype, std::vector<Index> shape, std::span<const std::byte> bytes) {
    add_owned(std::move(name), dtype, std::move(shape), {bytes.begin(), bytes.end()});
  }

  /// Like add, but without a copy: `bytes` must stay valid until the last write() or to_bytes().
  void add_view(std::string name, Dtype dtype, std::vector<Index> shape, std::span<const std::byte> bytes) {
    check_bytes(name, dtype, shape, bytes.size());
    insert(std::move(name), {dtype, std::move(shape), bytes.size(), [bytes](const Sink& sink) { sink(bytes); }});
  }

  /// Takes the next bytes of a tensor.
  using Sink = std::function<void(std::span<const std::byte>)>;

  /// Adds a tensor whose bytes are computed when the file is written: `produce` then passes them to the sink, in order
  /// and in pieces of any size, so that the whole tensor need never be in memory. It may be called more than once.
  /// @throws SafetensorsError like add. write() and to_bytes() pass on what `produce` throws, and throw
  /// invalid_tensor_view when it produces the wrong number of bytes.
  void add_stream(std::string name, Dtype dtype, std::vector<Index> shape, std::function<void(const Sink&)> produce) {
    const auto bytes = static_cast<std::size_t>(bytes_of(name, dtype, shape));
    insert(std::move(name), {dtype, std::move(shape), bytes, std::move(produce)});
  }

  /// Adds the values of an Eigen matrix or vector expression, rounded once to `dtype` (F64, F32, F16 or BF16).
  /// The shape is [rows, cols], or [size] for a type that is a vector at compile time.
  /// @throws SafetensorsError like above; unexpected_dtype for a dtype that real numbers do not convert to.
  template <class Derived>
  void add(std::string name, const Eigen::MatrixBase<Derived>& values,
           Dtype dtype = dtype_of<typename Derived::Scalar>) {
    add(std::move(name), values, shape_of(values), dtype);
  }

  /// The same with a shape of any rank; its elements in row-major order are those of `values`.
  template <class Derived>
    requires RealScalar<typename Derived::Scalar>
  // NOLINTNEXTLINE(performance-unnecessary-value-param): moved into the list of tensors.
  void add(std::string name, const Eigen::MatrixBase<Derived>& values, std::vector<Index> shape,
           Dtype dtype = dtype_of<typename Derived::Scalar>) {
    if (!converts_to_real(dtype)) {
      throw SafetensorsError(SafetensorsErrorKind::unexpected_dtype, argument(name), "F64, F32, F16 or BF16",
                             name_of(dtype));
    }
    const std::size_t element_bytes = bits_of(dtype) / 8;
    check_bytes(name, dtype, shape, static_cast<std::size_t>(values.size()) * element_bytes);
    add_owned(std::move(name), dtype, std::move(shape), encoded(values, dtype, element_bytes));
  }

  /// Like add of a matrix in its own dtype, but without a copy: `values` must stay valid and in place until the last
  /// write() or to_bytes(). Takes an object whose elements are in memory, row-major and without gaps.
  /// @throws SafetensorsError like above; unexpected_shape when there are gaps between the rows.
  template <StoredByRows Derived>
  void add_view(std::string name, const Eigen::MatrixBase<Derived>& values) {
    const Derived& object = values.derived();
    if (object.innerStride() != 1 || (object.outerSize() > 1 && object.outerStride() != object.innerSize())) {
      throw SafetensorsError(SafetensorsErrorKind::unexpected_shape, argument(name), "rows without gaps",
                             "a strided object (take add, which copies)");
    }
    using Element = typename Derived::Scalar;
    const std::span<const Element> elements(object.data(), static_cast<std::size_t>(object.size()));
    if constexpr (is_little_endian) {
      add_view(std::move(name), dtype_of<Element>, shape_of(values), std::as_bytes(elements));
    } else {
      add_stream(std::move(name), dtype_of<Element>, shape_of(values), [elements](const Sink& sink) {
        std::vector<std::byte> bytes(elements.size_bytes());
        encode(dtype_of<Element>, elements, bytes.data());
        sink(bytes);
      });
    }
  }

  /// Adds an entry to __metadata__. @throws SafetensorsError duplicate_name; invalid_header unless both are UTF-8.
  void add_metadata(const std::string& key, const std::string& value) {
    check_utf8(key);
    check_utf8(value);
    if (!metadata_.try_emplace(key, value).second) {
      throw SafetensorsError(SafetensorsErrorKind::duplicate_name, "metadata key " + in_quotes(key), "a new key",
                             "one that exists");
    }
  }

  /// Writes the file atomically: whatever goes wrong, `path` is unchanged and no other file is left. Streams the data
  /// without a second copy in memory. `path` may be a file that tensors are mapped from.
  /// @throws IoError; SafetensorsError header_too_large for a header over 100,000,000 bytes.
  void write(const std::filesystem::path& path) const {
    const Layout layout = lay_out();
    AtomicFile file(path);
    file.write(std::as_bytes(std::span(layout.head)));
    const Sink sink = [&](std::span<const std::byte> bytes) { file.write(bytes); };
    for (const auto& [name, tensor] : layout.order) emit(*name, *tensor, sink);
    file.commit();
  }

  /// The whole file in memory. @throws SafetensorsError header_too_large, std::bad_alloc.
  [[nodiscard]] std::vector<std::byte> to_bytes() const {
    const Layout layout = lay_out();
    std::size_t total = layout.head.size();
    for (const auto& [name, tensor] : layout.order) total += tensor->bytes;
    std::vector<std::byte> file;
    file.reserve(total);
    const Sink append = [&](std::span<const std::byte> bytes) { file.insert(file.end(), bytes.begin(), bytes.end()); };
    append(std::as_bytes(std::span(layout.head)));
    for (const auto& [name, tensor] : layout.order) emit(*name, *tensor, append);
    return file;
  }

 private:
  struct Tensor {
    Dtype dtype;
    std::vector<Index> shape;
    std::size_t bytes;
    std::function<void(const Sink&)> produce;
  };

  struct Layout {
    std::string head;                                                 // length and padded header
    std::vector<std::pair<const std::string*, const Tensor*>> order;  // order of the data
  };

  static void emit(const std::string& name, const Tensor& tensor, const Sink& sink) {
    std::size_t given = 0;
    const auto refuse = [&] {
      throw SafetensorsError(SafetensorsErrorKind::invalid_tensor_view, argument(name),
                             std::to_string(tensor.bytes) + " bytes from its producer",
                             std::to_string(given) + (given > tensor.bytes ? " or more" : ""));
    };
    tensor.produce([&](std::span<const std::byte> bytes) {
      given += bytes.size();
      if (given > tensor.bytes) refuse();
      sink(bytes);
    });
    if (given != tensor.bytes) refuse();
  }

  [[nodiscard]] static std::string argument(std::string_view name) { return "tensor " + in_quotes(name); }

  static void check_utf8(std::string_view text) {
    const std::size_t valid = utf8_prefix(text);
    if (valid != text.size()) {
      throw SafetensorsError(SafetensorsErrorKind::invalid_header, in_quotes(text), "UTF-8",
                             "an invalid sequence at byte " + std::to_string(valid));
    }
  }

  void add_owned(std::string name, Dtype dtype, std::vector<Index> shape, std::vector<std::byte> bytes) {
    check_bytes(name, dtype, shape, bytes.size());
    const auto owned = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    insert(std::move(name), {dtype, std::move(shape), owned->size(), [owned](const Sink& sink) { sink(*owned); }});
  }

  static std::uint64_t bytes_of(std::string_view name, Dtype dtype, std::span<const Index> shape) {
    if (std::any_of(shape.begin(), shape.end(), [](Index extent) { return extent < 0; })) {
      throw SafetensorsError(SafetensorsErrorKind::invalid_tensor_view, argument(name), "extents of 0 or more",
                             shape_text(shape));
    }
    return tensor_bytes(dtype, std::vector<std::uint64_t>(shape.begin(), shape.end()), argument(name));
  }

  static void check_bytes(std::string_view name, Dtype dtype, std::span<const Index> shape, std::size_t bytes) {
    if (bytes_of(name, dtype, shape) == bytes) return;
    throw SafetensorsError(SafetensorsErrorKind::invalid_tensor_view, argument(name),
                           std::string(name_of(dtype)) + " values of shape " + shape_text(shape),
                           std::to_string(bytes) + " bytes");
  }

  void insert(std::string name, Tensor&& tensor) {
    check_utf8(name);
    if (name == "__metadata__") {
      throw SafetensorsError(SafetensorsErrorKind::reserved_name, argument(name), "another name",
                             "the one the format keeps for its metadata");
    }
    const auto [position, inserted] = tensors_.try_emplace(std::move(name), std::move(tensor));
    if (!inserted) {
      throw SafetensorsError(SafetensorsErrorKind::duplicate_name, argument(position->first), "a new name",
                             "one that exists");
    }
  }

  template <class Derived>
  [[nodiscard]] static std::vector<Index> shape_of(const Eigen::MatrixBase<Derived>& values) {
    if constexpr (Derived::IsVectorAtCompileTime) return {values.size()};
    return {values.rows(), values.cols()};
  }

  template <class Derived>
  [[nodiscard]] static std::vector<std::byte> encoded(const Eigen::MatrixBase<Derived>& values, Dtype dtype,
                                                      std::size_t element_bytes) {
    using Scalar = typename Derived::Scalar;
    // Binds to row-major storage without a copy; evaluates anything else once.
    const Eigen::Ref<const Matrix<Scalar>, 0, Eigen::OuterStride<>> rows(values.derived());
    const auto cols = static_cast<std::size_t>(rows.cols());
    std::vector<std::byte> bytes(static_cast<std::size_t>(rows.size()) * element_bytes);
    for (Index i = 0; i < rows.rows() && cols > 0; ++i) {
      encode(dtype, std::span<const Scalar>(&rows.coeffRef(i, 0), cols),
             bytes.data() + static_cast<std::size_t>(i) * cols * element_bytes);
    }
    return bytes;
  }

  [[nodiscard]] Layout lay_out() const {
    using Named = std::pair<const std::string, Tensor>;
    std::vector<const Named*> order;
    order.reserve(tensors_.size());
    for (const Named& named : tensors_) order.push_back(&named);
    std::stable_sort(order.begin(), order.end(),
                     [](const Named* a, const Named* b) { return a->second.dtype > b->second.dtype; });

    check_header_size(text_bytes());
    std::string header = "{";
    if (!metadata_.empty()) append_metadata(header);
    Layout layout;
    std::uint64_t offset = 0;
    for (const Named* named : order) {
      const auto& [name, tensor] = *named;
      if (header.size() > 1) header.push_back(',');
      append_entry(header, name, tensor, offset);
      offset += tensor.bytes;
      layout.order.emplace_back(&name, &tensor);
    }
    header.push_back('}');
    header.append((safetensors_length_bytes - header.size() % safetensors_length_bytes) % safetensors_length_bytes,
                  ' ');
    check_header_size(header.size());
    layout.head.resize(safetensors_length_bytes);
    store_little_endian(std::uint64_t{header.size()}, layout.head.data());
    layout.head.append(header);
    return layout;
  }

  /// The least that names and metadata take in the header: escaping only lengthens them.
  [[nodiscard]] std::size_t text_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& [name, tensor] : tensors_) bytes += name.size();
    for (const auto& [key, value] : metadata_) bytes += key.size() + value.size();
    return bytes;
  }

  static void check_header_size(std::size_t bytes) {
    if (bytes <= safetensors_header_cap) return;
    throw SafetensorsError(SafetensorsErrorKind::header_too_large, "SafetensorsWriter",
                           "a header of at most 100000000 bytes", "at least " + std::to_string(bytes) + " bytes");
  }

  // Objects and lists of nlohmann's json allocate when they are destroyed, and end a process without memory. So only
  // texts go through it.
  static std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

  void append_metadata(std::string& header) const {
    header.append("\"__metadata__\":");
    char before = '{';
    for (const auto& [key, value] : metadata_) {
      header.append(1, before).append(quoted(key)).append(":").append(quoted(value));
      before = ',';
    }
    header.push_back('}');
  }

  static void append_entry(std::string& header, const std::string& name, const Tensor& tensor, std::uint64_t begin) {
    header.append(quoted(name)).append(":{\"dtype\":\"").append(name_of(tensor.dtype)).append("\",\"shape\":[");
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) header.push_back(',');
      header.append(std::to_string(tensor.shape[i]));
    }
    header.append("],\"data_offsets\":[");
    header.append(std::to_string(begin)).append(",").append(std::to_string(begin + tensor.bytes));
    header.append("]}");
  }

  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace lora
