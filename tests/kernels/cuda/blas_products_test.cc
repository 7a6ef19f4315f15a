// SPDX-License-Identifier: Apache-2.0
// Products by cuBLASLt, over a library made for it: which it is given, and that what it is given
// lies as its documentation says.
#include "kernels/cuda/blas_products.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/numbers.h"
#include "tests/kernels/cuda/blas_fixture.h"

namespace rempart::kernels::cuda {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

TEST(BlasTokens, AreFewCountsThatRoundUp) {
  const struct {
    int64_t tokens, y_rows, expected;
  } rows[] = {{9, 2048, 16},      {16, 2048, 16},     {17, 2048, 32},   {33, 2048, 64},
              {65, 2048, 128},    {128, 2048, 128},   {129, 2048, 256}, {1000, 2048, 1024},
              {2047, 2048, 2048}, {1999, 2000, 2000}, {9, 12, 12},      {33, 36, 36}};
  for (const auto& row : rows) {
    EXPECT_EQ(BlasTokens(row.tokens, row.y_rows), row.expected) << row.tokens;
  }
  EXPECT_THAT(BlasTokenCounts(400, 1024), ElementsAre(16, 32, 64, 128, 256, 384, 400));
  EXPECT_THAT(BlasTokenCounts(400, 256), ElementsAre(16, 32, 64, 128, 144, 256));
  EXPECT_THAT(BlasTokenCounts(512, 256), ElementsAre(16, 32, 64, 128, 256));
  EXPECT_THAT(BlasTokenCounts(12, 128), ElementsAre(12));
}

// Cut into parts as products are.
TEST(BlasTokens, AreAmongTheCountsThatTheLibraryIsAskedFor) {
  for (const int64_t most : {128, 256, 1024}) {
    for (const int64_t y_rows : {4, 12, 36, 128, 132, 252, 384, 520, 1000}) {
      const std::vector<int64_t> counts = BlasTokenCounts(y_rows, most);
      EXPECT_THAT(counts, Each(testing::ResultOf([](int64_t n) { return n % kProductRows; }, 0)));
      for (int64_t tokens = 1; tokens <= y_rows; ++tokens) {
        for (int64_t first = 0; first < tokens; first += most) {
          const int64_t count = BlasTokens(std::min(most, tokens - first), y_rows - first);
          EXPECT_THAT(counts, Contains(count)) << tokens << " of " << y_rows << " by " << most;
          EXPECT_LE(first + count, y_rows);
        }
      }
    }
  }
}

struct Shape {
  DeviceFormat format;
  int64_t tokens, rows, cols;
  bool y_is_f32 = false;
  int64_t y_rows = 0;  // 0: as many as are needed
};

// Memory that begins at a multiple of 256 bytes.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(
            256, static_cast<size_t>(CeilDivide(count * sizeof(T), 256) * 256)))),
        count_(count) {}
  ~Aligned() { std::free(data_); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return count_; }

 private:
  T* const data_;
  const int64_t count_;
};

constexpr int64_t kGap = 8;         // elements between rows of y
constexpr int64_t kRowsBehind = 3;  // of y, that nobody may touch
constexpr uint8_t kUntouched = 0xa5;

