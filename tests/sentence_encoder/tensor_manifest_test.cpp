// SPDX-License-Identifier: MIT
// Tensors of a TensorFlow.js model folder, and everything that can be wrong with one.
#include "sentence_encoder/tensor_manifest.hpp"

#include <cstdint>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "examples/temporary_folder.hpp"

namespace examples::sentence_encoder::tensor_manifest_test {
namespace {

using examples::testing::TemporaryFolder;

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string manifest(const std::string& weights, const std::string& paths = R"(["shard1", "shard2"])") {
  return R"({"modelTopology": {}, "weightsManifest": [{"paths": )" + paths + R"(, "weights": [)" + weights + "]}]}";
}

const std::string two_tensors = R"({"name": "a/kernel", "shape": [1, 1, 2, 3], "dtype": "float32"},
                                   {"name": "heads", "shape": [], "dtype": "int32"})";

// a/kernel holds 1 to 6, in two shards cut within a number; heads is 4.
void write_shards(const TemporaryFolder& folder) {
  const std::string bytes = bytes_of<float>({1, 2, 3, 4, 5, 6}) + bytes_of<std::int32_t>({4});
  folder.write("shard1", bytes.substr(0, 10));
  folder.write("shard2", bytes.substr(10));
}

// What the error of reading the folder says; empty without one.
std::string error_of(const TemporaryFolder& folder, const std::string& model) {
  folder.write("model.json", model);
  try {
    const TensorManifest tensors(folder.path());
  } catch (const lora::FormatError& error) {
    return error.what();
  }
  return "";
}

void expect_error(const TemporaryFolder& folder, const std::string& model, const std::string& words) {
  EXPECT_NE(error_of(folder, model).find(words), std::string::npos) << model << "\n" << error_of(folder, model);
}

TEST(TensorManifest, ReadsTensorsAcrossShards) {
  const TemporaryFolder folder;
  write_shards(folder);
  folder.write("model.json", manifest(two_tensors));
  const TensorManifest tensors(folder.path());
  EXPECT_EQ(tensors.shape("a/kernel"), (std::vector<Index>{1, 1, 2, 3}));
  lora::Matrix<float> expected(2, 3);
  expected << 1, 2, 3, 4, 5, 6;
  EXPECT_EQ(tensors.matrix("a/kernel", 2, 3), expected);
  EXPECT_EQ(tensors.matrix("a/kernel", -1, -1), expected);
  EXPECT_EQ(tensors.integer("heads"), 4);
}

TEST(TensorManifest, RefusesAMissingTensorOrAnotherShapeOrType) {
  const TemporaryFolder folder;
  write_shards(folder);
  folder.write("model.json", manifest(two_tensors));
  const TensorManifest tensors(folder.path());
  EXPECT_THROW(static_cast<void>(tensors.matrix("b", -1, -1)), lora::FormatError);
  EXPECT_THROW(static_cast<void>(tensors.matrix("a/kernel", 3, 2)), lora::FormatError);
  EXPECT_THROW(static_cast<void>(tensors.matrix("a/kernel", -1, 4)), lora::FormatError);
  EXPECT_THROW(static_cast<void>(tensors.matrix("heads", -1, -1)), lora::FormatError);
  EXPECT_THROW(static_cast<void>(tensors.integer("a/kernel")), lora::FormatError);
  try {
    static_cast<void>(tensors.matrix("a/kernel", 3, -1));
    FAIL();
  } catch (const lora::FormatError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("a/kernel: expected float32 of 3 x any, got float32 of shape [1, 1, 2, 3]"), std::string::npos)
        << text;
  }
}

TEST(TensorManifest, RefusesShardsOfAnotherSize) {
  const TemporaryFolder folder;
  write_shards(folder);
  folder.write("shard2", "too short");
  expect_error(folder, manifest(two_tensors), "a/kernel: expected 24 bytes in the shards, got 19");
  write_shards(folder);
  expect_error(folder, manifest(R"({"name": "a", "shape": [6], "dtype": "float32"})"), "expected 24 bytes, got 28");
}

TEST(TensorManifest, RefusesMissingFiles) {
  const TemporaryFolder folder;
  EXPECT_THROW(TensorManifest{folder.path()}, lora::IoError);
  folder.write("model.json", manifest(two_tensors));
  EXPECT_THROW(TensorManifest{folder.path()}, lora::IoError);
}

TEST(TensorManifest, RefusesPathsOutOfTheFolder) {
  const TemporaryFolder folder;
  write_shards(folder);
  for (const char* path : {R"(["../shard1"])", R"(["/etc/hostname"])", R"([".."])", R"(["."])", R"([""])", "[1]"}) {
    expect_error(folder, manifest(two_tensors, path), "names of files in the folder");
  }
}

TEST(TensorManifest, RefusesWhatIsNoManifest) {
  const TemporaryFolder folder;
  write_shards(folder);
  for (const char* model : {"", "[]", "{}", R"({"weightsManifest": 1})", "{\"weightsManifest\": [}", "\xFF"}) {
    expect_error(folder, model, "an array weightsManifest");
  }
  for (const char* group : {"1", "{}", R"({"paths": []})", R"({"paths": [], "weights": 1})"}) {
    expect_error(folder, std::string(R"({"weightsManifest": [)") + group + "]}", "groups of paths and weights");
  }
}

TEST(TensorManifest, RefusesBrokenEntries) {
  const TemporaryFolder folder;
  write_shards(folder);
  const auto expect_entry_error = [&](const std::string& entry, const std::string& words) {
    expect_error(folder, manifest(entry), words);
  };
  for (const char* entry : {"1", "{}", R"({"name": 1, "shape": [], "dtype": "float32"})", R"({"name": "a"})"}) {
    expect_entry_error(entry, "entries of name, dtype and shape");
  }
  expect_entry_error(R"({"name": "a", "shape": [1], "dtype": "bool"})", "float32 or int32, not quantised");
  expect_entry_error(R"({"name": "a", "shape": [1], "dtype": "float32", "quantization": {"dtype": "uint8"}})",
                     "float32 or int32, not quantised");
  expect_entry_error(R"({"name": "a", "shape": 1, "dtype": "float32"})", "an array as shape");
  expect_entry_error(R"({"name": "a", "shape": [-1], "dtype": "float32"})", "extents of at least 0");
  expect_entry_error(R"({"name": "a", "shape": [1.5], "dtype": "float32"})", "extents of at least 0");
  expect_entry_error(R"({"name": "a", "shape": [65536, 65536, 4294967296], "dtype": "float32"})", "at most 4 GiB");
  expect_entry_error(two_tensors + ", " + two_tensors, "bytes in the shards");
  expect_entry_error(
      R"({"name": "a", "shape": [3], "dtype": "float32"}, {"name": "a", "shape": [4], "dtype": "int32"})",
      "one tensor of this name");
}

}  // namespace
}  // namespace examples::sentence_encoder::tensor_manifest_test
