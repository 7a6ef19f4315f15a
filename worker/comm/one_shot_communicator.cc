// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/one_shot_communicator.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/comm/device_probe.h"

namespace rempart::worker {
namespace {

using kernels::DType;
using SteadyClock = std::chrono::steady_clock;

// While the ranks are linked, nobody is late for another reason than that he is not reached.
constexpr std::chrono::seconds kLinkTimeout{2};
// How often the library's communicator is asked whether it has ended.
constexpr absl::Duration kLook = absl::Milliseconds(10);
// What is measured: rows of a common hidden size, as a layer has them.
constexpr int64_t kMeasuredCols = 4096;
constexpr int kMeasuredCalls = 10;  // in one graph
constexpr int kMeasuredTimes = 3;

uint64_t Nanoseconds(std::chrono::milliseconds time) {
  return static_cast<uint64_t>(std::chrono::nanoseconds(time).count());
}

// Arrays of a norm, all zeros.
struct NormArrays {
  DeviceBuffer residual, branch, weight, out;
  kernels::AddNormArgs args;

  static absl::StatusOr<NormArrays> Make(Device& device, int64_t rows, int64_t cols) {
    NormArrays arrays;
    ASSIGN_OR_RETURN(arrays.residual, DeviceBuffer::Make(device, rows * cols * 4));
    ASSIGN_OR_RETURN(arrays.branch, DeviceBuffer::Make(device, rows * cols * 2));
    ASSIGN_OR_RETURN(arrays.weight, DeviceBuffer::Make(device, cols * 4));
    ASSIGN_OR_RETURN(arrays.out, DeviceBuffer::Make(device, rows * cols * 2));
    arrays.args.residual = arrays.residual.as<float>();
    arrays.args.branch = arrays.branch.as<uint16_t>();
    arrays.args.weight = arrays.weight.as<float>();
    arrays.args.out = arrays.out.as<uint16_t>();
    arrays.args.num_rows = rows;
    arrays.args.cols = cols;
    return arrays;
  }
};

}  // namespace

// What a rank tells the others of itself.
struct OneShotCommunicator::Offer {
  uint32_t is_given = 0;
  uint32_t epoch = 0;  // that of rank 0 counts
  int64_t buffer_bytes = 0;
  MemoryShare share = {};
};

OneShotCommunicator::OneShotCommunicator(Device& device, Communicator& group,
                                         std::unique_ptr<DeviceCommunicator> library,
                                         std::chrono::milliseconds timeout,
                                         const OneShotOptions& options)
    : device_(device),
      group_(group),
      library_(std::move(library)),
      timeout_(timeout),
      options_(options) {}

OneShotCommunicator::~OneShotCommunicator() {
  Stop();
  if (watch_.joinable()) {
    watch_.request_stop();
    watch_.join();
  }
  // What the library has queued ends with it, and what was queued behind that.
  library_.reset();
  device_.Finish().IgnoreError();
  for (void* const memory : opened_) device_.CloseShared(memory);
}

absl::StatusOr<bool> OneShotCommunicator::Agree(const absl::Status& mine) {
  // A broken one does nothing for the library, either.
  if (!mine.ok()) RETURN_IF_ERROR(device_.Check());
  float agreeing = mine.ok() ? 1.0f : 0.0f;
  RETURN_IF_ERROR(group_.AllReduceSum(&agreeing, 1));
  if (agreeing == static_cast<float>(size())) return true;
  facts_.absence =
      mine.ok() ? "another rank of the group cannot take part" : std::string(mine.message());
  return false;
}

absl::Status OneShotCommunicator::LoadKernels() {
  kernels::PeerGroup alone = peers_;
  alone.slabs[0] = peers_.slabs[rank()];
  alone.rank = 0;
  alone.ranks = 1;
  alone.epoch = 1;
  // One for each variant of the kernel.
  for (const int64_t cols : {4096, 8192, 16384}) {
    if (2 * cols > peers_.buffer_bytes) break;
    ASSIGN_OR_RETURN(const NormArrays arrays, NormArrays::Make(device_, 1, cols));
    RETURN_IF_ERROR(device_.Try([&] {
      device_.ops().all_reduce_norm({alone, arrays.args}, device_.stream());
      for (const DType type : {DType::kF32, DType::kBF16}) {
        device_.ops().all_reduce({alone, arrays.args.out, type, 16}, device_.stream());
      }
    }));
  }
  return absl::OkStatus();
}

absl::Status OneShotCommunicator::MakeOffer(Offer& offer) {
  offer.buffer_bytes = options_.buffer_bytes;
  std::random_device random;
  offer.epoch = std::max<uint32_t>(1, random());
  ASSIGN_OR_RETURN(const Device::Shared shared,
                   device_.ShareMemory(kernels::PeerSlabBytes(options_.buffer_bytes)));
  ASSIGN_OR_RETURN(stop_, PinnedBuffer::Make(device_, sizeof(uint32_t)));
  peers_.slabs[rank()] = shared.memory;
  peers_.rank = rank();
  peers_.ranks = size();
  peers_.buffer_bytes = options_.buffer_bytes;
  peers_.timeout_ns = Nanoseconds(kLinkTimeout);
  peers_.stop = stop_.as<uint32_t>();
  {
    MutexLock lock(&mu_);
    // An abort that came before there was a word for it.
    if (ends_) *peers_.stop = kernels::kPeersStopped;
    stop_word_ = peers_.stop;
  }
  RETURN_IF_ERROR(LoadKernels());
  // What an earlier epoch has counted. Nobody writes here before he has this offer.
  ASSIGN_OR_RETURN(const PinnedBuffer zeros, PinnedBuffer::Make(device_, kernels::kPeerFlagBytes));
  device_.CopyIn(shared.memory, zeros.as<void>(), kernels::kPeerFlagBytes);
  RETURN_IF_ERROR(device_.Finish());
  offer.share = shared.share;
  offer.is_given = 1;
  return absl::OkStatus();
}

absl::Status OneShotCommunicator::OpenOffers(const std::vector<Offer>& offers) {
  peers_.epoch = offers[0].epoch;
  for (int rank = 0; rank < size(); ++rank) {
    const Offer& offer = offers[static_cast<size_t>(rank)];
    if (offer.is_given == 0 || offer.buffer_bytes != peers_.buffer_bytes) {
      return absl::UnavailableError(absl::StrCat("rank ", rank, " shares no memory"));
    }
    if (rank == this->rank()) continue;
    ASSIGN_OR_RETURN(peers_.slabs[rank], device_.OpenShared(offer.share));
    opened_.push_back(peers_.slabs[rank]);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> OneShotCommunicator::AddsRight() {
  absl::StatusOr<SumProbe> probe = SumProbe::Make(device_);
  ASSIGN_OR_RETURN(const bool made, Agree(probe.status()));
  if (!made) return false;
  facts_.max_bytes = peers_.buffer_bytes;
  // Once through each buffer.
  absl::Status right = probe->Run(*this);
  if (right.ok()) right = probe->Run(*this);
  facts_.max_bytes = 0;
  RETURN_IF_ERROR(library_->status());
  return Agree(right);
}

absl::Status OneShotCommunicator::Link() {
  ASSIGN_OR_RETURN(const bool joined, Join());
  return joined ? Measure(nullptr) : absl::OkStatus();
}

absl::StatusOr<bool> OneShotCommunicator::Register(void* memory, int64_t bytes) {
  ASSIGN_OR_RETURN(const bool is_registered, library_->Register(memory, bytes));
  if (!facts_.absence.empty()) return is_registered;
  // That it is on every rank.
  float registered = is_registered && bytes >= peers_.buffer_bytes ? 1.0f : 0.0f;
  RETURN_IF_ERROR(group_.AllReduceSum(&registered, 1));
  if (registered == static_cast<float>(size())) {
    RETURN_IF_ERROR(Measure(static_cast<uint16_t*>(memory)));
  }
  return is_registered;
}

absl::StatusOr<bool> OneShotCommunicator::Join() {
  if (size() > kernels::kMaxPeers) {
    facts_.absence = absl::StrCat("there are more than ", kernels::kMaxPeers, " ranks");
    return false;
  }
  std::vector<Offer> offers(static_cast<size_t>(size()));
  absl::Status mine = MakeOffer(offers[static_cast<size_t>(rank())]);
  if (!mine.ok()) {
    LogWarning("group", "this GPU takes no part in sums in one shot, and so none of its group does",
               {{"rank", rank()}, {"error", mine.message()}});
  }
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i <= size(); ++i) offsets.push_back(i * static_cast<int64_t>(sizeof(Offer)));
  RETURN_IF_ERROR(group_.AllGather({offers.data(), 1, offsets.back(), offsets}));
  if (mine.ok()) mine = OpenOffers(offers);
  ASSIGN_OR_RETURN(const bool reached, Agree(mine));
  if (!reached) return false;
  watch_ = std::jthread([this](std::stop_token stop) { Watch(stop); });
  ASSIGN_OR_RETURN(const bool right, AddsRight());
  // What a kernel has said of a rank that did not come counts no more.
  if (!right) std::atomic_ref(*peers_.stop).store(0);
  return right;
}

absl::StatusOr<double> OneShotCommunicator::TimeNorm(DeviceCommunicator& way,
                                                     const kernels::AddNormArgs& norm) {
  // Ranks give back memory and graphs before. That may wait for what runs on this GPU and on those
  // that reach it, and so for a kernel that waits for this rank.
  RETURN_IF_ERROR(group_.Barrier());
  // What is loaded with the first call cannot be loaded while a graph is recorded.
  RETURN_IF_ERROR(way.AllReduceNorm(norm, norm.num_rows));
  RETURN_IF_ERROR(way.Finish());
  ASSIGN_OR_RETURN(const std::unique_ptr<DeviceGraph> graph, device_.Record([&]() -> absl::Status {
    for (int i = 0; i < kMeasuredCalls; ++i) {
      RETURN_IF_ERROR(way.AllReduceNorm(norm, norm.num_rows));
    }
    return absl::OkStatus();
  }));
  double best = 0;
  for (int time = 0; time <= kMeasuredTimes; ++time) {
    RETURN_IF_ERROR(group_.Barrier());
    const auto begin = SteadyClock::now();
    RETURN_IF_ERROR(device_.Start(*graph));
    RETURN_IF_ERROR(way.Finish());
    const std::chrono::duration<double, std::micro> took = SteadyClock::now() - begin;
    // The first brings code and memory near.
    if (time == 1 || (time > 1 && took.count() < best)) best = took.count();
  }
  return best / kMeasuredCalls;
}

absl::Status OneShotCommunicator::Measure(uint16_t* branch) {
  const auto begin = SteadyClock::now();
  const int64_t most = peers_.buffer_bytes / (kMeasuredCols * 2);
  ASSIGN_OR_RETURN(NormArrays arrays, NormArrays::Make(device_, most, kMeasuredCols));
  if (branch != nullptr) arrays.args.branch = branch;
  peers_.timeout_ns = Nanoseconds(kLinkTimeout);
  facts_.times.clear();
  for (int64_t rows = 1; rows <= most; rows *= 2) {
    arrays.args.num_rows = rows;
    facts_.max_bytes = peers_.buffer_bytes;
    ASSIGN_OR_RETURN(const double one_shot, TimeNorm(*this, arrays.args));
    facts_.max_bytes = 0;
    ASSIGN_OR_RETURN(const double library, TimeNorm(*library_, arrays.args));
    const std::chrono::duration<float, std::milli> spent = SteadyClock::now() - begin;
    float sums[] = {static_cast<float>(one_shot), static_cast<float>(library), spent.count()};
    RETURN_IF_ERROR(group_.AllReduceSum(sums, 3));
    const auto ranks = static_cast<double>(size());
    facts_.times.push_back({rows * kMeasuredCols * 2, sums[0] / ranks, sums[1] / ranks});
    if (sums[2] / ranks > static_cast<double>(options_.measure_time.count())) break;
  }
  facts_.max_bytes =
      options_.use == OneShotUse::kAlways ? peers_.buffer_bytes : Crossover(facts_.times);
  peers_.timeout_ns = Nanoseconds(timeout_);
  return absl::OkStatus();
}

absl::Status OneShotCommunicator::AllReduceSum(void* values, int64_t count, DeviceNumber type) {
  const bool is_f32 = type == DeviceNumber::kF32;
  if (count * (is_f32 ? 4 : 2) > facts_.max_bytes) {
    return library_->AllReduceSum(values, count, type);
  }
  RETURN_IF_ERROR(status());
  device_.ops().all_reduce({peers_, values, is_f32 ? DType::kF32 : DType::kBF16, count},
                           device_.stream());
  return status();
}

absl::Status OneShotCommunicator::AllReduceNorm(const kernels::AddNormArgs& norm,
                                                int64_t num_tokens) {
  if (norm.num_rows * norm.cols * 2 > facts_.max_bytes) {
    return library_->AllReduceNorm(norm, num_tokens);
  }
  RETURN_IF_ERROR(status());
  device_.ops().all_reduce_norm({peers_, norm}, device_.stream());
  return status();
}

absl::Status OneShotCommunicator::UnlessLate(const absl::Status& finished) const {
  RETURN_IF_ERROR(status());
  return finished;
}

void OneShotCommunicator::Abort(const absl::Status& why) {
  library_->Abort(why);
  Stop();
}

absl::Status OneShotCommunicator::status() const {
  RETURN_IF_ERROR(library_->status());
  const uint32_t stop = stop_word();
  if (stop < kernels::kPeerIsLate) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("rank ", stop - kernels::kPeerIsLate,
                                                  " did not come to a sum of the GPUs within ",
                                                  peers_.timeout_ns / 1'000'000, " ms"));
}

uint32_t OneShotCommunicator::stop_word() const {
  uint32_t* const word = stop_word_;
  return word == nullptr ? 0 : std::atomic_ref(*word).load();
}

void OneShotCommunicator::Stop() {
  MutexLock lock(&mu_);
  ends_ = true;
  // Who was late stays known.
  uint32_t* const word = stop_word_;
  if (word != nullptr && stop_word() == 0) std::atomic_ref(*word).store(kernels::kPeersStopped);
}

void OneShotCommunicator::Watch(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    {
      MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&ends_), kLook)) return;
    }
    if (!library_->status().ok()) return Stop();
  }
}

}  // namespace rempart::worker
