// SPDX-License-Identifier: Apache-2.0
// Times the kernels of one tier on one thread, over the shapes of real models, for tuning:
//   kernels_bench [tier] [filter [model]]
// Per op: microseconds, GB/s of the bytes it must read, G multiply-adds/s. Per model: the sum of
// one token's work, as tokens per second. Random weights; every layer has its own, so that decode
// reads memory as a real model does.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/blocks.h"
#include "kernels/ops.h"

namespace rempart::kernels {
namespace {

struct Matrix {
  const char* name;
  DType type;
  int64_t rows, cols;
  int layers;
};

struct Model {
  const char* name;
  std::vector<Matrix> matrices;
  int64_t layers, heads, kv_heads, head_dim, hidden, ffn;
};

// The shapes of benchmarks/cpu/random_model, fewer layers: more than caches hold.
Model RandomModel(const char* name, DType type) {
  return {name,
          {{"qkv", type, 3072, 2048, 2},
           {"o", type, 2048, 2048, 2},
           {"gate_up", type, 16384, 2048, 2},
           {"down", type, 2048, 8192, 2}},
          2,
          32,
          8,
          64,
          2048,
          8192};
}

const std::vector<Model>& Models() {
  static const std::vector<Model> models = {
      {"smollm2-135m-q4_1",
       {{"q", DType::kQ4_1, 576, 576, 30},
        {"k", DType::kQ4_1, 192, 576, 30},
        {"v", DType::kQ4_1, 192, 576, 30},
        {"o", DType::kQ4_1, 576, 576, 30},
        {"gate", DType::kQ4_1, 1536, 576, 30},
        {"up", DType::kQ4_1, 1536, 576, 30},
        {"down", DType::kQ4_1, 576, 1536, 30},
        {"head", DType::kQ8_0, 49152, 576, 1}},
       30,
       9,
       3,
       64,
       576,
       1536},
      {"gemma3-270m-q4_k_m",
       {{"q", DType::kQ5_0, 1024, 640, 18},
        {"k", DType::kQ5_0, 256, 640, 18},
        {"v", DType::kQ8_0, 256, 640, 18},
        {"o", DType::kQ4_K, 640, 1024, 18},
        {"gate", DType::kQ5_0, 2048, 640, 18},
        {"up", DType::kQ5_0, 2048, 640, 18},
        {"down", DType::kQ6_K, 640, 2048, 18},
        {"head", DType::kQ8_0, 262144, 640, 1}},
       18,
       4,
       1,
       256,
       640,
       2048},
      RandomModel("random-1b-bf16", DType::kBF16),
      RandomModel("random-1b-f16", DType::kF16),
      RandomModel("random-1b-q8_0", DType::kQ8_0),
      RandomModel("random-1b-q4_k", DType::kQ4_K),
  };
  return models;
}

struct AlignedBytes {
  explicit AlignedBytes(int64_t bytes)
      : data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)), std::free) {
    std::memset(data.get(), 0, (bytes + 127) / 64 * 64);
  }
  std::unique_ptr<uint8_t, void (*)(void*)> data;
};

// Of this thread on a CPU: other work on the machine disturbs it least.
double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double Seconds(const std::function<void()>& body) {
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const double start = CpuSeconds();
    body();
    best = std::min(best, CpuSeconds() - start);
  }
  return best;
}

class Bench {
 public:
  Bench(const Ops& ops, std::string filter) : ops_(ops), filter_(std::move(filter)) {}

  void Run(const Model& model) {
    for (int64_t tokens : {int64_t{1}, int64_t{16}, int64_t{512}}) {
      double total = 0;
      for (const Matrix& matrix : model.matrices) {
        const bool is_head = matrix.layers == 1;
        total += Matmul(model, matrix, is_head ? 1 : tokens);
      }
      total += Attention(model, tokens) + Small(model, tokens);
      std::printf("%-20s %4ld tokens: %8.1f tokens/s on one thread of %s\n", model.name,
                  static_cast<long>(tokens), static_cast<double>(tokens) / total, ops_.name);
    }
  }

 private:
  bool Wanted(const std::string& name) const { return name.find(filter_) != std::string::npos; }

  void Print(const Model& model, const std::string& op, int64_t tokens, double seconds,
             double bytes, double products) const {
    std::printf("%-20s %-18s %4ld tokens %10.1f us %7.2f GB/s %8.1f Gmul/s\n", model.name,
                op.c_str(), static_cast<long>(tokens), seconds * 1e6, bytes / seconds * 1e-9,
                products / seconds * 1e-9);
  }