// A product of random numbers, and where it goes.
struct Problem {
  explicit Problem(const Shape& shape)
      : x(shape.tokens * shape.cols),
        codes(shape.rows * shape.cols * (shape.format == DeviceFormat::kBF16 ? 2 : 1)),
        scales(std::max(shape.rows, CeilDivide(shape.rows, 128) * BlockScaleStride(shape.cols))),
        w(shape.rows * shape.cols),
        y((RowsOf(shape) + kRowsBehind) * (shape.rows + kGap) * (shape.y_is_f32 ? 4 : 2)) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < x.size(); ++i) {
      // Groups of very different sizes.
      x[i] = cuda::ToBf16(std::ldexp(normal(random), static_cast<int>(i / 128 % 7))).bits;
    }
    for (int64_t i = 0; i < scales.size(); ++i) scales[i] = std::fabs(normal(random)) + 0.1f;
    for (int64_t i = 0; i < w.size(); ++i) w[i] = MakeWeight(shape, i, random);
    std::memset(y.data(), kUntouched, static_cast<size_t>(y.size()));
    args.w.data = codes.data();
    args.w.format = shape.format;
    args.w.rows = shape.rows;
    args.w.cols = shape.cols;
    args.w.scales = scales.data();
    args.w.int8_activations = true;
    args.x = x.data();
    args.x_stride = shape.cols;
    args.y = y.data();
    args.y_stride = shape.rows + kGap;
    args.y_is_f32 = shape.y_is_f32;
    args.num_tokens = shape.tokens;
    args.y_rows = RowsOf(shape);
  }
  static int64_t RowsOf(const Shape& shape) {
    return shape.y_rows > 0 ? shape.y_rows : CeilDivide(shape.tokens, 4) * 4;
  }

  float MakeWeight(const Shape& shape, int64_t i, std::mt19937& random) {
    const int64_t r = i / shape.cols, c = i % shape.cols;
    if (shape.format == DeviceFormat::kBF16) {
      const Bf16 bits = cuda::ToBf16(static_cast<float>(random() % 1000) / 500 - 1);
      std::memcpy(codes.data() + 2 * i, &bits, 2);
      return ToFloat(bits);
    }
    codes[i] = static_cast<uint8_t>(random());
    if (shape.format == DeviceFormat::kINT8Row) {
      return scales[r] * static_cast<float>(static_cast<int8_t>(codes[i]));
    }
    if ((codes[i] & 0x7f) == 0x7f) codes[i] = 0;
    const float code = ToFloat(Fp8{codes[i]});
    if (shape.format == DeviceFormat::kFP8Row) return scales[r] * code;
    // Rows of scales are a multiple of four long.
    return scales[r / 128 * (CeilDivide(shape.cols, 512) * 4) + c / 128] * code;
  }

  // Of element i of x, as it is quantised.
  float Activation(const Shape& shape, int64_t i) {
    const auto at = [&](int64_t j) { return ToFloat(Bf16{x[j]}); };
    if (shape.format == DeviceFormat::kBF16) return at(i);
    const int64_t row = i / shape.cols * shape.cols;
    const int64_t group = shape.format == DeviceFormat::kFP8Block ? 128 : shape.cols;
    const int64_t first = row + (i - row) / group * group;
    float largest = 0;
    for (int64_t j = first; j < std::min(first + group, row + shape.cols); ++j) {
      largest = std::max(largest, std::fabs(at(j)));
    }
    const bool is_int8 = shape.format == DeviceFormat::kINT8Row;
    const float most = is_int8 ? 127 : 448;
    const float scaled = at(i) * (most / largest);
    return (is_int8 ? std::nearbyint(scaled) : ToFloat(ToFp8(scaled))) * (largest / most);
  }

  float Y(int64_t token, int64_t row) {
    const int64_t at = token * args.y_stride + row;
    if (args.y_is_f32) return reinterpret_cast<float*>(y.data())[at];
    return ToFloat(Bf16{reinterpret_cast<uint16_t*>(y.data())[at]});
  }

  Aligned<uint16_t> x;
  Aligned<uint8_t> codes;
  Aligned<float> scales;
  Aligned<float> w;
  Aligned<uint8_t> y;
  DeviceMatmulArgs args;
};

void ExpectProduct(const Shape& shape, Problem& problem) {
  std::vector<float> x(shape.tokens * shape.cols);
  for (size_t i = 0; i < x.size(); ++i) x[i] = problem.Activation(shape, static_cast<int64_t>(i));
  double worst = 0;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t r = 0; r < shape.rows; ++r) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < shape.cols; ++c) {
        const double product =
            static_cast<double>(x[t * shape.cols + c]) * problem.w[r * shape.cols + c];
        sum += product;
        size += std::fabs(product);
      }
      const double limit = 1e-5 * size + (shape.y_is_f32 ? 1e-5 : 0.004) * std::fabs(sum);
      const double error = std::fabs(problem.Y(t, r) - sum) / limit;
      worst = std::isnan(error) ? 1e9 : std::max(worst, error);
    }
  }
  EXPECT_LE(worst, 1) << "of what is allowed";
}

// What is not of the product stays as it was: between rows, and behind the rows that y has.
void ExpectTheRestUntouched(const Shape& shape, Problem& problem) {
  const int64_t bytes = shape.y_is_f32 ? 4 : 2;
  const int64_t stride = problem.args.y_stride * bytes;
  for (int64_t at = 0; at < problem.y.size(); ++at) {
    const bool is_between = at % stride >= shape.rows * bytes;
    if (at / stride < problem.args.y_rows && !is_between) continue;
    ASSERT_EQ(problem.y[at], kUntouched) << "row " << at / stride << " byte " << at % stride;
  }
}

