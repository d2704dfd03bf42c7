// SPDX-License-Identifier: MIT
// Reading and writing again gives PEFT's own files back, and nothing is written that PEFT would not load as it is.
#include "lora/io/peft_directory_writer.hpp"

#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "io/files.hpp"
#include "io/peft_files.hpp"
#include "support/bits.hpp"

namespace lora::peft_directory_writer_test {
namespace {

using testing::same_bits;
using testing::TemporaryFolder;
using Names = std::vector<std::string>;
namespace fs = std::filesystem;

template <class Scalar>
void expect_same(const AdapterWeights<Scalar>& a, const AdapterWeights<Scalar>& b) {
  ASSERT_EQ(a.modules.size(), b.modules.size());
  for (const auto& [name, module] : a.modules) {
    SCOPED_TRACE(name);
    const ModuleWeights<Scalar>& other = b.modules.at(name);
    EXPECT_EQ(module.kind, other.kind);
    EXPECT_TRUE(same_bits(module.A, other.A));
    EXPECT_TRUE(same_bits(module.B, other.B));
    EXPECT_TRUE(same_bits(module.lora_bias, other.lora_bias));
    EXPECT_TRUE(same_bits(module.magnitude, other.magnitude));
    EXPECT_EQ(module.kernel_size, other.kernel_size);
    EXPECT_EQ(module.scaling, other.scaling);
  }
  ASSERT_EQ(a.saved.size(), b.saved.size());
  for (const auto& [name, saved] : a.saved) {
    EXPECT_EQ(saved.shape, b.saved.at(name).shape);
    EXPECT_EQ(saved.values, b.saved.at(name).values);
  }
}

void expect_comes_back(const fs::path& original) {
  const TemporaryFolder folder;
  const auto first = read_peft_directory<float>(original);
  write_peft_directory(folder / "again", first);
  const auto second = read_peft_directory<float>(folder / "again");
  EXPECT_EQ(second.warnings, Names());
  expect_same(first.weights, second.weights);
  EXPECT_EQ(peft_config_text(first.config), peft_config_text(second.config));
  const char* const tensors = "adapter_model.safetensors";
  EXPECT_EQ(testing::raw_header(folder / "again" / tensors), testing::raw_header(original / tensors));
  EXPECT_EQ(testing::read_file(folder / "again" / tensors), testing::read_file(original / tensors));
}

TEST(PeftDirectoryWriter, GoldenAdaptersComeBackByteForByte) {
  for (const char* name : testing::golden_adapters) {
    SCOPED_TRACE(name);
    expect_comes_back(testing::golden_adapter(name));
  }
}

TEST(PeftDirectoryWriter, PublishedAdaptersComeBackByteForByte) {
  const fs::path folder = LORA_REAL_DIR;
  if (!fs::exists(folder)) GTEST_SKIP() << folder << " is not here";
  for (const char* name : {"unet_skin_lesion", "sift_opf_zh"}) {
    SCOPED_TRACE(name);
    expect_comes_back(folder / name);
  }
}

template <class Scalar>
PeftAdapter<Scalar> every_kind() {
  PeftAdapter<Scalar> adapter;
  adapter.config.lora = {.rank = 2, .alpha = 3, .use_rslora = true};
  adapter.config.lora.use_dora = true;
  adapter.config.lora.bias = BiasMode::lora_only;
  adapter.config.target_modules = {"fc", "wte", "c1", "c2", "c3"};
  adapter.config.rank_pattern = {{"c1", 4}};
  adapter.config.modules_to_save = {"head"};
  const auto add = [&](const char* name, ModuleKind kind, Index in, Index out, std::vector<Index> kernel) {
    ModuleWeights<Scalar>& module = adapter.weights.modules[name];
    module.kind = kind;
    const LoraConfig lora = config_for(adapter.config, name);
    for (const Index extent : kernel) in *= extent;
    module.A.resize(lora.rank, in);
    module.B.resize(out, lora.rank);
    module.magnitude.resize(out);
    Index n = 0;
    for (Scalar& value : module.A.reshaped()) value = static_cast<Scalar>(++n) / 8;
    for (Scalar& value : module.B.reshaped()) value = -static_cast<Scalar>(++n) / 8;
    for (Scalar& value : module.magnitude) value = static_cast<Scalar>(++n);
    module.kernel_size = std::move(kernel);
    module.scaling = lora.scaling();
  };
  add("h.fc", ModuleKind::linear, 7, 5, {});
  add("h.wte", ModuleKind::embedding, 9, 5, {});
  add("h.c1", ModuleKind::conv1d, 3, 5, {4});
  add("h.c2", ModuleKind::conv2d, 3, 5, {4, 2});
  add("h.c3", ModuleKind::conv3d, 3, 5, {4, 2, 3});
  adapter.weights.saved["h.fc.bias"] = {{5}, {1, 2, 3, 4, 5}};
  adapter.weights.saved["head.weight"] = {{2, 1, 2}, {1, 2, 3, 4}};
  return adapter;
}

template <class Scalar>
class PeftDirectoryWriterOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(PeftDirectoryWriterOf, Scalars);

TYPED_TEST(PeftDirectoryWriterOf, EveryKindOfModuleComesBackInEveryDtype) {
  const auto adapter = every_kind<TypeParam>();
  const TemporaryFolder folder;
  for (const Dtype dtype : {Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16}) {
    // All values are small multiples of 1/8, which every dtype holds.
    SCOPED_TRACE(name_of(dtype));
    write_peft_directory(folder.path(), adapter, {.dtype = dtype, .overwrite = true});
    const auto read = read_peft_directory<TypeParam>(folder.path());
    EXPECT_EQ(read.warnings, Names());
    expect_same(adapter.weights, read.weights);
    const auto header = testing::raw_header(folder / "adapter_model.safetensors");
    for (const auto& [name, tensor] : header.items()) EXPECT_EQ(tensor.at("dtype"), name_of(dtype)) << name;
    EXPECT_EQ(header.at("base_model.model.h.c2.lora_A.weight").at("shape"), nlohmann::json({2, 3, 4, 2}));
    EXPECT_EQ(header.at("base_model.model.h.c2.lora_B.weight").at("shape"), nlohmann::json({5, 2, 1, 1}));
    EXPECT_EQ(header.at("base_model.model.h.c2.lora_magnitude_vector").at("shape"), nlohmann::json({1, 5, 1, 1}));
    EXPECT_TRUE(header.contains("base_model.model.h.fc.base_layer.bias"));
    EXPECT_TRUE(header.contains("base_model.model.head.weight"));
  }
}

TYPED_TEST(PeftDirectoryWriterOf, TheDtypeIsTheScalarsUnlessAskedOtherwise) {
  const TemporaryFolder folder;
  write_peft_directory(folder.path(), every_kind<TypeParam>());
  const auto header = testing::raw_header(folder / "adapter_model.safetensors");
  EXPECT_EQ(header.begin().value().at("dtype"), name_of(dtype_of<TypeParam>));
}

TEST(PeftDirectoryWriter, LoraBiasesComeBack) {
  PeftAdapter<float> adapter;
  adapter.config.lora = {.rank = 1, .alpha = 1, .lora_bias = true};
  adapter.config.target_modules = {"q"};
  adapter.weights.modules["q"].A = Matrix<float>{{1, 2}};
  adapter.weights.modules["q"].B = Matrix<float>{{3}, {4}};
  adapter.weights.modules["q"].lora_bias = RowVector<float>{{5, 6}};
  const TemporaryFolder folder;
  write_peft_directory(folder.path(), adapter);
  expect_same(adapter.weights, read_peft_directory<float>(folder.path()).weights);
}

/// Rank 4 in two groups of 3 input and 2 output channels, with a kernel of 2.
PeftAdapter<float> grouped() {
  PeftAdapter<float> adapter;
  adapter.config.lora = {.rank = 4, .alpha = 4};
  adapter.config.target_modules = {"c"};
  ModuleWeights<float>& module = adapter.weights.modules["c"];
  module.kind = ModuleKind::conv1d;
  module.kernel_size = {2};
  module.A = Matrix<float>(4, 6);
  module.B = Matrix<float>(4, 2);
  for (Index i = 0; i < 24; ++i) module.A(i / 6, i % 6) = static_cast<float>(i + 1);
  for (Index i = 0; i < 8; ++i) module.B(i / 2, i % 2) = static_cast<float>(-i - 1);
  return adapter;
}

// In PEFT the A of a convolution with groups is a convolution over all channels.
TEST(PeftDirectoryWriter, AConvolutionWithGroupsIsPeftsWithZerosForOtherGroups) {
  const TemporaryFolder folder;
  const auto adapter = grouped();
  write_peft_directory(folder.path(), adapter);
  const SafetensorsFile file = SafetensorsFile::open(folder / "adapter_model.safetensors");
  const TensorView A = file.tensor("base_model.model.c.lora_A.weight");
  EXPECT_EQ(A.shape, (std::vector<Index>{4, 6, 2}));
  EXPECT_EQ(file.tensor("base_model.model.c.lora_B.weight").shape, (std::vector<Index>{4, 2, 1}));
  std::vector<float> values(48);
  A.copy_to(std::span<float>(values));
  for (Index row = 0; row < 4; ++row) {
    for (Index channel = 0; channel < 6; ++channel) {
      for (Index k = 0; k < 2; ++k) {
        const bool own = row / 2 == channel / 3;
        const float expected = own ? adapter.weights.modules.at("c").A(row, channel % 3 * 2 + k) : 0.0F;
        EXPECT_EQ(values[static_cast<std::size_t>((row * 6 + channel) * 2 + k)], expected);
      }
    }
  }
  expect_same(adapter.weights, read_peft_directory<float>(folder.path()).weights);
}

TEST(PeftDirectoryWriter, AConvolutionThatSeesOtherGroupsIsRefused) {
  const TemporaryFolder folder;
  write_peft_directory(folder.path(), grouped());
  std::string bytes = testing::text_of(folder / "adapter_model.safetensors");
  const std::string number("\0\0\x80\x3F", 4);  // 1, the first value of A; moved to another group's channel
  const std::size_t first = bytes.find(number);
  ASSERT_NE(first, std::string::npos);
  bytes.replace(first + 6 * sizeof(float), sizeof(float), number);
  testing::write_file(folder / "adapter_model.safetensors", bytes);
  try {
    static_cast<void>(read_peft_directory<float>(folder.path()));
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("\"base_model.model.c.lora_A.weight\": expected zeros for the channels"),
              std::string::npos)
        << error.what();
  }
}

TEST(PeftDirectoryWriter, NamedAdaptersGoToTheirFolders) {
  const TemporaryFolder folder;
  const auto adapter = every_kind<float>();
  write_peft_directory(folder / "new/deep", adapter, {.adapter = "red"});
  write_peft_directory(folder / "new/deep", adapter);
  EXPECT_EQ(list_peft_adapters(folder / "new/deep"), (Names{"default", "red"}));
  expect_same(read_peft_directory<float>(folder / "new/deep", {.adapter = "red"}).weights, adapter.weights);
  EXPECT_THROW(write_peft_directory(folder.path(), adapter, {.adapter = "../x"}), ConfigError);
}

TEST(PeftDirectoryWriter, NeverOverwritesUnlessAsked) {
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    const TemporaryFolder folder;
    testing::write_file(folder / name, "mine");
    EXPECT_THROW(write_peft_directory(folder.path(), every_kind<float>()), IoError);
    EXPECT_EQ(testing::text_of(folder / name), "mine");
    EXPECT_EQ(folder.entries().size(), 1U);
    write_peft_directory(folder.path(), every_kind<float>(), {.overwrite = true});
    EXPECT_EQ(read_peft_directory<float>(folder.path()).weights.modules.size(), 5U);
  }
}

