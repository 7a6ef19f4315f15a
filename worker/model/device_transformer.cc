// SPDX-License-Identifier: Apache-2.0
#include "worker/model/device_transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

constexpr int64_t kBlock = kernels::kKvBlockTokens;
constexpr int64_t kMaxCopies = 4096;  // of blocks in one step

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t TokensOf(const SequenceSlice& slice) {
  return static_cast<int64_t>(slice.token_ids.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceTransformer>> DeviceTransformer::Create(
    Device& device, const ModelConfig& config, const Weights& weights,
    const DeviceModelOptions& options, const UploadOptions& upload, CollectiveLibrary* library) {
  CHECK(weights.partition.of.size == 1 || weights.partition.cut == MatrixCut::kPairs);
  std::unique_ptr<DeviceTransformer> made(
      new DeviceTransformer(device, config, weights.partition, options));
  RETURN_IF_ERROR(made->Allocate(weights, upload, library));
  return made;
}

DeviceTransformer::DeviceTransformer(Device& device, const ModelConfig& config,
                                     const Partition& partition, const DeviceModelOptions& options)
    : device_(device),
      config_(config),
      partition_(partition),
      options_(options),
      heads_(partition.heads.count()),
      kv_heads_(partition.kv_heads.count()),
      ffn_(partition.Own(partition.ffn).count()),
      graphs_(device, /*has_peers=*/partition.of.size > 1) {}

absl::Status DeviceTransformer::Allocate(const Weights& weights, const UploadOptions& upload,
                                         CollectiveLibrary* library) {
  ASSIGN_OR_RETURN(const int64_t weights_bytes, DeviceWeightsBytes(config_, weights, options_));
  ASSIGN_OR_RETURN(const DeviceMemory memory, device_.Memory());
  ASSIGN_OR_RETURN(
      plan_, PlanDeviceMemory(config_, weights_bytes, options_, memory.free_bytes, partition_.of));
  ASSIGN_OR_RETURN(weights_, UploadWeights(device_, config_, weights, options_, upload));
  const DeviceWorkspace& space = plan_.workspace;
  if (space.exchange_bytes > 0) {
    ASSIGN_OR_RETURN(exchange_, CollectiveBuffer::Make(library, device_, space.exchange_bytes));
  }
  ASSIGN_OR_RETURN(workspace_, DeviceBuffer::Make(device_, space.bytes - space.exchange_bytes));
  ASSIGN_OR_RETURN(kv_, DeviceBuffer::Make(device_, plan_.kv_blocks * plan_.kv_block_bytes));
  ASSIGN_OR_RETURN(copy_pairs_, DeviceBuffer::Make(device_, kMaxCopies * 8));
  for (Step& step : steps_) {
    ASSIGN_OR_RETURN(step.copies, PinnedBuffer::Make(device_, kMaxCopies * 8));
    ASSIGN_OR_RETURN(step.inputs, PinnedBuffer::Make(device_, space.bytes - space.inputs));
    ASSIGN_OR_RETURN(step.lists, PinnedBuffer::Make(device_, 2 * 4 * space.listed));
    ASSIGN_OR_RETURN(step.masks, PinnedBuffer::Make(device_, 4 * space.slices * space.mask_words));
    ASSIGN_OR_RETURN(step.results, PinnedBuffer::Make(device_, 2 * 4 * space.slices));
  }
  ASSIGN_OR_RETURN(sampled_staging_, PinnedBuffer::Make(device_, kRun * space.slices * 4));
  if (reads_logits()) {
    const int64_t logits = partition_.of.size * space.slices * space.vocabulary;
    ASSIGN_OR_RETURN(logits_staging_, PinnedBuffer::Make(device_, logits * 4));
  }
  RETURN_IF_ERROR(AllocateForStages());
  PlaceInputs();
  return device_.Finish();
}

void DeviceTransformer::SetCommunicator(DeviceCommunicator* communicator) {
  graphs_.Clear();
  // What is queued holds its collectives.
  if (communicator_ != nullptr) DropSteps();
  communicator_ = communicator;
}

void DeviceTransformer::DropSteps() {
  device_.Finish().IgnoreError();  // who computes next finds it, too
  ended_ = begun_;
  for (Step& step : steps_) step.row_of_wanted.clear();
}

absl::Status DeviceTransformer::AwaitAll() {
  return is_one_of_several() ? communicator_->Finish() : device_.Finish();
}

void DeviceTransformer::PlaceInputs() {
  const DeviceWorkspace& space = plan_.workspace;
  const auto place = [&](kernels::DeviceSampling* sampling) {
    Inputs inputs;
    inputs.sampling = sampling;
    auto* base = reinterpret_cast<int32_t*>(sampling + space.slices);
    const auto take = [&](int64_t count) {
      int32_t* at = base;
      base += count;
      return at;
    };
    inputs.ids = take(space.tokens);
    inputs.positions = take(space.tokens);
    inputs.slice_of_token = take(space.tokens);
    inputs.starts = take(space.slices + 1);
    inputs.contexts = take(space.slices);
    inputs.rows = take(space.slices);
    inputs.sources = take(space.slices);
    inputs.tile_slices = take(space.max_tiles);
    inputs.tile_indices = take(space.max_tiles);
    inputs.tables = take(space.slices * space.table_stride);
    return inputs;
  };
  for (Step& step : steps_) step.host = place(step.inputs.as<kernels::DeviceSampling>());
  on_device_ = place(At<kernels::DeviceSampling>(space.inputs));
}

absl::Status DeviceTransformer::Check(const StepBatch& batch) const {
  int64_t tokens = 0;
  const auto is_block = [&](int32_t id) { return id >= 0 && id < plan_.kv_blocks; };
  for (const BlockCopy& copy : batch.copies) {
    if (!is_block(copy.source) || !is_block(copy.destination)) {
      return absl::InvalidArgumentError(
          absl::StrCat("no KV block ", copy.source, " or ", copy.destination));
    }
  }
  for (const SequenceSlice& slice : batch.slices) {
    tokens += TokensOf(slice);
    const int64_t end = slice.first_position + TokensOf(slice);
    const int64_t blocks = CeilDivide(end, kBlock);
    if (slice.token_ids.empty() || slice.first_position < 0 || end > options_.context_length ||
        static_cast<int64_t>(slice.block_table.size()) < blocks) {
      return absl::InvalidArgumentError(absl::StrCat("a slice has no tokens, ends after ",
                                                     options_.context_length,
                                                     " tokens, or has too short a block table"));
    }
    if (slice.sampling != nullptr) {
      RETURN_IF_ERROR(CheckSampling(*slice.sampling, config_.vocabulary));
    }
    if (slice.follows >= 0) RETURN_IF_ERROR(CheckFollows(slice));
    for (const int32_t id : slice.token_ids) {
      if (id < 0 || id >= config_.vocabulary) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", id, " is outside the vocabulary of ", config_.vocabulary));
      }
    }
    for (int64_t i = 0; i < blocks; ++i) {
      if (!is_block(slice.block_table[i])) {
        return absl::InvalidArgumentError(absl::StrCat("no KV block ", slice.block_table[i]));
      }
    }
  }
  const auto slices = static_cast<int64_t>(batch.slices.size());
  if (tokens > plan_.workspace.tokens || slices > options_.max_sequences ||
      static_cast<int64_t>(batch.copies.size()) > kMaxCopies) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step of ", tokens, " tokens, ", slices, " slices and ", batch.copies.size(),
                     " copies; the limits are ", plan_.workspace.tokens, ", ",
                     options_.max_sequences, " and ", kMaxCopies));
  }
  return absl::OkStatus();
}