  // Seconds for all layers of one matrix.
  double Matmul(const Model& model, const Matrix& m, int64_t tokens) {
    const std::string name = std::string(m.name) + "." + DTypeName(m.type);
    if (!Wanted(name)) return 0;
    std::vector<uint8_t> raw(RowBytes(m.type, m.cols) * m.rows);
    for (size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<uint8_t>(random_() & 0x3b);
    const WeightView w = {raw.data(), m.type, m.rows, m.cols};
    const int64_t packed_bytes = ops_.packed_bytes(w);
    const int64_t bytes = packed_bytes > 0 ? packed_bytes : static_cast<int64_t>(raw.size());
    std::vector<AlignedBytes> packed;
    double pack_seconds = 0;
    for (int layer = 0; layer < m.layers; ++layer) {
      packed.emplace_back(bytes);
      const double start = CpuSeconds();
      if (packed_bytes > 0) {
        ops_.pack_rows(w, packed.back().data.get(), 0, m.rows);
      } else {
        std::memcpy(packed.back().data.get(), raw.data(), raw.size());
      }
      pack_seconds += CpuSeconds() - start;
    }
    const std::vector<float> x(tokens * m.cols, 0.5f);
    std::vector<ActivationBlock> xq(tokens * m.cols / 32);
    const int64_t rounded_stride = RoundedStride(m.cols);
    std::vector<uint16_t> rounded(tokens * rounded_stride);
    const bool rounds = m.type == DType::kBF16 && ops_.round != nullptr && tokens > 1;
    std::vector<float> y(tokens * m.rows);
    ops_.quantize(x.data(), m.cols, m.cols, xq.data(), m.cols / 32, 0, tokens);
    const double seconds = Seconds([&] {
      for (const AlignedBytes& layer : packed) {
        const void* rows = packed_bytes > 0 ? w.data : layer.data.get();
        if (rounds) {
          ops_.round(x.data(), m.cols, m.cols, rounded.data(), rounded_stride, 0, tokens);
        }
        const MatmulArgs args = {.w = {rows, m.type, m.rows, m.cols},
                                 .packed = layer.data.get(),
                                 .x = x.data(),
                                 .x_stride = m.cols,
                                 .xq = xq.data(),
                                 .xq_stride = m.cols / 32,
                                 .x_rounded = rounds ? rounded.data() : nullptr,
                                 .x_rounded_stride = rounded_stride,
                                 .y = y.data(),
                                 .y_stride = m.rows,
                                 .num_tokens = tokens};
        for (int64_t row = 0; row < m.rows; row += 64) {
          ops_.matmul_fast(args, row, std::min(row + 64, m.rows));
        }
      }
    });
    const auto weights = static_cast<double>(m.rows * m.cols * m.layers);
    Print(model, name, tokens, seconds, static_cast<double>(bytes * m.layers),
          weights * static_cast<double>(tokens));
    if (tokens == 1) {
      std::printf("%-20s %-18s pack       %10.1f us %7.2f ns/weight\n", model.name, name.c_str(),
                  pack_seconds * 1e6, pack_seconds * 1e9 / weights);
    }
    return seconds;
  }

  // 512 tokens over themselves, or one token over 512.
  double Attention(const Model& model, int64_t tokens) {
    if (!Wanted("attention")) return 0;
    const int64_t context = 512;
    const int64_t stride = KvBlockBytes(DType::kF16, model.kv_heads, model.head_dim);
    AlignedBytes cache(stride * context / kKvBlockTokens);
    std::vector<int32_t> table(context / kKvBlockTokens);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    const int64_t width = model.heads * model.head_dim;
    std::vector<float> q(tokens * width, 0.1f), out(tokens * width);
    const AttentionArgs args = {
        .kv = {cache.data.get(), stride, DType::kF16, model.kv_heads, model.head_dim},
        .q = q.data(),
        .q_stride = width,
        .out = out.data(),
        .out_stride = width,
        .block_table = table.data(),
        .first_position = context - tokens,
        .num_tokens = tokens,
        .num_heads = model.heads,
        .scale = 0.125f};
    const double seconds =
        Seconds([&] { ops_.attention(args, 0, tokens * model.heads); }) * model.layers;
    const double keys = tokens == 1 ? context : context / 2;
    const int64_t kv_bytes = stride * context / kKvBlockTokens * model.layers;
    Print(model, "attention", tokens, seconds, static_cast<double>(kv_bytes),
          2 * keys * static_cast<double>(tokens * width * model.layers));
    return seconds;
  }

  // Norms, rotation, activation, quantisation and stores of all layers.
  double Small(const Model& model, int64_t tokens) {
    if (!Wanted("small")) return 0;
    const int64_t width = (model.heads + model.kv_heads) * model.head_dim;
    std::vector<float> x(tokens * model.hidden, 0.5f), y(x.size()), weight(model.hidden, 1.0f);
    std::vector<float> qk(tokens * width, 0.5f), gate(tokens * model.ffn, 0.5f), up(gate);
    std::vector<float> cos(tokens * model.head_dim / 2, 1.0f), sin(cos);
    std::vector<ActivationBlock> xq(tokens * model.ffn / 32);
    const int64_t stride = KvBlockBytes(DType::kF16, model.kv_heads, model.head_dim);
    AlignedBytes cache(stride * (tokens / kKvBlockTokens + 1));
    std::vector<int32_t> table(tokens / kKvBlockTokens + 1);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    double total = 0;
    const auto time = [&](const char* name, int times, const std::function<void()>& body) {
      const double seconds = Seconds(body) * times * static_cast<double>(model.layers);
      Print(model, name, tokens, seconds, 0, 0);
      total += seconds;
    };
    time("small.rms_norm", 2, [&] {
      ops_.rms_norm(x.data(), model.hidden, weight.data(), 1e-5f, model.hidden, y.data(),
                    model.hidden, 0, tokens);
    });
    time("small.quantize", 3, [&] {
      ops_.quantize(x.data(), model.hidden, model.hidden, xq.data(), model.ffn / 32, 0, tokens);
    });
    time("small.quantize_ffn", 1, [&] {
      ops_.quantize(gate.data(), model.ffn, model.ffn, xq.data(), model.ffn / 32, 0, tokens);
    });
    time("small.silu_mul", 1, [&] {
      ops_.silu_mul(gate.data(), up.data(), model.ffn, model.ffn, gate.data(), model.ffn, 0,
                    tokens);
    });
    time("small.add", 2,
         [&] { ops_.add(x.data(), y.data(), y.data(), 0, static_cast<int64_t>(x.size())); });
    {
      time("small.rope", 1, [&] {
        ops_.rope({.x = qk.data(),
                   .x_stride = width,
                   .cos = cos.data(),
                   .sin = sin.data(),
                   .num_heads = model.heads + model.kv_heads,
                   .head_dim = model.head_dim,
                   .rotary_dim = model.head_dim,
                   .layout = RopeLayout::kInterleaved},
                  0, tokens);
      });
    }
    time("small.kv_store", 1, [&] {
      ops_.kv_store({.kv = {cache.data.get(), stride, DType::kF16, model.kv_heads, model.head_dim},
                     .k = qk.data(),
                     .k_stride = width,
                     .v = qk.data(),
                     .v_stride = width,
                     .block_table = table.data()},
                    0, tokens);
    });
    return total;
  }

  const Ops& ops_;
  std::string filter_;
  std::minstd_rand random_{1};
};

}  // namespace
}  // namespace rempart::kernels