TEST(PeftDirectoryWriter, WhenTheTensorsCannotBeWrittenTheConfigurationIsNot) {
  const TemporaryFolder folder;
  testing::write_file(folder / "adapter_config.json", "old");
  fs::create_directory(folder / "adapter_model.safetensors");  // no file can take its place
  EXPECT_THROW(write_peft_directory(folder.path(), every_kind<float>(), {.overwrite = true}), IoError);
  EXPECT_EQ(testing::text_of(folder / "adapter_config.json"), "old");
  EXPECT_EQ(folder.entries().size(), 2U);
}

template <class ErrorType>
std::string refusal(const std::function<void(PeftAdapter<double>&)>& change, const PeftWriteOptions& options = {}) {
  const TemporaryFolder folder;
  auto adapter = every_kind<double>();
  change(adapter);
  try {
    write_peft_directory(folder / "x", adapter, options);
  } catch (const ErrorType& error) {
    EXPECT_FALSE(fs::exists(folder / "x")) << "nothing is touched";
    return error.what();
  }
  return "no such error";
}

TEST(PeftDirectoryWriter, WhatPeftWouldLoadOtherwiseIsToldAllAtOnce) {
  EXPECT_EQ(
      refusal<ConfigError>([](auto& adapter) {
        adapter.config.target_modules = {"wte", "c1", "c2", "c3"};
        adapter.config.rank_pattern = {{"c1", 4}, {"wte", 3}};
        adapter.weights.modules.at("h.c2").scaling = 7;
        adapter.weights.saved["norm.weight"] = {{1}, {1}};
      }),
      "write_peft_directory: adapter: expected the weights that its configuration describes, got 6 problems:\n"
      "  \"base_model.model.h.wte.lora_embedding_A\" [2, 9] expected [3, n] at rank 3, got [2, 9]\n"
      "  \"base_model.model.h.wte.lora_embedding_B\" [5, 2] expected [n, 3] at rank 3, got [5, 2]\n"
      "  \"base_model.model.norm.weight\" [1] belongs to no module to save and is no bias that trains with bias = "
      "lora_only\n"
      "  module \"h.fc\" is not among target_modules\n"
      "  module \"h.c2\" has scaling 7, alpha and rank of the configuration give 2.12132034\n"
      "  module \"h.wte\" has scaling 2.12132034, alpha and rank of the configuration give 1.73205081");
}

