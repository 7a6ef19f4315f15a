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
      ffn_(partition.Own(partition.ffn).count()) {}

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
  const auto rows = static_cast<int64_t>(sizeof(kernels::DeviceSampling)) * space.slices;
  ASSIGN_OR_RETURN(sampling_, DeviceBuffer::Make(device_, rows));
  ASSIGN_OR_RETURN(sampling_staging_, PinnedBuffer::Make(device_, rows));
  ASSIGN_OR_RETURN(sampled_, DeviceBuffer::Make(device_, space.slices * 4));
  ASSIGN_OR_RETURN(copy_pairs_, DeviceBuffer::Make(device_, kMaxCopies * 8));
  ASSIGN_OR_RETURN(copy_staging_, PinnedBuffer::Make(device_, kMaxCopies * 8));
  ASSIGN_OR_RETURN(staging_, PinnedBuffer::Make(device_, space.bytes - space.inputs));
  if (reads_logits()) {
    const int64_t logits = partition_.of.size * space.slices * space.vocabulary;
    ASSIGN_OR_RETURN(logits_staging_, PinnedBuffer::Make(device_, logits * 4));
  }
  RETURN_IF_ERROR(AllocateForStages());
  PlaceInputs();
  return device_.Finish();
}

void DeviceTransformer::SetCommunicator(DeviceCommunicator* communicator) {
  graphs_.clear();
  communicator_ = communicator;
}

absl::Status DeviceTransformer::Finish() {
  return is_one_of_several() ? communicator_->Finish() : device_.Finish();
}

void DeviceTransformer::PlaceInputs() {
  const DeviceWorkspace& space = plan_.workspace;
  const auto place = [&](int32_t* base) {
    Inputs inputs;
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
    inputs.tile_slices = take(space.max_tiles);
    inputs.tile_indices = take(space.max_tiles);
    inputs.tables = take(space.slices * space.table_stride);
    return inputs;
  };
  host_ = place(staging_.as<int32_t>());
  on_device_ = place(At<int32_t>(space.inputs));
}

absl::Status DeviceTransformer::Check(const StepBatch& batch, absl::Span<float> logits) const {
  int64_t tokens = 0, wanting = 0;
  const auto is_block = [&](int32_t id) { return id >= 0 && id < plan_.kv_blocks; };
  for (const BlockCopy& copy : batch.copies) {
    if (!is_block(copy.source) || !is_block(copy.destination)) {
      return absl::InvalidArgumentError(
          absl::StrCat("no KV block ", copy.source, " or ", copy.destination));
    }
  }
  for (const SequenceSlice& slice : batch.slices) {
    tokens += TokensOf(slice);
    wanting += slice.wants_logits ? 1 : 0;
    const int64_t end = slice.first_position + TokensOf(slice);
    const int64_t blocks = CeilDivide(end, kBlock);
    if (slice.token_ids.empty() || slice.first_position < 0 || end > options_.context_length ||
        static_cast<int64_t>(slice.block_table.size()) < blocks) {
      return absl::InvalidArgumentError(absl::StrCat("a slice has no tokens, ends after ",
                                                     options_.context_length,
                                                     " tokens, or has too short a block table"));
    }
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
  if (partition_.of.group_rank() == 0 &&
      static_cast<int64_t>(logits.size()) < wanting * config_.vocabulary) {
    return absl::InvalidArgumentError("the logits have too little room");
  }
  return absl::OkStatus();
}

void DeviceTransformer::QueueCopies(const StepBatch& batch) {
  // One launch each: a later copy may read what an earlier one wrote.
  auto* pairs = copy_staging_.as<int32_t>();
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
  host_.ids[row] = id;
  host_.positions[row] = position;
  host_.slice_of_token[row] = slice;
}

DeviceTransformer::StepShape DeviceTransformer::StageInputs(const StepBatch& batch,
                                                            std::vector<size_t>& order) {
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
    host_.starts[place] = static_cast<int32_t>(shape.tokens);
    host_.contexts[place] = static_cast<int32_t>(context);
    std::copy_n(slice.block_table.data(), CeilDivide(context, kBlock),
                host_.tables + place * plan_.workspace.table_stride);
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
        host_.tile_slices[shape.tiles] = place;
        host_.tile_indices[shape.tiles++] = static_cast<int32_t>(tile);
      }
    }
    shape.tokens += count;
    ++shape.slices;
    host_.starts[shape.slices] = static_cast<int32_t>(shape.tokens);
  }
  return shape;
}

