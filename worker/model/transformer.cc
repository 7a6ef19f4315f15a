// SPDX-License-Identifier: Apache-2.0
#include "worker/model/transformer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr uintptr_t kPageBytes = 4096;
constexpr int64_t kRowsPerChunk = 64;       // of a matmul
constexpr int64_t kTokensPerChunk = 8;      // of elementwise work
constexpr int64_t kAttentionPerChunk = 64;  // queries of one head

int64_t HalfDim(const RopeSpec& rope) {
  return static_cast<int64_t>(rope.inverse_frequency.size());
}

// Blocks of int8 activations between tokens. With a multiple of 2 KiB neighbours would share sets
// of the cache; ranks of a group exchange rows without gaps.
int64_t BlocksStride(const Partition& partition, int64_t cols) {
  const int64_t blocks = (cols + kernels::kActivationGroup - 1) / kernels::kActivationGroup;
  return partition.of.size == 1 && blocks % 32 == 0 ? blocks + 1 : blocks;
}

}  // namespace

int64_t KvBytesPerBlock(const ModelConfig& config, kernels::DType kv_type, const RankPosition& of) {
  const Partition partition = MakePartition(config, of);
  const int64_t layer = kernels::KvBlockBytes(kv_type, partition.kv_heads.count(), config.head_dim);
  return layer * partition.layers.count();
}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(
    const ModelConfig& config, const Weights& weights, const kernels::Ops& ops, ThreadPool& pool,
    const TransformerOptions& options) {
  std::unique_ptr<Transformer> transformer(new Transformer(config, weights, ops, pool, options));
  RETURN_IF_ERROR(transformer->Allocate());
  return transformer;
}

Transformer::Transformer(const ModelConfig& config, const Weights& weights, const kernels::Ops& ops,
                         ThreadPool& pool, const TransformerOptions& options)
    : config_(config),
      weights_(weights),
      ops_(ops),
      pool_(pool),
      options_(options),
      partition_(weights.partition),
      heads_(partition_.heads.count()),
      kv_heads_(partition_.kv_heads.count()),
      ffn_(partition_.Own(partition_.ffn).count()) {
  const auto look = [this](const Matrix& matrix) {
    has_quantized_ |= kernels::IsQuantized(matrix.view.type);
    has_rounding_ |= ReadsRounded(matrix);
  };
  look(weights.head);
  for (const LayerWeights& layer : weights.layers) {
    for (const Matrix* matrix : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                                 &layer.up, &layer.down}) {
      look(*matrix);
    }
  }
}

absl::Status Transformer::Allocate() {
  const int64_t bytes =
      options_.kv_blocks * KvBytesPerBlock(config_, options_.kv_type, partition_.of);
  // Zeroed, because lanes of a block that hold no token yet are read and masked; by calloc, so that
  // pages are taken from the system only when a block is first used.
  void* memory = std::calloc(bytes + 64, 1);
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a KV cache of ", bytes >> 20, " MiB"));
  }
  kv_.reset(memory);
  const auto address = reinterpret_cast<uintptr_t>(memory);
  kv_base_ = static_cast<uint8_t*>(memory) + (64 - address % 64) % 64;
  // Huge pages, where the system has them: attention reads blocks all over this range. Only a hint.
  const uintptr_t page = (address + kPageBytes - 1) / kPageBytes * kPageBytes;
  const auto size = static_cast<int64_t>(address + bytes - page);
  if (size > 0)
    (void)madvise(reinterpret_cast<void*>(page), static_cast<size_t>(size), MADV_HUGEPAGE);
  const int64_t tokens = options_.max_step_tokens;
  const int64_t heads = config_.heads * config_.head_dim;
  const int64_t widest = std::max({config_.hidden, heads, config_.ffn});
  ids_.resize(tokens);
  positions_.resize(tokens);
  residual_.resize(tokens * config_.hidden);
  normed_.resize(tokens * config_.hidden);
  branch_.resize(tokens * config_.hidden);
  qkv_.resize(tokens * (heads_ + 2 * kv_heads_) * config_.head_dim);
  attended_.resize(tokens * heads_ * config_.head_dim);
  gate_up_.resize(tokens * 2 * ffn_);
  RETURN_IF_ERROR(AllocateForOthers());
  last_.resize(options_.max_step_logits * config_.hidden);
  const int64_t rows = std::max(tokens, options_.max_step_logits);
  if (has_quantized_) {
    quantized_.resize(rows * BlocksStride(partition_, widest));
  }
  if (has_rounding_) rounded_.resize(rows * kernels::RoundedStride(widest));
  int64_t angles = 0;
  for (const RopeSpec& rope : config_.ropes) angles += HalfDim(rope);
  cos_.resize(tokens * angles);
  sin_.resize(tokens * angles);
  return absl::OkStatus();
}