// PEFT's own parts of a name, those that a reader takes out, are no part of a model's name. Found by fuzzing.
TEST(PeftDirectoryWriter, ANameThatWouldComeBackAsAnotherIsRefused) {
  for (const std::string name :
       {"head.modules_to_save.bias", "head.original_module.weight", "head.base_layer.weight"}) {
    SCOPED_TRACE(name);
    const std::string told = refusal<ConfigError>([&](auto& adapter) { adapter.weights.saved[name] = {{1}, {1}}; });
    EXPECT_NE(told.find("saved \"" + name + "\" has a name PEFT reads otherwise"), std::string::npos) << told;
  }
}

// A reader computes the scaling from alpha and rank. What differs by more than the rounding of that is another adapter.
TEST(PeftDirectoryWriter, AScalingIsThatOfTheConfigurationUpToRounding) {
  constexpr double epsilon = std::numeric_limits<double>::epsilon();
  const auto off_by = [](double share) {
    return refusal<ConfigError>([&](auto& adapter) { adapter.weights.modules.at("h.c2").scaling *= 1 + share; });
  };
  for (const double share : {1e-3, -1e-3, 1e-6, -1e-6, 1e-12, 16 * epsilon, -16 * epsilon}) {
    EXPECT_NE(off_by(share).find("module \"h.c2\" has scaling"), std::string::npos) << share;
  }
  for (const double share : {0.0, 2 * epsilon, -2 * epsilon}) EXPECT_EQ(off_by(share), "no such error") << share;
}