void DeviceTransformer::QueueCopies(const StepBatch& batch) {
  // One launch each: a later copy may read what an earlier one wrote.
  auto* pairs = staged().copies.as<int32_t>();
  for (size_t i = 0; i < batch.copies.size(); ++i) {
    pairs[2 * i] = batch.copies[i].source;
    pairs[2 * i + 1] = batch.copies[i].destination;
  }
  const auto count = static_cast<int64_t>(batch.copies.size());
  if (count == 0) return;
  device_.CopyIn(copy_pairs_.as<int32_t>(), pairs, count * 8);
  for (int64_t i = 0; i < count; ++i) {
    device_.ops().copy_blocks({kv_.as<uint8_t>(), kv_.as<uint8_t>(),
                               copy_pairs_.as<int32_t>() + 2 * i, plan_.kv_block_bytes, 1},
                              device_.stream());
  }
}

void DeviceTransformer::PutToken(int64_t row, int32_t id, int32_t position, int32_t slice) {
  const Inputs& host = staged().host;
  host.ids[row] = id;
  host.positions[row] = position;
  host.slice_of_token[row] = slice;
}

DeviceTransformer::StepShape DeviceTransformer::StageInputs(const StepBatch& batch) {
  const Inputs& host = staged().host;
  std::vector<size_t>& order = staged().order;
  order.resize(batch.slices.size());
  std::iota(order.begin(), order.end(), 0);
  // Decodes first: the two kinds of attention each see a run of slices.
  std::stable_partition(order.begin(), order.end(),
                        [&](size_t i) { return TokensOf(batch.slices[i]) == 1; });
  StepShape shape;
  for (const size_t index : order) {
    const SequenceSlice& slice = batch.slices[index];
    const int64_t count = TokensOf(slice);
    const int64_t context = slice.first_position + count;
    const auto place = static_cast<int32_t>(shape.slices);
    host.starts[place] = static_cast<int32_t>(shape.tokens);
    host.contexts[place] = static_cast<int32_t>(context);
    std::copy_n(slice.block_table.data(), CeilDivide(context, kBlock),
                host.tables + place * plan_.workspace.table_stride);
    for (int64_t i = 0; i < count; ++i) {
      PutToken(shape.tokens + i, slice.token_ids[i], slice.first_position + static_cast<int32_t>(i),
               place);
    }
    if (count == 1) {
      ++shape.decodes;
      shape.max_splits =
          std::max(shape.max_splits, CeilDivide(context, plan_.workspace.split_tokens));
    } else {
      for (int64_t tile = 0; tile * kernels::kPrefillTile < count; ++tile) {
        host.tile_slices[shape.tiles] = place;
        host.tile_indices[shape.tiles++] = static_cast<int32_t>(tile);
      }
    }
    shape.tokens += count;
    ++shape.slices;
    host.starts[shape.slices] = static_cast<int32_t>(shape.tokens);
  }
  return shape;
}