// What a rank needs because there are others.
absl::Status Transformer::AllocateForOthers() {
  const RankPosition& of = partition_.of;
  if (of.group_size() == 1) return absl::OkStatus();
  int64_t widest = 0;
  for (const LayerWeights& layer : weights_.layers) {
    if (of.size == 1) break;
    if (!SendsBlocks(partition_.attended, layer.output)) {
      widest = std::max(widest, partition_.attended.back());
    }
    if (!SendsBlocks(partition_.ffn, layer.down)) widest = std::max(widest, config_.ffn);
  }
  wide_.resize(options_.max_step_tokens * widest);
  // Ranks before the last stage have none.
  group_vocabulary_.assign((of.stages - 1) * of.size, 0);
  group_vocabulary_.insert(group_vocabulary_.end(), partition_.vocabulary.begin(),
                           partition_.vocabulary.end());
  if (of.group_rank() == 0 || !of.is_last_stage()) return absl::OkStatus();
  // Rows of whole width, of which this rank touches its columns only.
  const int64_t bytes = options_.max_step_logits * config_.vocabulary * 4;
  logits_.reset(static_cast<float*>(std::calloc(bytes, 1)));
  if (logits_ != nullptr) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("no memory for ", bytes >> 20, " MiB of logits"));
}

int64_t Transformer::workspace_bytes() const {
  const size_t floats = residual_.size() + normed_.size() + qkv_.size() + attended_.size() +
                        branch_.size() + gate_up_.size() + last_.size() + wide_.size() +
                        cos_.size() + sin_.size();
  const size_t bytes = (floats + ids_.size() + positions_.size()) * 4 + rounded_.size() * 2 +
                       quantized_.size() * sizeof(kernels::ActivationBlock);
  const bool has_logits = partition_.of.group_rank() == 0 || logits_ != nullptr;
  return static_cast<int64_t>(bytes) +
         (has_logits ? options_.max_step_logits * config_.vocabulary * 4 : 0);
}

kernels::KvView Transformer::KvOf(size_t layer) const {
  const int64_t bytes = kernels::KvBlockBytes(options_.kv_type, kv_heads_, config_.head_dim);
  kernels::KvView view;
  view.data = kv_base_ + static_cast<int64_t>(layer) * bytes;
  view.block_stride_bytes = KvBytesPerBlock(config_, options_.kv_type, partition_.of);
  view.type = options_.kv_type;
  view.kv_heads = kv_heads_;
  view.head_dim = config_.head_dim;
  return view;
}

