// SPDX-License-Identifier: Apache-2.0
#include "worker/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "absl/strings/str_cat.h"

namespace rempart::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file of this header and so many bytes of data, padded as writers pad it.
std::vector<uint8_t> File(std::string header, size_t data_bytes) {
  while ((8 + header.size()) % 8 != 0) header += ' ';
  const uint64_t length = header.size();
  std::vector<uint8_t> file(8 + header.size() + data_bytes);
  for (int i = 0; i < 8; ++i) file[i] = static_cast<uint8_t>(length >> (8 * i));
  std::memcpy(file.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data_bytes; ++i) file[8 + length + i] = static_cast<uint8_t>(i);
  return file;
}

std::string Refusal(const std::vector<uint8_t>& file) {
  return std::string(ParseSafetensors("m.safetensors", file).status().message());
}
std::string Refusal(const std::string& header, size_t data_bytes) {
  return Refusal(File(header, data_bytes));
}

TEST(Safetensors, GivesViewsOfEveryTensor) {
  const std::vector<uint8_t> file = File(
      R"({"__metadata__": {"format": "pt"},
          "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
          "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})",
      20);
  const auto tensors = ParseSafetensors("m.safetensors", file);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  const TensorView& b = tensors->at("b");
  EXPECT_EQ(b.type, kernels::DType::kBF16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.bytes, 12);
  EXPECT_EQ(b.data, file.data() + file.size() - 12);
  EXPECT_EQ(tensors->at("a").data[0], 0);
}

TEST(Safetensors, SaysWhatPartsOfQuantisedMatricesAre) {
  const auto tensors = ParseSafetensors(
      "m.safetensors", File(R"({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
                                "b": {"dtype": "I32", "shape": [2, 1], "data_offsets": [8, 16]},
                                "c": {"dtype": "F8_E4M3", "shape": [5], "data_offsets": [16, 21]},
                                "d": {"dtype": "I8", "shape": [], "data_offsets": [21, 22]},
                                "e": {"dtype": "BF16", "shape": [1], "data_offsets": [22, 24]}})",
                            24));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ(tensors->at("a").elements, TensorElements::kINT64);
  EXPECT_EQ(tensors->at("b").elements, TensorElements::kINT32);
  EXPECT_EQ(tensors->at("c").elements, TensorElements::kFP8);
  EXPECT_EQ(tensors->at("c").bytes, 5);
  EXPECT_EQ(tensors->at("d").elements, TensorElements::kINT8);
  EXPECT_EQ(tensors->at("d").bytes, 1);
  EXPECT_FALSE(tensors->at("d").is_plain());
  EXPECT_TRUE(tensors->at("e").is_plain());
}

TEST(Safetensors, AnEmptyFileOfNoTensorsIsOne) {
  EXPECT_TRUE(ParseSafetensors("m.safetensors", File("{}", 0)).ok());
}

TEST(Safetensors, RefusesAHeaderThatIsNotThere) {
  EXPECT_THAT(Refusal({1, 2, 3}), HasSubstr("the file is truncated: it has 3 bytes"));
  std::vector<uint8_t> file = File("{}", 0);
  file[0] = 200;
  EXPECT_THAT(Refusal(file), HasSubstr("the header of 200 bytes needs more than"));
  file[7] = 0x40;  // 2^62
  EXPECT_THAT(Refusal(file), HasSubstr("the length of the header is 46116860184273881"));
  EXPECT_THAT(Refusal("[]", 0), HasSubstr("the header is not a JSON object"));
  EXPECT_THAT(Refusal("{\"a\": 1", 0), HasSubstr("the header is not a JSON object"));
  EXPECT_THAT(Refusal("{\"a\": 1}", 0), HasSubstr("entry a is not an object"));
}

struct WrongTensor {
  const char* fields;
  const char* message;
};

class WrongTensors : public ::testing::TestWithParam<WrongTensor> {};

TEST_P(WrongTensors, AreRefusedByName) {
  EXPECT_THAT(Refusal(absl::StrCat("{\"w\": {", GetParam().fields, "}}"), 16),
              ::testing::AllOf(HasSubstr("tensor w"), HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    All, WrongTensors,
    ::testing::Values(
        WrongTensor{R"("shape": [4], "data_offsets": [0, 16])", "dtype is missing"},
        WrongTensor{R"("dtype": "F8_E5M2", "shape": [16], "data_offsets": [0, 16])",
                    "has dtype F8_E5M2; served are F32, F16 and BF16"},
        WrongTensor{R"("dtype": "I32", "shape": [8], "data_offsets": [0, 16])",
                    "[8] of I32 needs 32 bytes, data_offsets give 16"},
        WrongTensor{R"("dtype": "F32", "data_offsets": [0, 16])", "shape is missing"},
        WrongTensor{R"("dtype": "F32", "shape": [-4], "data_offsets": [0, 16])", "shape [-4]"},
        WrongTensor{R"("dtype": "F32", "shape": [0], "data_offsets": [0, 0])", "shape [0]"},
        WrongTensor{R"("dtype": "F32", "shape": [1.5], "data_offsets": [0, 16])", "shape [1.5]"},
        WrongTensor{R"("dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 16])",
                    "too large"},
        WrongTensor{R"("dtype": "F32", "shape": [1,1,1,1,1,1,1,1,4], "data_offsets": [0, 16])",
                    "9 dimensions"},
        WrongTensor{R"("dtype": "F32", "shape": [4])", "data_offsets must be two integers"},
        WrongTensor{R"("dtype": "F32", "shape": [4], "data_offsets": [0])",
                    "data_offsets must be two integers"},
        WrongTensor{R"("dtype": "F32", "shape": [4], "data_offsets": [-16, 0])",
                    "data_offsets must be two integers"},
        WrongTensor{R"("dtype": "F32", "shape": [4], "data_offsets": [16, 0])",
                    "lie outside the 16 bytes"},
        WrongTensor{R"("dtype": "F32", "shape": [8], "data_offsets": [0, 32])",
                    "lie outside the 16 bytes"},
        WrongTensor{R"("dtype": "F32", "shape": [2], "data_offsets": [0, 16])",
                    "[2] of F32 needs 8 bytes, data_offsets give 16"},
        WrongTensor{R"("dtype": "F16", "shape": [7], "data_offsets": [2, 16])",
                    "between the header and tensor w is data that no tensor owns"}));

TEST(Safetensors, RefusesTensorsThatOverlapOrLeaveData) {
  const std::string a = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, )";
  EXPECT_THAT(Refusal(a + R"("b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})", 12),
              HasSubstr("between tensor a and tensor b data overlaps"));
  EXPECT_THAT(Refusal(a + R"("b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}})", 20),
              HasSubstr("after tensor b are 4 bytes that no tensor owns"));
  EXPECT_THAT(Refusal(a + R"("a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}})", 16),
              HasSubstr("tensor a appears twice"));
  EXPECT_THAT(Refusal(R"({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
                          "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}})",
                      6),
              HasSubstr("not aligned for F32"));
}

}  // namespace
}  // namespace rempart::worker