void DeviceTransformer::QueueInputs(int64_t slices) {
  const Step& step = staged();
  const Inputs& host = step.host;
  // The tables are last, and of them only the rows in use travel.
  const auto* begin = reinterpret_cast<const int32_t*>(host.sampling);
  const int64_t count = host.tables - begin + slices * plan_.workspace.table_stride;
  device_.CopyIn(on_device_.sampling, begin, count * 4);
  if (step.masked > 0) {
    device_.CopyIn(At<uint32_t>(plan_.workspace.masks), step.masks.as<uint32_t>(),
                   4 * step.masked * plan_.workspace.mask_words);
  }
  if (step.listed == 0) return;
  const int64_t listed = plan_.workspace.listed;
  auto* lists = At<int32_t>(plan_.workspace.lists);
  const auto* staged = step.lists.as<int32_t>();
  device_.CopyIn(lists, staged, step.listed * 4);
  device_.CopyIn(lists + listed, staged + listed, step.listed * 4);
}

kernels::DeviceKv DeviceTransformer::KvOf(size_t layer) const {
  const int64_t bytes = plan_.kv_block_bytes / partition_.layers.count();
  kernels::DeviceKv kv;
  kv.data = kv_.as<uint8_t>() + static_cast<int64_t>(layer) * bytes;
  kv.block_stride_bytes = plan_.kv_block_bytes;
  kv.is_fp8 = options_.kv_is_fp8;
  kv.kv_heads = kv_heads_;
  kv.head_dim = config_.head_dim;
  return kv;
}

