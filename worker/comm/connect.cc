// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/connect.h"

#include <algorithm>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/comm/memory_link.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kAttempt{1000};  // one dial with its handshake
constexpr std::chrono::milliseconds kBetweenAttempts{20};

// Everything that stays the same while a pod connects.
struct Plan {
  const GroupEpoch& group;
  int size;
  bool encrypted;
  SteadyClock::time_point deadline;
  std::chrono::milliseconds call_timeout;
  const std::stop_token& stop;
  std::vector<SocketAddress> addresses;
};

absl::StatusOr<TcpConnection> DialAndProve(const Plan& plan, int from, int to) {
  const auto deadline = std::min(plan.deadline, SteadyClock::now() + kAttempt);
  const SocketAddress& address = plan.addresses[to / plan.group.ranks_per_pod];
  ASSIGN_OR_RETURN(Descriptor fd, DialOnce(address, deadline));
  SetLinkOptions(fd.get(), plan.call_timeout);
  Hello hello;
  hello.epoch = plan.group.epoch;
  hello.from = from;
  hello.to = to;
  hello.size = plan.size;
  hello.encrypted = plan.encrypted;
  hello.nonce = RandomBytes(32);
  const std::string& key = plan.group.key;
  const std::string said = EncodeHello(hello);
  RETURN_IF_ERROR(WriteAll(fd.get(), said, deadline));
  ASSIGN_OR_RETURN(const std::string answer, ReadExactly(fd.get(), kAnswerBytes, deadline));
  RETURN_IF_ERROR(CheckAnswer(answer, key, said));
  RETURN_IF_ERROR(WriteAll(fd.get(), EncodeProof(key, said, answer), deadline));
  ASSIGN_OR_RETURN(const std::string accepted, ReadExactly(fd.get(), 1, deadline));
  if (accepted[0] != kAcceptedByte) return absl::UnauthenticatedError("it does not accept us");
  TcpConnection connection;
  if (plan.encrypted) {
    const LinkSecrets secrets = DeriveSecrets(key, said, answer);
    connection.send_secret = secrets.of_dialler;
    connection.receive_secret = secrets.of_acceptor;
  }
  connection.fd = fd.Release();
  return connection;
}

// Dials until it stands: the other pod may not have heard of the epoch yet.
absl::StatusOr<TcpConnection> Dial(const Plan& plan, int from, int to) {
  for (;;) {
    absl::StatusOr<TcpConnection> connection = DialAndProve(plan, from, to);
    if (connection.ok()) return connection;
    if (plan.stop.stop_requested()) return absl::CancelledError("the epoch was given up");
    if (SteadyClock::now() + kBetweenAttempts >= plan.deadline) {
      return absl::DeadlineExceededError(connection.status().message());
    }
    std::this_thread::sleep_for(kBetweenAttempts);
  }
}

absl::StatusOr<Plan> MakePlan(const GroupEpoch& group, const CommunicatorOptions& options,
                              std::chrono::milliseconds timeout, const std::stop_token& stop) {
  const int pods = static_cast<int>(group.data_addresses.size());
  if (group.ranks_per_pod < 1 || pods < 1 || pods * group.ranks_per_pod > kMaxRanks ||
      group.pod_index < 0 || group.pod_index >= pods) {
    return absl::InvalidArgumentError(absl::StrCat("pod ", group.pod_index, " of ", pods, " with ",
                                                   group.ranks_per_pod, " ranks each: at most ",
                                                   kMaxRanks, " ranks"));
  }
  Plan plan = {
      group, pods * group.ranks_per_pod, false, SteadyClock::now() + timeout, options.timeout, stop,
      {}};
  if (pods == 1) return plan;
  if (group.key.size() != static_cast<size_t>(kKeyBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the key of epoch ", group.epoch, " has not ", kKeyBytes, " bytes"));
  }
  bool all_local = true;
  for (const std::string& text : group.data_addresses) {
    ASSIGN_OR_RETURN(const SocketAddress address, ParseAddress(text));
    all_local = all_local && IsLoopback(address);
    plan.addresses.push_back(address);
  }
  plan.encrypted = group.protection == LinkProtection::kEncrypted ||
                   (group.protection == LinkProtection::kByAddress && !all_local);
  return plan;
}

// The links of one rank to the ranks of other pods.
absl::Status LinkPods(const Plan& plan, LinkListener& listener, int rank,
                      const std::shared_ptr<Waker>& waker,
                      std::vector<std::unique_ptr<Link>>& links) {
  const auto watch = std::make_shared<LinkWatch>();
  const int ranks_per_pod = plan.group.ranks_per_pod;
  for (int peer = 0; peer < plan.size; ++peer) {
    const int pod = peer / ranks_per_pod;
    if (pod == plan.group.pod_index) continue;
    // The later pod dials.
    absl::StatusOr<TcpConnection> connection =
        pod < plan.group.pod_index ? Dial(plan, rank, peer)
                                   : listener.Take(peer, rank, plan.deadline, plan.stop);
    if (!connection.ok()) {
      return absl::Status(connection.status().code(),
                          absl::StrCat("rank ", rank, " has no link to rank ", peer, " at ",
                                       plan.group.data_addresses[pod], ": ",
                                       std::string(connection.status().message())));
    }
    links[peer] = std::make_unique<TcpLink>(rank, peer, *std::move(connection), waker, watch);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Communicator>>> ConnectGroup(
    LinkListener* listener, const GroupEpoch& group, const CommunicatorOptions& options,
    std::chrono::milliseconds timeout, const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const Plan plan, MakePlan(group, options, timeout, stop));
  const int own = group.ranks_per_pod;
  const int first = group.pod_index * own;
  std::vector<std::shared_ptr<Waker>> wakers(own);
  for (auto& waker : wakers) waker = std::make_shared<Waker>();
  std::vector<std::vector<std::unique_ptr<Link>>> links(own);
  for (auto& of_rank : links) of_rank.resize(plan.size);
  for (int a = 0; a < own; ++a) {
    for (int b = a + 1; b < own; ++b) {
      std::tie(links[a][first + b], links[b][first + a]) =
          CreateMemoryLink(first + a, wakers[a], first + b, wakers[b]);
    }
  }
  if (group.data_addresses.size() > 1) {
    if (listener == nullptr) return absl::InvalidArgumentError("no listener for the other pods");
    listener->Admit(
        {group.epoch, group.key, first, own, plan.size, plan.encrypted, options.timeout});
    absl::Status linked;
    for (int i = 0; i < own && linked.ok(); ++i) {
      linked = LinkPods(plan, *listener, first + i, wakers[i], links[i]);
    }
    listener->Close();
    RETURN_IF_ERROR(linked);
  }
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int i = 0; i < own; ++i) {
    ranks.push_back(
        std::make_unique<MeshCommunicator>(first + i, std::move(links[i]), wakers[i], options));
  }
  return ranks;
}

}  // namespace rempart::worker