// Bytes per second of a thread that does nothing but read: the bound of decode.
static double ReadRate() {
  using namespace rempart::kernels;
  constexpr int64_t kBytes = int64_t{1} << 30;
  const AlignedBytes buffer(kBytes);
  int64_t sum = 0;
  const double seconds = Seconds([&] {
    int64_t sums[8] = {};
    const auto* words = reinterpret_cast<const int64_t*>(buffer.data.get());
    for (int64_t i = 0; i < kBytes / 8; i += 8) {
      for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    for (int64_t partial : sums) sum += partial;
  });
  return sum == 1 ? 0 : static_cast<double>(kBytes) / seconds;
}

int main(int argc, char** argv) {
  using namespace rempart::kernels;
  const Ops* ops = argc > 1 && argv[1][0] != '\0' ? FindOps(argv[1]) : &BestOps();
  if (ops == nullptr) {
    std::fprintf(stderr, "kernels_bench: no supported tier called %s; there are:", argv[1]);
    for (const OpsTier& tier : AllOps()) {
      if (tier.is_supported) std::fprintf(stderr, " %s", tier.ops->name);
    }
    std::fprintf(stderr, "\n");
    return 2;
  }
  const std::string filter = argc > 2 ? argv[2] : "";
  if (filter.empty()) {
    std::printf("%-20s 1 GiB: %.2f GB/s on one thread\n", "memory", ReadRate() * 1e-9);
  }
  Bench bench(*ops, filter);
  const std::string wanted = argc > 3 ? argv[3] : "";
  for (const Model& model : Models()) {
    if (std::string(model.name).find(wanted) != std::string::npos) bench.Run(model);
  }
  return 0;
}
