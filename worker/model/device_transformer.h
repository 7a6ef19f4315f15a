// SPDX-License-Identifier: Apache-2.0
// The decoder of worker/model/transformer.h on a device: the same ModelConfig and the same steps,
// as ops queued on one stream. docs/adr/0011-device-transformer.md says why there are two.
//
// Invariants:
//  1. All memory is allocated at construction, by PlanDeviceMemory; a step allocates nothing on the
//     device, but for a graph that is recorded when a batch size is met for the second time.
//  2. A sequence's logits do not depend on what else is in the batch, as far as the device's Matmul
//     does not.
//  3. One thread uses it.
//  4. Of several ranks that share a stage each has its share of every pair of matrices
//     (MatrixCut::kPairs). All run the same batches; the sums of a layer's two pairs, and of the
//     embedding, pass between their devices, and every rank has the same residual afterwards.
//  5. From stage to stage the residual passes in F32 through the hosts and the ranks' communicator,
//     which encrypts it: stages change nothing in the arithmetic.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/comm/device_communicator.h"
#include "worker/device/device.h"
#include "worker/model/decode_graphs.h"
#include "worker/model/device_memory.h"
#include "worker/model/device_weights.h"
#include "worker/model/step_batch.h"

namespace rempart::worker {

// What DecodeMany continues.
struct DecodeSequence {
  int32_t token_id = 0;                   // the last known token, not yet computed
  int32_t position = 0;                   // of it
  absl::Span<const int32_t> block_table;  // for all steps
  kernels::DeviceSampling sampling;
};

class DeviceTransformer {
 public:
  // The device outlives it, and so does the library that makes the memory of collectives; null: the
  // device. `weights` are cut in pairs, where of several ranks. Refuses, with
  // numbers, what does not fit; Unimplemented names what a GPU does not serve.
  static absl::StatusOr<std::unique_ptr<DeviceTransformer>> Create(
      Device& device, const ModelConfig& config, const Weights& weights,
      const DeviceModelOptions& options, const UploadOptions& upload = {},
      CollectiveLibrary* library = nullptr);

  // Through which a rank of several adds up with the others of its stage, from the next call on; it
  // outlives its use. Null takes it away, and with it the graphs that hold its collectives, and
  // steps that run: it has ended by then. After an error of a communicator the KV cache holds what
  // nobody should read.
  void SetCommunicator(DeviceCommunicator* communicator);
  // Through which a rank of one stage of several talks to the other stages, from the next call on;
  // it outlives its use.
  void SetGroup(Communicator* group);

  // As Transformer::Forward: the batch's copies, then its slices; row i of `logits` [num_wanting,
  // vocabulary] is for the i-th slice that wants logits, and so is drawn[i], where `drawn` is not
  // empty: slices with `sampling` are drawn on the device, as far as there is room for their lists
  // (DeviceWorkspace::listed), and their logits stay there; of several stages none is. Waits for
  // the result, on rank 0 for that of every stage. Of several ranks only rank 0 hands out any;
  // elsewhere both may be empty. FailedPrecondition without communicators that fit, or while a step
  // runs; else their errors.
  absl::Status Forward(const StepBatch& batch, absl::Span<float> logits,
                       absl::Span<DrawnToken> drawn = {});

  // The same in two parts, of one stage alone. Start queues the step behind the one that runs,
  // where there is one, and reads the batch, which may go then; it waits for nothing. Two may run
  // at once, of which one gives logits. Returns whether all that is wanted is drawn on this device,
  // so that slices of the next batch may follow (SequenceSlice::follows), on all ranks: the others
  // get the tokens of rank 0. An error leaves nothing started. InvalidArgument, for a batch that is
  // impossible on every rank.
  absl::StatusOr<bool> Start(const StepBatch& batch, bool draws);
  // Waits for the older of the steps that run.
  absl::Status Finish(absl::Span<float> logits, absl::Span<DrawnToken> drawn);
  // Waits for the device. No step runs any more and none can be followed; their results are lost.
  void DropSteps();

  // `steps` decode steps of all sequences, sampled on the device, each step's inputs made there
  // from the tokens of the one before: the host only starts graphs, and waits once every kRun steps
  // and at the end. tokens: [steps, sequences], the same on all ranks. Not of
  // several stages: FailedPrecondition.
  absl::Status DecodeMany(absl::Span<const DecodeSequence> sequences, int64_t steps,
                          std::vector<int32_t>* tokens);