class BlasProductsTest : public testing::Test {
 protected:
  BlasProductsTest() : fake_(FakeControls()) {
    fake_.version = 130002;
    fake_.capability = 90;
    fake_.refused_columns = -1;
    fake_.matmul_result = 0;
    fake_.complaint.clear();
    fake_.block_columns.clear();
    fake_.row_columns.clear();
    fake_.int8_columns.clear();
  }
  ~BlasProductsTest() override {
    EXPECT_EQ(fake_.complaint, "");
    EXPECT_EQ(fake_.alive, 0) << "something was not given back";
  }

  bool Multiply(BlasProducts& products, Problem& problem) {
    room_.Forget();
    return products.Multiply(problem.args, nullptr);
  }

  // Counts of tokens that products of this format had.
  const std::set<int64_t>& Columns(DeviceFormat format) const {
    if (format == DeviceFormat::kINT8Row) return fake_.int8_columns;
    return format == DeviceFormat::kFP8Row ? fake_.row_columns : fake_.block_columns;
  }

  FakeCublasLtControls& fake_;
  BlasRoom room_;
};

// Those whose activations are quantised for the library.
constexpr DeviceFormat kQuantized[] = {DeviceFormat::kFP8Row, DeviceFormat::kINT8Row,
                                       DeviceFormat::kFP8Block};
std::string Name(DeviceFormat format) {
  if (format == DeviceFormat::kINT8Row) return "INT8";
  return format == DeviceFormat::kFP8Row ? "FP8 by rows" : "FP8 by blocks";
}

TEST_F(BlasProductsTest, EachProductThatTheLibraryIsNotGivenIsSaidOnce) {
  std::vector<std::string> said;
  const auto products =
      room_.Products(9, 0, [&](const std::string& product) { said.push_back(product); });
  Problem of_rows({DeviceFormat::kFP8Row, 16, 320, 640}),
      of_bf16({DeviceFormat::kBF16, 16, 64, 640});
  fake_.refused_columns = 16;
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(Multiply(*products, of_rows));
    EXPECT_FALSE(Multiply(*products, of_bf16));
  }
  EXPECT_THAT(said, ElementsAre("FP8 by rows, 320 x 640", "BF16, 64 x 640"));
  Problem given({DeviceFormat::kBF16, 17, 128, 640});
  EXPECT_TRUE(Multiply(*products, given));
  EXPECT_EQ(said.size(), 2u);
}

TEST_F(BlasProductsTest, MultiplyEveryFormat) {
  const auto products = room_.Products();
  for (const DeviceFormat format : {DeviceFormat::kBF16, DeviceFormat::kFP8Row,
                                    DeviceFormat::kINT8Row, DeviceFormat::kFP8Block}) {
    for (const int64_t tokens : {9, 11, 16, 130}) {
      for (const bool y_is_f32 : {false, true}) {
        // Five blocks of columns, two and a half of rows.
        const Shape shape = {format, tokens, 320, 640, y_is_f32};
        SCOPED_TRACE(testing::Message() << static_cast<int>(format) << " " << tokens << " tokens");
        Problem problem(shape);
        ASSERT_TRUE(Multiply(*products, problem));
        ExpectProduct(shape, problem);
        ExpectTheRestUntouched(shape, problem);
      }
    }
  }
  for (const DeviceFormat format : kQuantized) {
    EXPECT_THAT(Columns(format), ElementsAre(12, 16, 132)) << Name(format);
  }
}

TEST_F(BlasProductsTest, TokensThatAreAddedAreZeros) {
  const auto products = room_.Products();
  for (const DeviceFormat format : kQuantized) {
    SCOPED_TRACE(Name(format));
    const Shape shape = {format, 17, 64, 256, true, 64};
    Problem problem(shape);
    ASSERT_TRUE(Multiply(*products, problem));
    ExpectProduct(shape, problem);
    ExpectTheRestUntouched(shape, problem);
    // Sums of INT8 are the library's, y is not.
    if (format == DeviceFormat::kINT8Row) problem.args.y_rows = 17;
    ExpectTheRestUntouched(shape, problem);
    for (int64_t t = 17; t < 32 && format != DeviceFormat::kINT8Row; ++t) {
      EXPECT_EQ(problem.Y(t, 5), 0.0f) << t;
    }
    EXPECT_THAT(Columns(format), ElementsAre(32));
  }
}