void DeviceTransformer::QueueInputs(int64_t slices) {
  // The tables are last, and of them only the rows in use travel.
  const int64_t count = host_.tables - host_.ids + slices * plan_.workspace.table_stride;
  device_.CopyIn(on_device_.ids, host_.ids, count * 4);
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
                                             int64_t x_stride, void* y, int64_t y_stride,
                                             bool y_is_f32, int64_t tokens) {
  for (const ProductPart& part : product) {
    if (part.matrix.rows == 0) continue;  // a rank may have none of a small vocabulary
    kernels::DeviceMatmulArgs args;
    args.w = part.matrix;
    args.x = x;
    args.x_stride = x_stride;
    args.y = static_cast<uint8_t*>(y) + part.first_row * (y_is_f32 ? 4 : 2);
    args.y_stride = y_stride;
    args.y_is_f32 = y_is_f32;
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
  RETURN_IF_ERROR(
      QueueProduct(weights.qkv, normed, config_.hidden, qkv, qkv_width, false, shape.tokens));
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
  RETURN_IF_ERROR(QueueProduct(weights.output, attended, space.attended_stride, branch,
                               config_.hidden, false, shape.tokens));
  RETURN_IF_ERROR(
      QueueNorm(shape, branch, weights.post_attention_norm, weights.ffn_norm, normed, nullptr, 0));
  auto* gate_up = At<uint16_t>(space.gate_up);
  auto* activated = At<uint16_t>(space.activated);
  RETURN_IF_ERROR(QueueProduct(weights.gate_up, normed, config_.hidden, gate_up, 2 * ffn_, false,
                               shape.tokens));
  device_.ops().activate(
      {gate_up, activated, config_.activation == Activation::kGeluTanh, shape.tokens, ffn_},
      device_.stream());
  RETURN_IF_ERROR(
      QueueProduct(weights.down, activated, ffn_, branch, config_.hidden, false, shape.tokens));
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
                               At<float>(space.logits), space.vocabulary, true, shape.wanting));
  if (!is_one_of_several()) return absl::OkStatus();
  return communicator_->AllGather(At<float>(space.logits), At<float>(space.all_logits),
                                  shape.wanting * space.vocabulary * 4);
}

absl::Status DeviceTransformer::QueueSample(const StepShape& shape) {
  kernels::SampleArgs args;
  args.parts = At<float>(plan_.workspace.all_logits);
  args.part_size = plan_.workspace.vocabulary;
  args.part_stride = shape.wanting * plan_.workspace.vocabulary;
  args.vocabulary = config_.vocabulary;
  args.softcap = config_.logit_softcap;
  args.rows = sampling_.as<kernels::DeviceSampling>();
  args.tokens = sampled_.as<int32_t>();
  args.num_rows = shape.wanting;
  device_.ops().sample(args, device_.stream());
  device_.ops().advance(
      {sampled_.as<int32_t>(), on_device_.ids, on_device_.positions, on_device_.contexts,
       sampling_.as<kernels::DeviceSampling>(), shape.wanting},
      device_.stream());
  return absl::OkStatus();
}

absl::Status DeviceTransformer::StartDecode(const StepShape& shape, bool samples) {
  const auto key = std::make_tuple(shape.slices, shape.max_splits, samples);
  auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    ASSIGN_OR_RETURN(std::unique_ptr<DeviceGraph> graph, device_.Record([&]() -> absl::Status {
      RETURN_IF_ERROR(QueueStep(shape));
      return samples ? QueueSample(shape) : absl::OkStatus();
    }));
    found = graphs_.emplace(key, std::move(graph)).first;
  }
  return device_.Start(*found->second);
}

absl::Status DeviceTransformer::Forward(const StepBatch& batch, absl::Span<float> logits) {
  RETURN_IF_ERROR(CheckCommunicator());
  RETURN_IF_ERROR(Check(batch, logits));
  QueueCopies(batch);
  if (batch.slices.empty()) return Finish();
  float* const all = partition_.of.group_rank() == 0 ? logits.data() : logits_.data();
  int64_t rows = 0;
  for (const StepBatch& part : MicroBatches(batch)) {
    RETURN_IF_ERROR(ComputeMicroBatch(part, all, rows));
  }
  return is_staged() ? FinishStages(all, rows) : absl::OkStatus();
}

