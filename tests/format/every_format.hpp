// Every number format, for laws that are written once.
#pragma once

#include <gtest/gtest.h>
#include <string>

#include "lora/format/formats.hpp"

namespace lora::testing {

using EveryFormat = ::testing::Types<formats::F16, formats::BF16, formats::Q8_0, formats::Q4_0, formats::Q4_1,
                                     formats::Q5_0, formats::Q5_1, formats::Q2_K, formats::Q3_K, formats::Q4_K,
                                     formats::Q5_K, formats::Q6_K, formats::IQ4_NL, formats::IQ4_XS, formats::MXFP4,
                                     formats::NF4<64>, formats::NF4<128>, formats::FP4<32>, formats::FP4<64>>;

struct NameOfFormat {
  template <class Format>
  [[nodiscard]] static std::string GetName(int /*index*/) {
    return std::string(Format::name) + "_" + std::to_string(Format::block_size);
  }
};

}  // namespace lora::testing