  static constexpr int64_t kRun = 256;

  bool is_staged() const { return partition_.of.stages > 1; }  // its stage is one of several
  const ModelConfig& config() const { return config_; }
  const DeviceMemoryPlan& plan() const { return plan_; }
  const StreamTimes& upload_times() const { return weights_.times; }
  const std::vector<Sha256>& file_hashes() const { return weights_.file_hashes; }
  // What collectives work on, for DeviceCommunicator::Register; of one rank nothing.
  const CollectiveBuffer& exchange() const { return exchange_; }

 private:
  // The sizes of a step; everything else is in device memory.
  struct StepShape {
    int64_t tokens = 0;
    int64_t slices = 0;
    int64_t decodes = 0;     // the first slices, of one token each
    int64_t tiles = 0;       // of the others
    int64_t max_splits = 0;  // of the decodes
    int64_t wanting = 0;     // rows of logits
    bool is_graph = false;   // decodes alone, padded
    bool samples = false;    // these are drawn from, or capped, on the device
    bool follows = false;    // some ids are those that the step before has drawn
  };
  // A row of logits.
  struct Row {
    int64_t wanted = 0;  // place among the slices that want logits, in the batch's order
    bool is_drawn = false;
    bool has_logprob = false;
  };

  DeviceTransformer(Device& device, const ModelConfig& config, const Partition& partition,
                    const DeviceModelOptions& options);

  absl::Status AllocateForStages();
  absl::Status Allocate(const Weights& weights, const UploadOptions& upload,
                        CollectiveLibrary* library);
  void PlaceInputs();
  absl::Status Check(const StepBatch& batch) const;
  absl::Status CheckFollows(const SequenceSlice& slice) const;
  absl::Status CheckIdle() const;
  absl::Status CheckCommunicator() const;
  bool IsInGroup() const;
  // In bytes, by rank of the stage.
  std::vector<int64_t> ResidualParts(int64_t tokens) const;
  bool is_one_of_several() const { return partition_.of.size > 1; }  // in its stage
  // From the device, for rank 0 of the group. Who does not draws nothing.
  bool reads_logits() const { return partition_.of.rank == 0 && partition_.of.is_last_stage(); }
  void QueueCopies(const StepBatch& batch);
  // Fills a step's staging buffers with a batch, all but its copies.
  StepShape Stage(const StepBatch& batch, bool draws);
  StepShape StageInputs(const StepBatch& batch);
  void StageRows(const StepBatch& batch, StepShape& shape);
  void StageSources(const StepBatch& batch, StepShape& shape);
  // Decodes alone: padded to the size of a graph, by slices without a token.
  void Pad(StepShape& shape);
  // Which rows are drawn on the device, and how.
  void StageSampling(const StepBatch& batch, StepShape& shape, bool draws);
  bool ListTokens(const SliceSampling& sampling, kernels::DeviceSampling& to);
  void StageMask(const SliceSampling& sampling, kernels::DeviceSampling& to);
  // As Forward, in runs of so many tokens as the batch says, through all stages. Draws nothing.
  absl::Status ForwardInMicroBatches(const StepBatch& batch, absl::Span<float> logits);
  // Through the layers of this stage. Logits go to the rows of `logits` from `first_row` on; adds
  // those of the batch to it.
  absl::Status ComputeMicroBatch(const StepBatch& batch, float* logits, int64_t& first_row);
  // The residual of `tokens` tokens, from the stage before to the device, and on to the next stage.
  absl::Status ReceiveResidual(int64_t tokens);
  absl::Status SendResidual(int64_t tokens);
  // Brings `rows` rows of logits to rank 0, or where there are none the word that it is done.
  absl::Status FinishStages(float* logits, int64_t rows);
  void PutToken(int64_t row, int32_t id, int32_t position, int32_t slice);
  void QueueInputs(int64_t slices);