absl::Status Transformer::Check(const StepBatch& batch, absl::Span<float> logits) const {
  for (const BlockCopy& copy : batch.copies) {
    for (const int32_t block : {copy.source, copy.destination}) {
      if (block < 0 || block >= options_.kv_blocks) {
        return absl::InvalidArgumentError(absl::StrCat("no KV block ", block, " to copy"));
      }
    }
  }
  int64_t tokens = 0;
  int64_t wanting = 0;
  for (const SequenceSlice& slice : batch.slices) {
    tokens += static_cast<int64_t>(slice.token_ids.size());
    wanting += slice.wants_logits ? 1 : 0;
    const int64_t end = slice.first_position + static_cast<int64_t>(slice.token_ids.size());
    const int64_t blocks = (end + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
    if (slice.token_ids.empty() || slice.first_position < 0 ||
        static_cast<int64_t>(slice.block_table.size()) < blocks) {
      return absl::InvalidArgumentError("a slice has no tokens, or too short a block table");
    }
    if (slice.follows >= 0) {
      return absl::InvalidArgumentError("a slice follows a token that the host does not know");
    }
    for (const int32_t id : slice.token_ids) {
      if (id < 0 || id >= config_.vocabulary) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", id, " is outside the vocabulary of ", config_.vocabulary));
      }
    }
    for (int64_t i = 0; i < blocks; ++i) {
      if (slice.block_table[i] < 0 || slice.block_table[i] >= options_.kv_blocks) {
        return absl::InvalidArgumentError(absl::StrCat("no KV block ", slice.block_table[i]));
      }
    }
  }
  if (tokens > options_.max_step_tokens || wanting > options_.max_step_logits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", tokens, " tokens and ", wanting, " logits; the limits are ",
                     options_.max_step_tokens, " and ", options_.max_step_logits));
  }
  const bool receives = partition_.of.group_rank() == 0;
  if (receives && static_cast<int64_t>(logits.size()) < wanting * config_.vocabulary) {
    return absl::InvalidArgumentError("the logits have too little room");
  }
  return absl::OkStatus();
}

absl::Status Transformer::Forward(const StepBatch& batch, absl::Span<float> logits) {
  RETURN_IF_ERROR(Check(batch, logits));
  RETURN_IF_ERROR(CheckCommunicator());
  CopyBlocks(batch);
  if (batch.slices.empty()) return absl::OkStatus();
  float* const all = partition_.of.group_rank() == 0 ? logits.data() : logits_.get();
  int64_t rows = 0;
  if (batch.micro_batch_tokens == 0) {
    RETURN_IF_ERROR(ComputeMicroBatch(batch, all, rows));
  } else {
    for (const StepBatch& part : MicroBatches(batch)) {
      RETURN_IF_ERROR(ComputeMicroBatch(part, all, rows));
    }
  }
  return Finish(all, rows);
}

absl::Status Transformer::ComputeMicroBatch(const StepBatch& batch, float* logits,
                                            int64_t& first_row) {
  RETURN_IF_ERROR(Enter(batch));
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    RETURN_IF_ERROR(Attend(batch, layer));
    RETURN_IF_ERROR(FeedForward(layer));
  }
  if (!partition_.of.is_last_stage()) {
    for (const SequenceSlice& slice : batch.slices) first_row += slice.wants_logits ? 1 : 0;
    return SendResidual();
  }
  first_row += Head(batch, logits + first_row * config_.vocabulary);
  return absl::OkStatus();
}

// A block's memory is contiguous over all layers.
void Transformer::CopyBlocks(const StepBatch& batch) {
  const int64_t bytes = KvBytesPerBlock(config_, options_.kv_type, partition_.of);
  for (const BlockCopy& copy : batch.copies) {
    if (copy.source == copy.destination) continue;
    std::memcpy(kv_base_ + copy.destination * bytes, kv_base_ + copy.source * bytes, bytes);
  }
}