kernels::DeviceBatch DeviceTransformer::BatchOf(const StepShape& shape) const {
  kernels::DeviceBatch batch;
  batch.num_tokens = shape.tokens;
  batch.num_slices = shape.slices;
  batch.positions = on_device_.positions;
  batch.slice_of_token = on_device_.slice_of_token;
  batch.query_starts = on_device_.starts;
  batch.contexts = on_device_.contexts;
  batch.block_tables = on_device_.tables;
  batch.table_stride = plan_.workspace.table_stride;
  return batch;
}

absl::Status DeviceTransformer::QueueNorm(const StepShape& shape, const uint16_t* branch,
                                          const float* branch_weight, const float* weight,
                                          uint16_t* out, const int32_t* rows, int64_t num_rows) {
  kernels::AddNormArgs args;
  args.residual = At<float>(plan_.workspace.residual);
  args.branch = branch;
  args.branch_weight = branch_weight;
  args.weight = weight;
  args.eps = config_.norm_epsilon;
  args.out = out;
  args.rows = rows;
  args.num_rows = rows != nullptr ? num_rows : shape.tokens;
  args.cols = config_.hidden;
  if (branch != nullptr && is_one_of_several()) {
    return communicator_->AllReduceNorm(args, shape.tokens);
  }
  device_.ops().add_norm(args, device_.stream());
  return absl::OkStatus();
}

absl::Status DeviceTransformer::QueueProduct(const Product& product, const uint16_t* x,
                                             int64_t x_stride, const ProductRows& y,
                                             int64_t tokens) {
  for (const ProductPart& part : product) {
    if (part.matrix.rows == 0) continue;  // a rank may have none of a small vocabulary
    kernels::DeviceMatmulArgs args;
    args.w = part.matrix;
    args.x = x;
    args.x_stride = x_stride;
    args.y = static_cast<uint8_t*>(y.data) + part.first_row * (y.is_f32 ? 4 : 2);
    args.y_stride = y.stride;
    args.y_is_f32 = y.is_f32;
    args.y_rows = y.rows;
    args.num_tokens = tokens;
    RETURN_IF_ERROR(device_.Matmul(args));
  }
  return absl::OkStatus();
}

absl::Status DeviceTransformer::QueueAttention(const StepShape& shape, size_t layer) {
  const DeviceWorkspace& space = plan_.workspace;
  kernels::DeviceAttentionArgs args;
  args.kv = KvOf(layer);
  args.batch = BatchOf(shape);
  args.q = At<uint16_t>(space.qkv);
  args.q_stride = (heads_ + 2 * kv_heads_) * config_.head_dim;
  // What is around it stays zero, as it was allocated.
  args.out = At<uint16_t>(space.attended) + space.attended_lead;
  args.out_stride = space.attended_stride;
  args.num_heads = heads_;
  args.scale = config_.attention_scale;
  args.softcap = config_.attention_softcap;
  args.window = SpecOf(layer).window;
  args.split_tokens = space.split_tokens;
  args.max_splits = shape.max_splits;
  args.partial = At<float>(space.partial);
  args.tile_slices = on_device_.tile_slices;
  args.tile_indices = on_device_.tile_indices;
  args.num_tiles = shape.tiles;
  if (shape.tiles > 0) device_.ops().attention_prefill(args, device_.stream());
  if (shape.decodes > 0) {
    args.batch.num_slices = shape.decodes;
    device_.ops().attention_decode(args, device_.stream());
  }
  return absl::OkStatus();
}