  // Queues what was staged, up to the logits and the draws.
  absl::Status QueueStaged(const StepShape& shape);
  // Queue one part of a step.
  absl::Status QueueStep(const StepShape& shape);
  absl::Status QueueEmbedding(const StepShape& shape);
  absl::Status QueueLayer(const StepShape& shape, size_t layer);
  absl::Status QueueAttention(const StepShape& shape, size_t layer);
  // Where products go; `rows` of them have room.
  struct ProductRows {
    void* data;
    int64_t stride;
    int64_t rows;
    bool is_f32 = false;
  };
  absl::Status QueueProduct(const Product& product, const uint16_t* x, int64_t x_stride,
                            const ProductRows& y, int64_t tokens);
  // Waits for all that is queued, within the communicator's deadline where there is one.
  absl::Status AwaitAll();
  void QueueResults(const StepShape& shape);
  void ReadLogits(int64_t row, int64_t rows, float* to) const;
  // residual += branch, of all ranks; out = norm(residual) * weight. `branch` may be null.
  absl::Status QueueNorm(const StepShape& shape, const uint16_t* branch, const float* branch_weight,
                         const float* weight, uint16_t* out, const int32_t* rows, int64_t num_rows);
  // A step of decodes alone, with its draws; by a graph, as far as all ranks record the same one.
  absl::Status StartDecode(const StepShape& shape);
  // The part of it that is in a graph.
  absl::Status QueueDecode(const StepShape& shape);
  bool RecordsDraws() const { return !is_one_of_several(); }
  void QueueDraws(const StepShape& shape);
  void QueueSample(const StepShape& shape);
  void QueueAdvance(const StepShape& shape);
  absl::Status QueueFollow(const StepShape& shape);
  // Layers are counted from the first of this stage.
  kernels::DeviceKv KvOf(size_t layer) const;
  const LayerSpec& SpecOf(size_t layer) const {
    return config_.layers[partition_.layers.begin + static_cast<int64_t>(layer)];
  }
  kernels::DeviceBatch BatchOf(const StepShape& shape) const;
  template <class T>
  T* At(int64_t offset) const {
    const int64_t exchanged = plan_.workspace.exchange_bytes;
    return reinterpret_cast<T*>(offset < exchanged
                                    ? static_cast<uint8_t*>(exchange_.data()) + offset
                                    : workspace_.as<uint8_t>() + (offset - exchanged));
  }

  Device& device_;
  const ModelConfig config_;
  const Partition partition_;
  const DeviceModelOptions options_;
  const int64_t heads_, kv_heads_, ffn_;        // of this rank
  DeviceCommunicator* communicator_ = nullptr;  // of the ranks that share this stage
  Communicator* group_ = nullptr;               // of all stages
  std::unique_ptr<Communicator> stage_part_;    // of `group_`: as communicator_, between hosts

  DeviceMemoryPlan plan_;
  DeviceWeights weights_;
  CollectiveBuffer exchange_;
  DeviceBuffer workspace_, kv_, copy_pairs_;
  PinnedBuffer logits_staging_, sampled_staging_;  // of one step that gives logits; of DecodeMany
  PinnedBuffer residual_staging_;                  // [tokens, hidden], of one stage of several
  std::vector<float> logits_;  // [max_sequences, vocabulary], of who reads them for rank 0

  // The inputs of a step: arrays at the same offsets in Step::inputs and in the workspace.
  struct Inputs {
    kernels::DeviceSampling* sampling;  // [rows of logits]
    int32_t *ids, *positions, *slice_of_token, *starts, *contexts, *rows, *sources, *tile_slices,
        *tile_indices, *tables;
  };
  // A step on the host's side, from its staging to its end. Two take turns: the device may not have
  // read what the one has staged yet when the other is staged.
  struct Step {
    PinnedBuffer inputs, lists, masks, copies, results;
    Inputs host = {};
    int64_t listed = 0;         // of `lists`
    int64_t masked = 0;         // rows of `masks`
    std::vector<size_t> order;  // slices of the batch as they are computed: decodes first
    std::vector<Row> rows;      // of logits
    std::vector<int32_t> row_of_wanted;
    int64_t logit_rows = 0;       // of the padded batch
    bool leaves_logits() const {  // to the host
      return std::any_of(rows.begin(), rows.end(), [](const Row& row) { return !row.is_drawn; });
    }
  };
  const Step& step_before() const { return steps_[(begun_ + 1) % 2]; }
  Step& staged() { return steps_[begun_ % 2]; }

  Inputs on_device_ = {};
  std::array<Step, 2> steps_;  // step number n is steps_[n % 2]
  int64_t begun_ = 0;
  int64_t ended_ = 0;

  DecodeGraphs graphs_;
};

}  // namespace rempart::worker