absl::Status Transformer::Enter(const StepBatch& batch) {
  num_tokens_ = 0;
  for (const SequenceSlice& slice : batch.slices) {
    for (size_t i = 0; i < slice.token_ids.size(); ++i) {
      ids_[num_tokens_] = slice.token_ids[i];
      positions_[num_tokens_++] = slice.first_position + static_cast<int32_t>(i);
    }
  }
  const bool embeds = partition_.of.is_first_stage();
  if (!embeds) RETURN_IF_ERROR(ReceiveResidual());
  pool_.ParallelFor(num_tokens_, kTokensPerChunk, [&](int64_t begin, int64_t end) {
    if (embeds) {
      ops_.embed(weights_.embedding.view, ids_.data(), config_.embedding_scale, residual_.data(),
                 config_.hidden, begin, end);
    }
    int64_t offset = 0;
    for (const RopeSpec& rope : config_.ropes) {
      ops_.rope_angles(positions_.data(), rope.inverse_frequency.data(), HalfDim(rope), rope.scale,
                       cos_.data() + offset, sin_.data() + offset, begin, end);
      offset += options_.max_step_tokens * HalfDim(rope);
    }
    NormTokens(weights_.layers.front().attention_norm, begin, end);
  });
  return absl::OkStatus();
}

bool Transformer::IsFast(int64_t cols) const {
  return !options_.exact && cols % kernels::kActivationGroup == 0;
}

bool Transformer::ReadsRounded(const Matrix& matrix) const {
  return ops_.round != nullptr && matrix.view.type == kernels::DType::kBF16;
}

void Transformer::NormTokens(const std::vector<float>& weight, int64_t begin, int64_t end) {
  const int64_t hidden = config_.hidden;
  ops_.rms_norm(residual_.data(), hidden, weight.data(), config_.norm_epsilon, hidden,
                normed_.data(), hidden, begin, end);
  if (!ReadsBlocks(hidden)) return;
  ops_.quantize(normed_.data(), hidden, hidden, quantized_.data(), BlocksStride(partition_, hidden),
                begin, end);
}

Transformer::Input Transformer::Normed() const {
  return {normed_.data(), config_.hidden, ReadsBlocks(config_.hidden)};
}

bool Transformer::SendsBlocks(const std::vector<int64_t>& offsets, const Matrix& reader) const {
  return !options_.exact && kernels::IsQuantized(reader.view.type) &&
         std::all_of(offsets.begin(), offsets.end(),
                     [](int64_t offset) { return offset % kernels::kActivationGroup == 0; });
}

Shares Transformer::SharesOf(void* data, int64_t rows, const std::vector<int64_t>& offsets,
                             int64_t unit, int64_t unit_bytes) {
  share_offsets_.assign(offsets.begin(), offsets.end());
  for (int64_t& offset : share_offsets_) offset = offset / unit * unit_bytes;
  return {data, rows, share_offsets_.back(), share_offsets_};
}

absl::StatusOr<Transformer::Input> Transformer::Widen(const float* part,
                                                      const std::vector<int64_t>& offsets,
                                                      const Matrix& reader) {
  const int64_t cols = offsets.back();
  if (partition_.of.size == 1) return Input{part, cols, false};
  const Range own = partition_.Own(offsets);
  if (SendsBlocks(offsets, reader)) {
    constexpr int64_t kGroup = kernels::kActivationGroup;
    pool_.ParallelFor(num_tokens_, kTokensPerChunk, [&](int64_t begin, int64_t end) {
      ops_.quantize(part, own.count(), own.count(), quantized_.data() + own.begin / kGroup,
                    BlocksStride(partition_, cols), begin, end);
    });
    RETURN_IF_ERROR(stage_communicator_->AllGather(SharesOf(
        quantized_.data(), num_tokens_, offsets, kGroup, sizeof(kernels::ActivationBlock))));
    return Input{nullptr, cols, true};
  }
  for (int64_t t = 0; t < num_tokens_; ++t) {
    std::copy_n(part + t * own.count(), own.count(), wide_.data() + t * cols + own.begin);
  }
  RETURN_IF_ERROR(stage_communicator_->AllGather(
      SharesOf(wide_.data(), num_tokens_, offsets, 1, sizeof(float))));
  return Input{wide_.data(), cols, false};
}

absl::Status Transformer::MultiplyIntoBranch(const Input& input, const Matrix& matrix) {
  const int64_t begin = partition_.Own(partition_.hidden).begin;
  const Product product[] = {{&matrix, branch_.data() + begin, config_.hidden}};
  Multiply(input, num_tokens_, product);
  if (partition_.of.size == 1) return absl::OkStatus();
  return stage_communicator_->AllGather(
      SharesOf(branch_.data(), num_tokens_, partition_.hidden, 1, sizeof(float)));
}