absl::Status DeviceTransformer::ComputeMicroBatch(const StepBatch& batch, float* logits,
                                                  int64_t& first_row) {
  std::vector<size_t> order;
  StepShape shape = StageInputs(batch, order);
  std::vector<int64_t> row_of_slice(batch.slices.size(), -1);
  for (size_t place = 0; place < order.size(); ++place) {
    if (!batch.slices[order[place]].wants_logits) continue;
    row_of_slice[order[place]] = shape.wanting;
    host_.rows[shape.wanting++] = host_.starts[place + 1] - 1;
  }
  const int64_t tokens = shape.tokens;
  int64_t wanted = std::exchange(first_row, first_row + shape.wanting);
  const bool is_decode = shape.decodes == shape.slices && shape.wanting == shape.slices;
  if (is_decode) {
    // Padded to the size of a graph by slices without a token.
    const int64_t padded = GraphSize(shape.slices);
    for (int64_t i = shape.slices; i < padded; ++i) {
      PutToken(i, -1, -1, static_cast<int32_t>(i));
      host_.starts[i + 1] = static_cast<int32_t>(i + 1);
      host_.contexts[i] = 0;
      host_.rows[i] = static_cast<int32_t>(i);
    }
    shape.tokens = shape.slices = shape.decodes = shape.wanting = padded;
    shape.max_splits = std::min(GraphSize(shape.max_splits), plan_.workspace.max_splits);
  }
  if (!partition_.of.is_first_stage()) RETURN_IF_ERROR(ReceiveResidual(tokens));
  QueueInputs(shape.slices);
  RETURN_IF_ERROR(is_decode ? StartDecode(shape, false) : QueueStep(shape));
  if (!partition_.of.is_last_stage()) return SendResidual(tokens);
  if (shape.wanting > 0 && reads_logits()) {
    device_.CopyOut(logits_staging_.as<float>(), At<float>(plan_.workspace.all_logits),
                    partition_.of.size * shape.wanting * plan_.workspace.vocabulary * 4);
  }
  RETURN_IF_ERROR(Finish());
  if (!reads_logits()) return absl::OkStatus();
  for (const int64_t row : row_of_slice) {
    if (row < 0) continue;
    ReadLogits(row, shape.wanting, logits + wanted++ * config_.vocabulary);
  }
  return absl::OkStatus();
}

void DeviceTransformer::ReadLogits(int64_t row, int64_t rows, float* to) const {
  const int64_t part = plan_.workspace.vocabulary;
  for (int64_t first = 0; first < config_.vocabulary; first += part) {
    std::copy_n(logits_staging_.as<float>() + first * rows + row * part,
                std::min(part, config_.vocabulary - first), to + first);
  }
  if (config_.logit_softcap == 0.0f) return;
  for (int64_t i = 0; i < config_.vocabulary; ++i) {
    to[i] = config_.logit_softcap * std::tanh(to[i] / config_.logit_softcap);
  }
}

absl::Status DeviceTransformer::DecodeMany(absl::Span<const DecodeSequence> sequences,
                                           int64_t steps, std::vector<int32_t>* tokens) {
  const auto count = static_cast<int64_t>(sequences.size());
  StepBatch checked;
  int64_t longest = 0;
  for (const DecodeSequence& sequence : sequences) {
    checked.slices.push_back({{&sequence.token_id, 1},
                              sequence.position + static_cast<int32_t>(steps) - 1,
                              sequence.block_table,
                              false});
    longest = std::max(longest, sequence.position + steps);
  }
  if (is_staged()) {
    return absl::FailedPreconditionError("a token of one stage is known when all have computed it");
  }
  RETURN_IF_ERROR(CheckCommunicator());
  RETURN_IF_ERROR(Check(checked, {}));
  if (count == 0 || steps == 0) return absl::OkStatus();
  const int64_t padded = GraphSize(count);
  auto* sampling = sampling_staging_.as<kernels::DeviceSampling>();
  for (int64_t i = 0; i < padded; ++i) {
    const bool is_padding = i >= count;
    PutToken(i, is_padding ? -1 : sequences[i].token_id, is_padding ? -1 : sequences[i].position,
             static_cast<int32_t>(i));
    host_.starts[i] = static_cast<int32_t>(i);
    host_.starts[i + 1] = static_cast<int32_t>(i + 1);
    host_.contexts[i] = is_padding ? 0 : sequences[i].position + 1;
    host_.rows[i] = static_cast<int32_t>(i);
    sampling[i] = is_padding ? kernels::DeviceSampling{} : sequences[i].sampling;
    if (is_padding) continue;
    std::copy_n(sequences[i].block_table.data(), CeilDivide(sequences[i].position + steps, kBlock),
                host_.tables + i * plan_.workspace.table_stride);
  }
  QueueInputs(count);
  device_.CopyIn(sampling_.as<uint8_t>(), sampling, sampling_staging_.bytes());
  if (sampled_staging_.bytes() < steps * padded * 4) {
    ASSIGN_OR_RETURN(sampled_staging_, PinnedBuffer::Make(device_, steps * padded * 4));
  }
  auto* sampled = sampled_staging_.as<int32_t>();
  StepShape shape;
  shape.tokens = shape.slices = shape.decodes = shape.wanting = padded;
  shape.max_splits = std::min(GraphSize(CeilDivide(longest, plan_.workspace.split_tokens)),
                              plan_.workspace.max_splits);
  for (int64_t step = 0; step < steps; ++step) {
    RETURN_IF_ERROR(StartDecode(shape, true));
    device_.CopyOut(sampled + step * padded, sampled_.as<int32_t>(), padded * 4);
  }
  RETURN_IF_ERROR(Finish());
  tokens->resize(steps * count);
  for (int64_t step = 0; step < steps; ++step) {
    std::copy_n(sampled + step * padded, count, tokens->data() + step * count);
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
