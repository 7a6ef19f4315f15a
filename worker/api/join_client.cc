// SPDX-License-Identifier: Apache-2.0
#include "worker/api/join_client.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "worker/api/group_wire.h"

namespace rempart::worker {
namespace {

constexpr int64_t kMiB = 1 << 20;

using group::v1::FromMember;
using group::v1::Progress;
using group::v1::ToMember;

constexpr absl::Duration kProgressPeriod = absl::Milliseconds(500);
// How often a request to stop is looked for; a change of phase is sent at once.
constexpr absl::Duration kLook = absl::Milliseconds(50);
constexpr absl::Duration kFirstPause = absl::Milliseconds(200);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
// While operators are there and it is not settled which of them leads.
constexpr absl::Duration kFirstRedirectPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestRedirectPause = absl::Seconds(1);
// A leader's machine that does not answer must not hold up the search for the next leader.
constexpr absl::Duration kConnectLimit = absl::Seconds(3);

Progress::Phase WirePhase(Phase phase) {
  switch (phase) {
    case Phase::kStarting:
      return Progress::STARTING;
    case Phase::kConnecting:
      return Progress::CONNECTING;
    case Phase::kLoading:
      return Progress::LOADING;
    case Phase::kLoaded:
      return Progress::LOADED;
    case Phase::kWarmingUp:
      return Progress::WARMING_UP;
    case Phase::kReady:
      return Progress::READY;
    case Phase::kDraining:
      return Progress::DRAINING;
    case Phase::kFailed:
      return Progress::FAILED;
  }
  return Progress::PHASE_UNSPECIFIED;
}

}  // namespace

const char* PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kStarting:
      return "starting";
    case Phase::kConnecting:
      return "connecting";
    case Phase::kLoading:
      return "loading";
    case Phase::kLoaded:
      return "loaded";
    case Phase::kWarmingUp:
      return "warming_up";
    case Phase::kReady:
      return "ready";
    case Phase::kDraining:
      return "draining";
    case Phase::kFailed:
      return "failed";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<JoinClient>> JoinClient::Start(const std::string& control_address,
                                                              const TlsConfig& tls,
                                                              JoinIdentity identity,
                                                              JoinHandlers handlers,
                                                              const WorkerStatus* status) {
  RETURN_IF_ERROR(ChannelCredentials(tls, control_address).status());
  return std::unique_ptr<JoinClient>(
      new JoinClient(control_address, tls, std::move(identity), std::move(handlers), status));
}

JoinClient::JoinClient(std::string control_address, TlsConfig tls, JoinIdentity identity,
                       JoinHandlers handlers, const WorkerStatus* status)
    : control_address_(std::move(control_address)),
      tls_(std::move(tls)),
      identity_(std::move(identity)),
      handlers_(std::move(handlers)),
      status_(status),
      thread_([this](std::stop_token stop) { Run(stop); }) {}

JoinClient::~JoinClient() {
  thread_.request_stop();
  MutexLock lock(&mu_);
  stopping_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

void JoinClient::Flush(absl::Duration timeout) {
  const Phase wanted = status_->snapshot().phase;
  const auto sent = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return phase_sent_ == wanted; };
  MutexLock lock(&mu_);
  mu_.AwaitWithTimeout(absl::Condition(&sent), timeout);
}

FromMember JoinClient::IdentityFrame() const {
  FromMember frame;
  group::v1::Identity* identity = frame.mutable_identity();
  identity->set_group_name(identity_.group_name);
  identity->set_pod_index(identity_.pod_index);
  identity->set_pod_name(identity_.pod_name);
  identity->set_pod_uid(identity_.pod_uid);
  identity->set_node_name(identity_.node_name);
  identity->set_address(identity_.address);
  identity->set_version(identity_.version);
  identity->set_data_address(identity_.data_address);
  identity->set_config_hash(identity_.config_hash);
  identity->set_pod_count(identity_.pod_count);
  identity->set_ranks_per_pod(identity_.ranks_per_pod);
  for (const auto& [key, value] : identity_.facts) (*identity->mutable_facts())[key] = value;
  return frame;
}

FromMember JoinClient::ProgressFrame(const StatusSnapshot& snapshot) const {
  FromMember frame;
  Progress* progress = frame.mutable_progress();
  progress->set_phase(WirePhase(snapshot.phase));
  progress->set_bytes_done(snapshot.bytes_done);
  progress->set_bytes_total(snapshot.bytes_total);
  progress->set_message(snapshot.message);
  progress->set_reason(snapshot.reason);
  progress->set_digest(snapshot.digest);
  progress->set_epoch(snapshot.epoch);
  progress->set_ended_epoch(snapshot.ended_epoch);
  progress->set_ended_reason(snapshot.ended_reason);
  progress->set_ended_blamed_rank(snapshot.ended_blamed_rank);
  progress->set_weight_bytes_read(snapshot.weight_bytes_read);
  group::v1::Fabric* fabric = progress->mutable_fabric();
  fabric->set_all_reduce_microseconds(snapshot.fabric.all_reduce_microseconds);
  fabric->set_mib_per_second(snapshot.fabric.mib_per_second);
  fabric->set_microseconds_per_token(snapshot.fabric_microseconds_per_token);
  fabric->set_one_shot_kib(static_cast<int32_t>(snapshot.one_shot.max_bytes >> 10));
  for (const StartPart& part : snapshot.start_parts) {
    group::v1::StartPart& told = *progress->add_start();
    told.set_part(part.name);
    told.set_milliseconds(static_cast<int32_t>(absl::ToInt64Milliseconds(part.time)));
  }
  for (const int size : snapshot.tensor_sizes) progress->add_tensor_sizes(size);
  if (const DeviceMemoryNeeds& needs = snapshot.rank_memory; needs.weights_bytes > 0) {
    const auto mib = [](int64_t bytes) { return static_cast<int32_t>((bytes + kMiB - 1) / kMiB); };
    group::v1::RankMemory& told = *progress->mutable_rank_memory();
    told.set_weights_mib(mib(needs.weights_bytes));
    told.set_workspace_mib(mib(needs.workspace_bytes));
    told.set_kv_cache_mib(mib(needs.kv_bytes));
    told.set_reserve_mib(mib(needs.reserve_bytes));
  }
  if (handlers_.requests) progress->set_requests(handlers_.requests());
  if (handlers_.node_warning) progress->set_node_warning(handlers_.node_warning());
  if (!handlers_.ranks) return frame;
  for (const RankStatus& rank : handlers_.ranks()) WriteRank(rank, progress->add_ranks());
  return frame;
}

void JoinClient::HandleMessages(grpc::ClientReaderWriter<FromMember, ToMember>& stream,
                                Outcome& outcome) {
  ToMember message;
  while (stream.Read(&message)) {
    switch (message.kind_case()) {
      case ToMember::kEpoch: {
        {
          MutexLock lock(&mu_);
          epoch_ = message.epoch().epoch();
        }
        if (handlers_.on_epoch) handlers_.on_epoch(message.epoch());
        break;
      }
      case ToMember::kDrain:
        if (handlers_.on_drain)
          handlers_.on_drain(absl::Seconds(message.drain().deadline_seconds()));
        break;
      case ToMember::kResume:
        if (handlers_.on_resume) handlers_.on_resume();
        break;
      case ToMember::kAbort:
        LogWarning("join", "epoch aborted",
                   {{"epoch", message.abort().epoch()},
                    {"reason", message.abort().reason()},
                    {"blamed_rank", message.abort().blamed_rank()}});
        if (handlers_.on_abort) handlers_.on_abort(message.abort());
        break;
      case ToMember::kGo:
        if (handlers_.on_go) handlers_.on_go(message.go().epoch());
        break;
      case ToMember::kRedirect:
        outcome.redirected = true;
        outcome.leader_address = message.redirect().leader_address();
        break;
      case ToMember::KIND_NOT_SET:
        break;
    }
  }
}

JoinClient::Outcome JoinClient::RunStream(const std::string& address, std::stop_token stop) {
  Outcome outcome;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(kConnectLimit)));
  // A connection of its own: behind one address each may meet another operator.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const absl::StatusOr<std::shared_ptr<grpc::Channel>> channel = Dial(tls_, address, arguments);
  if (!channel.ok()) {
    LogWarning("join", "cannot dial",
               {{"address", address}, {"error", channel.status().message()}});
    return outcome;
  }
  grpc::ClientContext context;
  FromMember identity = IdentityFrame();
  {
    MutexLock lock(&mu_);
    if (stopping_) return outcome;
    context_ = &context;
    identity.mutable_identity()->set_last_epoch(epoch_);
  }
  auto stub = group::v1::GroupControl::NewStub(*channel);
  auto stream = stub->Join(&context);
  bool alive = outcome.carried = stream->Write(identity);
  std::atomic<bool> over = false;
  std::jthread reader([&] {
    HandleMessages(*stream, outcome);
    over = true;
  });
  Phase last_phase = Phase::kStarting;
  int64_t last_gpus = 0;
  absl::Time next = absl::InfinitePast();
  while (alive && !over && !stop.stop_requested()) {
    const StatusSnapshot snapshot = status_->snapshot();
    // Before a phase that may be the end, so that whoever hears of it knows why.
    if (const int64_t version = GpuVersion(); version != last_gpus) {
      last_gpus = version;
      FromMember frame;
      *frame.mutable_gpus() = handlers_.gpus();
      alive = stream->Write(frame);
    }
    if (alive && (snapshot.phase != last_phase || SteadyNow() >= next)) {
      last_phase = snapshot.phase;
      next = SteadyNow() + kProgressPeriod;
      alive = stream->Write(ProgressFrame(snapshot));
      MutexLock lock(&mu_);
      if (alive) phase_sent_ = snapshot.phase;
    }
    status_->AwaitPhaseAfter(last_phase, kLook);
  }
  if (alive && !over) context.TryCancel();  // stopping; a broken stream ends by itself
  reader.join();
  const grpc::Status status = stream->Finish();
  // Refused, not broken: whether it will ever be wanted again is not for this process to say.
  if (status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) outcome.carried = false;
  MutexLock lock(&mu_);
  context_ = nullptr;
  if (outcome.redirected) {
    phase_sent_ = Phase::kStarting;  // nobody has heard more
    LogInfo("join", "redirected", {{"from", address}, {"leader", outcome.leader_address}});
  } else if (!stopping_) {
    LogWarning("join", "stream broke", {{"address", address}, {"error", status.error_message()}});
  }
  return outcome;
}

void JoinClient::Run(std::stop_token stop) {
  std::string address = control_address_;
  absl::Duration pause = kFirstPause;
  absl::Duration redirect_pause = absl::ZeroDuration();
  while (!stop.stop_requested()) {
    const Outcome outcome = RunStream(address, stop);
    address = control_address_;
    absl::Duration wait;
    if (outcome.redirected) {
      // The first word is followed at once; when operators send a worker around, it slows down.
      const bool follows = redirect_pause == absl::ZeroDuration();
      if (!outcome.leader_address.empty()) address = outcome.leader_address;
      if (outcome.leader_address.empty() && follows) redirect_pause = kFirstRedirectPause;
      wait = redirect_pause;
      redirect_pause = std::clamp(redirect_pause * 2, kFirstRedirectPause, kLongestRedirectPause);
      pause = kFirstPause;
    } else {
      redirect_pause = absl::ZeroDuration();
      wait = pause = outcome.carried ? kFirstPause : std::min(pause * 2, kLongestPause);
    }
    MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&stopping_), wait);
  }
}

}  // namespace rempart::worker