void Transformer::Multiply(const Input& input, int64_t num_tokens,
                           absl::Span<const Product> products) {
  const float* x = input.x;
  const int64_t cols = input.cols;
  const int64_t blocks_stride = BlocksStride(partition_, cols);
  const bool fast = input.is_quantized || IsFast(cols);
  if (fast && !input.is_quantized && has_quantized_) {
    pool_.ParallelFor(num_tokens, kTokensPerChunk, [&](int64_t begin, int64_t end) {
      ops_.quantize(x, cols, cols, quantized_.data(), blocks_stride, begin, end);
    });
  }
  // One token's are rounded as fast by those who read them as they are handed on.
  const bool rounds = fast && x != nullptr && num_tokens > 1 &&
                      std::any_of(products.begin(), products.end(), [&](const Product& product) {
                        return ReadsRounded(*product.matrix);
                      });
  const int64_t stride = kernels::RoundedStride(cols);
  if (rounds) {
    pool_.ParallelFor(num_tokens, kTokensPerChunk, [&](int64_t begin, int64_t end) {
      ops_.round(x, cols, cols, rounded_.data(), stride, begin, end);
    });
  }
  int64_t chunks = 0;
  for (const Product& product : products) {
    chunks += (product.matrix->view.rows + kRowsPerChunk - 1) / kRowsPerChunk;
  }
  pool_.ParallelFor(chunks, 1, [&](int64_t chunk, int64_t) {
    const Product* product = products.data();
    for (;; ++product) {
      const int64_t own = (product->matrix->view.rows + kRowsPerChunk - 1) / kRowsPerChunk;
      if (chunk < own) break;
      chunk -= own;
    }
    kernels::MatmulArgs args;
    args.w = product->matrix->view;
    args.packed = product->matrix->packed;
    args.bias = product->matrix->bias.empty() ? nullptr : product->matrix->bias.data();
    args.x = x;
    args.x_stride = cols;
    args.xq = quantized_.data();
    args.xq_stride = blocks_stride;
    args.x_rounded = rounds ? rounded_.data() : nullptr;
    args.x_rounded_stride = stride;
    args.y = product->y;
    args.y_stride = product->y_stride;
    args.num_tokens = num_tokens;
    const int64_t begin = chunk * kRowsPerChunk;
    const int64_t end = std::min(begin + kRowsPerChunk, args.w.rows);
    (fast ? ops_.matmul_fast : ops_.matmul_exact)(args, begin, end);
  });
}

void Transformer::RotateAndStore(const StepBatch& batch, size_t layer) {
  const LayerWeights& weights = weights_.layers[layer];
  const int32_t rope_index = SpecOf(layer).rope;
  const RopeSpec& rope = config_.ropes[rope_index];
  int64_t angles = 0;
  for (int32_t i = 0; i < rope_index; ++i) {
    angles += options_.max_step_tokens * HalfDim(config_.ropes[i]);
  }
  const int64_t dim = config_.head_dim;
  const int64_t queries = heads_ * dim;
  const int64_t stride = queries + 2 * kv_heads_ * dim;
  pool_.ParallelFor(num_tokens_, kTokensPerChunk, [&](int64_t begin, int64_t end) {
    if (config_.qk_norm) {
      for (int64_t t = begin; t < end; ++t) {
        float* token = qkv_.data() + t * stride;
        ops_.rms_norm(token, dim, weights.query_norm.data(), config_.norm_epsilon, dim, token, dim,
                      0, heads_);
        ops_.rms_norm(token + queries, dim, weights.key_norm.data(), config_.norm_epsilon, dim,
                      token + queries, dim, 0, kv_heads_);
      }
    }
    kernels::RopeArgs args;
    args.x = qkv_.data();
    args.x_stride = stride;
    args.cos = cos_.data() + angles;
    args.sin = sin_.data() + angles;
    args.num_heads = heads_;
    args.head_dim = dim;
    args.rotary_dim = 2 * HalfDim(rope);
    args.layout = rope.layout;
    ops_.rope(args, begin, end);
    args.x = qkv_.data() + queries;
    args.num_heads = kv_heads_;
    ops_.rope(args, begin, end);
    StoreTokens(batch, layer, begin, end);
  });
}