TEST(PeftDirectoryWriter, StatesThatContradictThemselvesAreRefused) {
  const auto kernel = [](std::vector<Index> extents) {
    return refusal<ShapeError>([&](auto& adapter) { adapter.weights.modules.at("h.c2").kernel_size = extents; });
  };
  EXPECT_NE(kernel({4}).find("expected 2 extents of the kernel, got [4]"), std::string::npos) << kernel({4});
  EXPECT_NE(kernel({5, 5}).find("divide A's 24 columns, got [5, 5]"), std::string::npos) << kernel({5, 5});
  EXPECT_NE(kernel({0, 1}).find("divide"), std::string::npos);
  EXPECT_NE(refusal<ShapeError>([](auto& adapter) {
              adapter.weights.saved.at("head.weight").values.pop_back();
            }).find("saved tensor \"head.weight\": expected values of shape [2, 1, 2], got 3 values"),
            std::string::npos);
  EXPECT_NE(refusal<ConfigError>([](auto& adapter) { adapter.weights.modules.at("h.fc").magnitude.resize(4); }),
            "no such error");
  EXPECT_NE(refusal<ConfigError>([](auto& adapter) { adapter.weights.modules.at("h.fc").magnitude.resize(0); }),
            "no such error");
  EXPECT_NE(refusal<ConfigError>([](auto& adapter) { adapter.weights.modules.clear(); }).find("no module"),
            std::string::npos);
  EXPECT_NE(refusal<ConfigError>([](auto& adapter) { adapter.config.lora.rank = 0; }), "no such error");
}

TEST(PeftDirectoryWriter, NoFiniteValueBecomesInfinite) {
  const auto with_value = [](double value, Dtype dtype) {
    return refusal<ConfigError>([&](auto& adapter) { adapter.weights.modules.at("h.fc").A(1, 2) = value; },
                                {.dtype = dtype});
  };
  EXPECT_NE(with_value(65520, Dtype::F16).find("finite in F16, got 65520"), std::string::npos);
  EXPECT_EQ(with_value(65519.99, Dtype::F16), "no such error");
  EXPECT_NE(with_value(-3.5e38, Dtype::F32), "no such error");
  EXPECT_EQ(with_value(3.4e38, Dtype::F32), "no such error");
  EXPECT_NE(with_value(3.4e38, Dtype::BF16), "no such error");
  EXPECT_EQ(with_value(1e300, Dtype::F64), "no such error");
  EXPECT_EQ(with_value(std::numeric_limits<double>::infinity(), Dtype::F16), "no such error") << "as it is";
}

TEST(PeftDirectoryWriter, OtherDtypesAreRefused) {
  EXPECT_NE(refusal<ConfigError>([](auto&) {}, {.dtype = Dtype::I8}).find("dtype"), std::string::npos);
}

}  // namespace
}  // namespace lora::peft_directory_writer_test