TEST_F(BlasProductsTest, ATokenGetsTheSameInAnyCompany) {
  const auto products = room_.Products();
  for (const DeviceFormat format : kQuantized) {
    const Shape many = {format, 133, 64, 256, false, 256};
    Problem all(many);
    ASSERT_TRUE(Multiply(*products, all));
    for (const int64_t tokens : {9, 10, 33, 70}) {
      const Shape few = {format, tokens, 64, 256, false, 256};
      Problem some(few);
      std::copy_n(all.x.data(), some.x.size(), some.x.data());
      std::copy_n(all.codes.data(), all.codes.size(), some.codes.data());
      std::copy_n(all.scales.data(), all.scales.size(), some.scales.data());
      ASSERT_TRUE(Multiply(*products, some));
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; r < 64; ++r) {
          ASSERT_EQ(some.Y(t, r), all.Y(t, r)) << Name(format) << " " << t << " " << r;
        }
      }
    }
  }
}

TEST_F(BlasProductsTest, ManyTokensAreMultipliedInParts) {
  for (const DeviceFormat format : kQuantized) {
    BlasRoom small(140 * 1024);
    const auto products = small.Products();
    for (const int64_t tokens : {256, 301}) {
      const Shape shape = {format, tokens, 64, 512, false, CeilDivide(tokens, 4) * 4};
      SCOPED_TRACE(testing::Message() << static_cast<int>(format) << " " << tokens << " tokens");
      Problem problem(shape);
      ASSERT_TRUE(products->Multiply(problem.args, nullptr));
      ExpectProduct(shape, problem);
      ExpectTheRestUntouched(shape, problem);
    }
  }
  for (const DeviceFormat format : {DeviceFormat::kFP8Row, DeviceFormat::kFP8Block}) {
    EXPECT_THAT(Columns(format), ElementsAre(48, 256)) << "a last part of 45 in 48 rows";
  }
  EXPECT_THAT(fake_.int8_columns, ElementsAre(48, 128)) << "sums take room, too";
}

TEST_F(BlasProductsTest, BlocksThatTheLibraryCannotDoAreNotForIt) {
  const auto products = room_.Products();
  const auto is_taken = [&](const std::function<void(Problem&)>& change, bool y_is_f32 = false) {
    Problem problem({DeviceFormat::kFP8Block, 12, 128, 256, y_is_f32});
    change(problem);
    const int before = fake_.block_products;
    const bool taken = Multiply(*products, problem);
    EXPECT_EQ(fake_.block_products - before, taken ? 1 : 0);
    EXPECT_EQ(room_.IsForgotten(), !taken);
    return taken;
  };
  EXPECT_TRUE(is_taken([](Problem&) {}));
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.y_rows = 0; })) << "no room for more tokens";
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.y_rows = 13; }));
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.w.cols = p.args.x_stride = 192; }));
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.x_stride = 264; }));
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.w.rows = 124; })) << "BF16 in 16 bytes";
  EXPECT_TRUE(is_taken([](Problem& p) { p.args.w.rows = 124; }, true)) << "F32";
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.y_stride = 131; }));
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.y = p.y.data() + 8; }));
  EXPECT_FALSE(is_taken([](Problem& p) { p.args.w.scales += 1; }));
  EXPECT_FALSE(is_taken([](Problem& p) {
    p.args.w.data = p.codes.data() + 8;
    p.args.w.rows = 120;
  }));
}

// Else the same token would be quantised in one company and not in another.
TEST_F(BlasProductsTest, AMatrixWithACountThatTheLibraryRefusesIsNeverForIt) {
  fake_.refused_columns = 64;
  for (const DeviceFormat format : kQuantized) {
    SCOPED_TRACE(Name(format));
    const auto products = room_.Products();
    for (const int64_t tokens : {9, 64, 100}) {
      Problem problem({format, tokens, 128, 256, false, 128});
      EXPECT_FALSE(products->Takes(problem.args)) << tokens;
      EXPECT_FALSE(Multiply(*products, problem)) << tokens;
      EXPECT_TRUE(room_.IsForgotten()) << "nothing is quantised in vain";
      Problem smaller({format, 9, 128, 256, false, 32});
      EXPECT_TRUE(products->Takes(smaller.args)) << "of which there are never 64";
      EXPECT_TRUE(Multiply(*products, smaller));
    }
  }
}