void Transformer::StoreTokens(const StepBatch& batch, size_t layer, int64_t begin, int64_t end) {
  const int64_t keys = kv_heads_ * config_.head_dim;
  const int64_t queries = heads_ * config_.head_dim;
  const int64_t stride = queries + 2 * keys;
  int64_t first = 0;
  for (const SequenceSlice& slice : batch.slices) {
    const int64_t count = static_cast<int64_t>(slice.token_ids.size());
    const int64_t from = std::max(begin, first), to = std::min(end, first + count);
    if (from < to) {
      kernels::KvStoreArgs args;
      args.kv = KvOf(layer);
      args.k = qkv_.data() + first * stride + queries;
      args.k_stride = stride;
      args.v = args.k + keys;
      args.v_stride = stride;
      args.block_table = slice.block_table.data();
      args.first_position = slice.first_position;
      ops_.kv_store(args, from - first, to - first);
    }
    first += count;
  }
}

absl::Status Transformer::Attend(const StepBatch& batch, size_t layer) {
  const LayerWeights& weights = weights_.layers[layer];
  const int64_t queries = heads_ * config_.head_dim;
  const int64_t keys = kv_heads_ * config_.head_dim;
  const int64_t stride = queries + 2 * keys;
  const Product projections[] = {{&weights.query, qkv_.data(), stride},
                                 {&weights.key, qkv_.data() + queries, stride},
                                 {&weights.value, qkv_.data() + queries + keys, stride}};
  Multiply(Normed(), num_tokens_, projections);
  RotateAndStore(batch, layer);
  ComputeAttention(batch, layer);
  ASSIGN_OR_RETURN(const Input input, Widen(attended_.data(), partition_.attended, weights.output));
  RETURN_IF_ERROR(MultiplyIntoBranch(input, weights.output));
  AddBranch(weights.post_attention_norm, &weights.ffn_norm);
  return absl::OkStatus();
}

int64_t Transformer::HeadsPerPass(size_t slices) const {
  const int64_t group = heads_ / kv_heads_;
  const int64_t wanted = 2 * pool_.threads();
  for (int64_t heads = std::min<int64_t>(group, 8); heads > 1; --heads) {
    if (group % heads == 0 && heads_ / heads * static_cast<int64_t>(slices) >= wanted) return heads;
  }
  return 1;
}

void Transformer::ComputeAttention(const StepBatch& batch, size_t layer) {
  const int64_t queries = heads_ * config_.head_dim;
  const int64_t stride = queries + 2 * kv_heads_ * config_.head_dim;
  const int64_t heads_per_pass = HeadsPerPass(batch.slices.size());
  work_.clear();
  for (size_t i = 0; i < batch.slices.size(); ++i) {
    const int64_t count = static_cast<int64_t>(batch.slices[i].token_ids.size());
    const int64_t items = count * heads_;
    const int64_t step = count == 1 ? heads_per_pass : kAttentionPerChunk;
    for (int64_t begin = 0; begin < items; begin += step) {
      work_.push_back({static_cast<int32_t>(i), begin, std::min(begin + step, items)});
    }
  }
  std::vector<int64_t>& firsts = slice_firsts_;
  firsts.clear();
  int64_t first = 0;
  for (const SequenceSlice& slice : batch.slices) {
    firsts.push_back(first);
    first += static_cast<int64_t>(slice.token_ids.size());
  }
  pool_.ParallelFor(static_cast<int64_t>(work_.size()), 1, [&](int64_t index, int64_t) {
    const AttentionWork& work = work_[index];
    const SequenceSlice& slice = batch.slices[work.slice];
    kernels::AttentionArgs args;
    args.kv = KvOf(layer);
    args.q = qkv_.data() + firsts[work.slice] * stride;
    args.q_stride = stride;
    args.out = attended_.data() + firsts[work.slice] * queries;
    args.out_stride = queries;
    args.block_table = slice.block_table.data();
    args.first_position = slice.first_position;
    args.num_tokens = static_cast<int64_t>(slice.token_ids.size());
    args.num_heads = heads_;
    args.scale = config_.attention_scale;
    args.softcap = config_.attention_softcap;
    args.window = SpecOf(layer).window;
    ops_.attention(args, work.begin, work.end);
  });
}