absl::Status DeviceTransformer::QueueLayer(const StepShape& shape, size_t layer) {
  const DeviceWorkspace& space = plan_.workspace;
  const DeviceLayer& weights = weights_.layers[layer];
  const RopeSpec& rope = config_.ropes[SpecOf(layer).rope];
  const int64_t qkv_width = (heads_ + 2 * kv_heads_) * config_.head_dim;
  auto* normed = At<uint16_t>(space.normed);
  auto* qkv = At<uint16_t>(space.qkv);
  auto* branch = At<uint16_t>(space.branch);
  RETURN_IF_ERROR(QueueProduct(weights.qkv, normed, config_.hidden,
                               {qkv, qkv_width, space.product_rows}, shape.tokens));
  kernels::RopeStoreArgs args;
  args.qkv = qkv;
  args.bias = weights.qkv_bias;
  args.query_norm = weights.query_norm;
  args.key_norm = weights.key_norm;
  args.inverse_frequency = weights_.inverse_frequencies[SpecOf(layer).rope];
  args.rotary_dim = 2 * static_cast<int64_t>(rope.inverse_frequency.size());
  args.layout = rope.layout;
  args.angle_scale = rope.scale;
  args.eps = config_.norm_epsilon;
  args.num_heads = heads_;
  args.kv = KvOf(layer);
  args.batch = BatchOf(shape);
  device_.ops().rope_store(args, device_.stream());
  RETURN_IF_ERROR(QueueAttention(shape, layer));
  const uint16_t* attended =
      At<uint16_t>(space.attended) + space.attended_lead - weights.output_lead;
  RETURN_IF_ERROR(QueueProduct(weights.output, attended, space.attended_stride,
                               {branch, config_.hidden, space.product_rows}, shape.tokens));
  RETURN_IF_ERROR(
      QueueNorm(shape, branch, weights.post_attention_norm, weights.ffn_norm, normed, nullptr, 0));
  auto* gate_up = At<uint16_t>(space.gate_up);
  auto* activated = At<uint16_t>(space.activated);
  RETURN_IF_ERROR(QueueProduct(weights.gate_up, normed, config_.hidden,
                               {gate_up, 2 * ffn_, space.product_rows}, shape.tokens));
  device_.ops().activate(
      {gate_up, activated, config_.activation == Activation::kGeluTanh, shape.tokens, ffn_},
      device_.stream());
  RETURN_IF_ERROR(QueueProduct(weights.down, activated, ffn_,
                               {branch, config_.hidden, space.product_rows}, shape.tokens));
  // The next norm is the next layer's, which another stage may have: then only the sum is of use.
  // After the last layer only the rows that want logits count.
  const bool is_last = layer + 1 == weights_.layers.size();
  if (!is_last || !partition_.of.is_last_stage()) {
    const size_t next = is_last ? layer : layer + 1;
    return QueueNorm(shape, branch, weights.post_ffn_norm, weights_.layers[next].attention_norm,
                     normed, nullptr, 0);
  }
  if (shape.wanting == 0) return absl::OkStatus();
  return QueueNorm(shape, branch, weights.post_ffn_norm, weights_.output_norm,
                   At<uint16_t>(space.last), on_device_.rows, shape.wanting);
}

absl::Status DeviceTransformer::QueueEmbedding(const StepShape& shape) {
  kernels::DeviceEmbedArgs embed;
  embed.table = weights_.embedding;
  embed.first_id = partition_.Own(partition_.vocabulary).begin;
  embed.ids = on_device_.ids;
  embed.scale = config_.embedding_scale;
  embed.out = At<float>(plan_.workspace.residual);
  embed.num_tokens = shape.tokens;
  device_.ops().embed(embed, device_.stream());
  if (!is_one_of_several()) return absl::OkStatus();
  return communicator_->AllReduceSum(embed.out, shape.tokens * config_.hidden, DeviceNumber::kF32);
}

absl::Status DeviceTransformer::QueueStep(const StepShape& shape) {
  const DeviceWorkspace& space = plan_.workspace;
  if (partition_.of.is_first_stage()) RETURN_IF_ERROR(QueueEmbedding(shape));
  RETURN_IF_ERROR(QueueNorm(shape, nullptr, nullptr, weights_.layers[0].attention_norm,
                            At<uint16_t>(space.normed), nullptr, 0));
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    RETURN_IF_ERROR(QueueLayer(shape, layer));
  }
  if (shape.wanting == 0 || !partition_.of.is_last_stage()) return absl::OkStatus();
  RETURN_IF_ERROR(QueueProduct(weights_.head, At<uint16_t>(space.last), config_.hidden,
                               {At<float>(space.logits), space.vocabulary, space.slices, true},
                               shape.wanting));
  if (!is_one_of_several()) return absl::OkStatus();
  return communicator_->AllGather(At<float>(space.logits), At<float>(space.all_logits),
                                  shape.wanting * space.vocabulary * 4);
}

