// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/nccl_communicator.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/comm/sum_then_norm.h"

namespace rempart::worker {
namespace {

// How often NCCL is asked for errors, and the deadline looked at.
constexpr absl::Duration kLook = absl::Milliseconds(10);
// How long a thread that waits for NCCL to take a call in keeps its core; then it sleeps a little.
constexpr std::chrono::microseconds kSpin{200};
constexpr std::chrono::microseconds kNap{50};

}  // namespace

absl::Status NcclError(const NcclFunctions& nccl, NcclHandle comm, absl::string_view what,
                       int result) {
  const char* const text = nccl.error_text(result);
  const char* const last = nccl.last_error(comm);
  std::string message =
      absl::StrCat("NCCL: ", what, ": ", text != nullptr ? text : "error", " (", result, ")");
  if (last != nullptr && *last != '\0') absl::StrAppend(&message, ": ", last);
  return absl::UnavailableError(message);
}

NcclCommunicator::NcclCommunicator(const NcclFunctions& nccl, Device& device, int rank, int size,
                                   const DeviceCommunicatorOptions& options)
    : nccl_(nccl),
      device_(device),
      rank_(rank),
      size_(size),
      options_(options),
      watch_([this](std::stop_token stop) { Watch(stop); }) {}

NcclCommunicator::~NcclCommunicator() {
  Fail(absl::CancelledError("the communicator has ended"));
  watch_.request_stop();
  watch_.join();
}

absl::Status NcclCommunicator::Connect(const NcclUniqueId& id, const std::stop_token& stop) {
  const auto deadline = Clock::now() + options_.connect_timeout;
  int result = kNcclSuccess;
  device_.Launch([&] {
    NcclConfig config = {sizeof(NcclConfig), kNcclConfigMagic, kNcclConfigVersion,
                         /*blocking=*/0};
    MutexLock lock(&call_mu_);
    result = nccl_.init_rank(&comm_, size_, id, rank_, &config);
  });
  if (result != kNcclSuccess && result != kNcclInProgress) {
    Fail(NcclError(nccl_, nullptr, "joining the group", result));
  } else {
    Settle("joining the group", deadline, stop);
  }
  return status();
}

absl::Status NcclCommunicator::AllReduceSum(void* values, int64_t count, DeviceNumber type) {
  const int number = type == DeviceNumber::kF32 ? kNcclFloat32 : kNcclBfloat16;
  return Queue("all-reduce", [this, values, count, number](NcclHandle comm) {
    return nccl_.all_reduce(values, values, static_cast<size_t>(count), number, kNcclSum, comm,
                            device_.stream());
  });
}

absl::Status NcclCommunicator::AllReduceNorm(const kernels::AddNormArgs& norm, int64_t num_tokens) {
  return SumThenNorm(device_, *this, norm, num_tokens);
}

absl::Status NcclCommunicator::AllGather(const void* own, void* all, int64_t bytes) {
  return Queue("all-gather", [this, own, all, bytes](NcclHandle comm) {
    return nccl_.all_gather(own, all, static_cast<size_t>(bytes), kNcclUint8, comm,
                            device_.stream());
  });
}

absl::StatusOr<bool> NcclCommunicator::Register(void* memory, int64_t bytes) {
  if (!nccl_.has_windows) return false;
  bool is_refused = false;
  RETURN_IF_ERROR(Queue("registering memory", [&](NcclHandle comm) {
    const int result = nccl_.window_register(comm, memory, static_cast<size_t>(bytes), &window_,
                                             kNcclSymmetricWindow);
    // It does not take this memory, and has done nothing.
    is_refused = result == kNcclInvalidArgument || result == kNcclInvalidUsage;
    return is_refused ? kNcclSuccess : result;
  }));
  // It may take it and have no use for it, as where GPUs do not reach each other.
  return !is_refused && window_ != nullptr;
}

absl::Status NcclCommunicator::Queue(const char* what, Call call) {
  RETURN_IF_ERROR(status());
  device_.Launch([this, what, call = std::move(call)] { Run(what, call); });
  return status();
}

void NcclCommunicator::Run(const char* what, const Call& call) {
  const auto deadline = Clock::now() + options_.timeout;
  int result = kNcclSuccess;
  {
    MutexLock lock(&call_mu_);
    if (comm_ == nullptr) return;
    result = call(comm_);
    if (result != kNcclSuccess && result != kNcclInProgress) {
      return Fail(NcclError(nccl_, comm_, what, result));
    }
  }
  if (result == kNcclInProgress) Settle(what, deadline, {});
}

void NcclCommunicator::Settle(const char* what, Clock::time_point deadline,
                              const std::stop_token& stop) {
  const auto begin = Clock::now();
  while (State() == kNcclInProgress && status().ok()) {
    const auto now = Clock::now();
    if (stop.stop_requested()) return Fail(absl::CancelledError("the group is given up"));
    if (now >= deadline) {
      const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(now - begin);
      return Fail(absl::DeadlineExceededError(
          absl::StrCat("NCCL: ", what, ": not done within ", waited.count(), " ms")));
    }
    if (now - begin < kSpin) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kNap);
    }
  }
}

int NcclCommunicator::State() {
  MutexLock lock(&call_mu_);
  if (comm_ == nullptr) return kNcclSuccess;
  int state = kNcclSuccess;
  const int asked = nccl_.async_error(comm_, &state);
  if (asked != kNcclSuccess) state = asked;
  if (state != kNcclSuccess && state != kNcclInProgress) {
    Fail(NcclError(nccl_, comm_, "the group has failed", state));
  }
  return state;
}

absl::Status NcclCommunicator::Finish() {
  return WithinDeadline([this] { return device_.Finish(); });
}

absl::Status NcclCommunicator::Await(int place) {
  return WithinDeadline([this, place] { return device_.Await(place); });
}

absl::Status NcclCommunicator::WithinDeadline(absl::FunctionRef<absl::Status()> wait) {
  RETURN_IF_ERROR(status());
  deadline_ = (Clock::now() + options_.timeout).time_since_epoch().count();
  const absl::Status finished = wait();
  deadline_ = 0;
  // After an abort the device has finished too, with nothing that counts.
  RETURN_IF_ERROR(status());
  return finished;
}

absl::Status NcclCommunicator::status() const {
  MutexLock lock(&mu_);
  return failure_;
}

void NcclCommunicator::Fail(const absl::Status& why) {
  MutexLock lock(&mu_);
  if (failed_) return;
  failed_ = true;
  failure_ = why.ok() ? absl::AbortedError("aborted") : why;
}

void NcclCommunicator::Watch(const std::stop_token& stop) {
  for (;;) {
    {
      MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&failed_), kLook)) break;
    }
    if (stop.stop_requested()) break;
    const Clock::rep deadline = deadline_;
    if (deadline != 0 && Clock::now().time_since_epoch().count() >= deadline) {
      Fail(absl::DeadlineExceededError(absl::StrCat(
          "NCCL: the step's collectives did not end within ", options_.timeout.count(), " ms")));
    }
    State();
  }
  End();
}

void NcclCommunicator::End() {
  NcclHandle comm = nullptr;
  {
    MutexLock lock(&call_mu_);
    std::swap(comm, comm_);
  }
  // Without the lock: it may wait for the graphs that hold its collectives.
  if (comm != nullptr) nccl_.abort(comm);
}

}  // namespace rempart::worker