void Transformer::AddBranch(const std::vector<float>& post_norm,
                            const std::vector<float>* next_norm) {
  const int64_t hidden = config_.hidden;
  pool_.ParallelFor(num_tokens_, kTokensPerChunk, [&](int64_t begin, int64_t end) {
    if (!post_norm.empty()) {
      ops_.rms_norm(branch_.data(), hidden, post_norm.data(), config_.norm_epsilon, hidden,
                    branch_.data(), hidden, begin, end);
    }
    ops_.add(residual_.data(), branch_.data(), residual_.data(), begin * hidden, end * hidden);
    if (next_norm != nullptr) NormTokens(*next_norm, begin, end);
  });
}

absl::Status Transformer::FeedForward(size_t layer) {
  const LayerWeights& weights = weights_.layers[layer];
  float* gate = gate_up_.data();
  float* up = gate + num_tokens_ * ffn_;
  const Product projections[] = {{&weights.gate, gate, ffn_}, {&weights.up, up, ffn_}};
  Multiply(Normed(), num_tokens_, projections);
  const bool quantizes = partition_.of.size == 1 && ReadsBlocks(ffn_);
  pool_.ParallelFor(num_tokens_, kTokensPerChunk, [&](int64_t begin, int64_t end) {
    const auto activate =
        config_.activation == Activation::kSilu ? ops_.silu_mul : ops_.gelu_tanh_mul;
    activate(gate, up, ffn_, ffn_, gate, ffn_, begin, end);
    if (!quantizes) return;
    ops_.quantize(gate, ffn_, ffn_, quantized_.data(), BlocksStride(partition_, ffn_), begin, end);
  });
  Input input = {gate, ffn_, quantizes};
  if (!quantizes) {
    ASSIGN_OR_RETURN(input, Widen(gate, partition_.ffn, weights.down));
  }
  RETURN_IF_ERROR(MultiplyIntoBranch(input, weights.down));
  const bool is_last = layer + 1 == weights_.layers.size();
  AddBranch(weights.post_ffn_norm, is_last ? nullptr : &weights_.layers[layer + 1].attention_norm);
  return absl::OkStatus();
}

int64_t Transformer::Head(const StepBatch& batch, float* logits) {
  int64_t wanting = 0;
  int64_t end = 0;
  for (const SequenceSlice& slice : batch.slices) {
    end += static_cast<int64_t>(slice.token_ids.size());
    if (!slice.wants_logits) continue;
    std::copy_n(residual_.data() + (end - 1) * config_.hidden, config_.hidden,
                last_.data() + wanting * config_.hidden);
    ++wanting;
  }
  if (wanting == 0) return 0;
  ops_.rms_norm(last_.data(), config_.hidden, weights_.output_norm.data(), config_.norm_epsilon,
                config_.hidden, last_.data(), config_.hidden, 0, wanting);
  const int64_t begin = partition_.Own(partition_.vocabulary).begin;
  const Product head[] = {{&weights_.head, logits + begin, config_.vocabulary}};
  Multiply({last_.data(), config_.hidden, false}, wanting, head);
  return wanting;
}

}  // namespace rempart::worker