void DeviceTransformer::Pad(StepShape& shape) {
  const Inputs& host = staged().host;
  const int64_t padded = GraphSize(shape.slices);
  for (int64_t i = shape.slices; i < padded; ++i) {
    PutToken(i, -1, -1, static_cast<int32_t>(i));
    host.starts[i + 1] = static_cast<int32_t>(i + 1);
    host.contexts[i] = 0;
    host.rows[i] = static_cast<int32_t>(i);
    host.sources[i] = -1;
  }
  shape.tokens = shape.slices = shape.decodes = shape.wanting = padded;
  shape.max_splits = std::min(GraphSize(shape.max_splits), plan_.workspace.max_splits);
}

absl::Status DeviceTransformer::QueueDecode(const StepShape& shape) {
  if (shape.follows) RETURN_IF_ERROR(QueueFollow(shape));
  RETURN_IF_ERROR(QueueStep(shape));
  if (RecordsDraws()) QueueDraws(shape);
  return absl::OkStatus();
}

void DeviceTransformer::QueueDraws(const StepShape& shape) {
  if (!shape.samples) return;
  QueueSample(shape);
  QueueAdvance(shape);
}

absl::Status DeviceTransformer::StartDecode(const StepShape& shape) {
  // Rank 0 alone draws. Were its draws a part of the shape, it would meet other shapes than the
  // ranks that it shares collectives with.
  const DecodeShape recorded = {shape.slices, shape.max_splits, shape.samples && RecordsDraws(),
                                shape.follows};
  RETURN_IF_ERROR(graphs_.Start(recorded, [&] { return QueueDecode(shape); }));
  if (!RecordsDraws()) QueueDraws(shape);
  return absl::OkStatus();
}

DeviceTransformer::StepShape DeviceTransformer::Stage(const StepBatch& batch, bool draws) {
  StepShape shape = StageInputs(batch);
  StageRows(batch, shape);
  StageSources(batch, shape);
  shape.is_graph =
      shape.slices > 0 && shape.decodes == shape.slices && shape.wanting == shape.slices;
  if (shape.is_graph) Pad(shape);
  StageSampling(batch, shape, draws);
  staged().logit_rows = shape.wanting;
  return shape;
}

absl::Status DeviceTransformer::QueueStaged(const StepShape& shape) {
  QueueInputs(shape.slices);
  if (shape.is_graph) return StartDecode(shape);
  if (shape.follows) RETURN_IF_ERROR(QueueFollow(shape));
  RETURN_IF_ERROR(QueueStep(shape));
  if (shape.samples) QueueSample(shape);
  return absl::OkStatus();
}

absl::StatusOr<bool> DeviceTransformer::Start(const StepBatch& batch, bool draws) {
  RETURN_IF_ERROR(CheckCommunicator());
  if (is_staged()) return absl::FailedPreconditionError("stages hand over step by step");
  if (begun_ - ended_ >= 2) return absl::FailedPreconditionError("two steps run already");
  RETURN_IF_ERROR(Check(batch));
  const StepShape shape = Stage(batch, draws);
  const bool leaves_logits = reads_logits() && staged().leaves_logits();
  if (begun_ > ended_ && leaves_logits && step_before().leaves_logits()) {
    return absl::FailedPreconditionError("a step that gives logits runs already");
  }
  QueueCopies(batch);
  if (shape.slices > 0) {
    RETURN_IF_ERROR(QueueStaged(shape));
    QueueResults(shape);
  }
  device_.Mark(static_cast<int>(begun_++ % 2));
  return reads_logits() && !leaves_logits;
}

absl::Status DeviceTransformer::Forward(const StepBatch& batch, absl::Span<float> logits,
                                        absl::Span<DrawnToken> drawn) {
  RETURN_IF_ERROR(CheckIdle());
  if (is_staged() || batch.micro_batch_tokens > 0) return ForwardInMicroBatches(batch, logits);
  RETURN_IF_ERROR(Start(batch, !drawn.empty()).status());
  return Finish(logits, drawn);
}

}  // namespace rempart::worker