TEST_F(BlasProductsTest, YHasToHaveRoomForTokensThatAreAdded) {
  const auto products = room_.Products();
  for (const DeviceFormat format : kQuantized) {
    Problem problem({format, 12, 128, 256});
    problem.args.y_rows = 0;
    EXPECT_FALSE(Multiply(*products, problem)) << Name(format);
  }
}

TEST_F(BlasProductsTest, TheLibraryIsAskedOnceForAShape) {
  for (const DeviceFormat format : kQuantized) {
    SCOPED_TRACE(Name(format));
    const auto products = room_.Products();
    Problem problem({format, 40, 128, 256, false, 128});
    ASSERT_TRUE(Multiply(*products, problem));
    const int before = fake_.heuristics;
    for (problem.args.num_tokens = 9; problem.args.num_tokens <= 40; ++problem.args.num_tokens) {
      ASSERT_TRUE(Multiply(*products, problem));
    }
    EXPECT_EQ(fake_.heuristics, before);
  }
}

TEST_F(BlasProductsTest, WhetherFp8IsForTheLibraryIsSaid) {
  std::vector<std::string> refused;
  const auto describe = [&](int64_t version, int major, int minor) {
    fake_.version = version;
    fake_.capability = 10 * major + minor;
    const auto products = room_.Products(
        major, minor, [&](const std::string& product) { refused.push_back(product); });
    for (const DeviceFormat format : {DeviceFormat::kFP8Block, DeviceFormat::kFP8Row}) {
      Problem problem({format, 12, 128, 256});
      const bool taken = Multiply(*products, problem);
      EXPECT_EQ(taken, products->Has(format)) << major << "." << minor << ", " << version;
      EXPECT_EQ(taken, products->Describe().find("too") != std::string::npos);
    }
    return products->Describe();
  };
  EXPECT_EQ(describe(130002, 9, 0), "cuBLASLt 13.0.2, FP8 too");
  EXPECT_EQ(describe(120900, 9, 0), "cuBLASLt 12.9.0, FP8 too");
  EXPECT_THAT(describe(120804, 9, 0),
              HasSubstr("12.8.4, FP8 without it: it has scales by rows and"));
  EXPECT_THAT(describe(130002, 10, 0), HasSubstr("for compute capability 9.0 alone"));
  EXPECT_THAT(describe(130002, 8, 9), HasSubstr("for compute capability 9.0 alone"));
  EXPECT_THAT(refused, IsEmpty()) << "once for all products";
}

TEST_F(BlasProductsTest, RowsThatTheLibraryCannotDoAreNotForIt) {
  const auto products = room_.Products();
  Problem int8({DeviceFormat::kINT8Row, 12, 128, 256});
  int8.args.w.int8_activations = false;
  EXPECT_FALSE(Multiply(*products, int8)) << "the file does not ask for it";
  Problem odd({DeviceFormat::kFP8Row, 12, 128, 256});
  odd.args.x_stride = 264;
  EXPECT_FALSE(Multiply(*products, odd));
  Problem groups({DeviceFormat::kINT4Group, 12, 128, 256});
  EXPECT_FALSE(Multiply(*products, groups));
  fake_.capability = 89;
  Problem rows({DeviceFormat::kFP8Row, 12, 112, 256});
  EXPECT_FALSE(Multiply(*products, rows)) << "of a GPU that has no such products";
  EXPECT_TRUE(room_.IsForgotten()) << "nothing is quantised in vain";
}

TEST_F(BlasProductsTest, AFailureIsTold) {
  const auto products = room_.Products();
  Problem problem({DeviceFormat::kFP8Block, 12, 128, 256});
  fake_.matmul_result = kCublasNotSupported;
  EXPECT_FALSE(Multiply(*products, problem));
}

TEST_F(BlasProductsTest, ALibraryThatIsMissingOrIncompleteIsSaid) {
  std::string why;
  EXPECT_EQ(CublasLt::Load("/nowhere/libcublasLt.so.13", nullptr, 0, &why), nullptr);
  EXPECT_THAT(why, StartsWith("/nowhere/libcublasLt.so.13: cannot open"));
  EXPECT_EQ(CublasLt::Load(REMPART_INCOMPLETE_CUBLAS_LT, nullptr, 0, &why), nullptr);
  EXPECT_EQ(why, "it has no cublasLtMatrixLayoutCreate");
}

}  // namespace
}  // namespace rempart::kernels::cuda
