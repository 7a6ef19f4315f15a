// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "absl/strings/str_split.h"
#include "tests/worker/comm/tcp_group.h"

namespace rempart::worker {
namespace {

using ::testing::HasSubstr;

Group MakePlain(int size, const CommunicatorOptions& options) {
  return MakeTcpGroup(size, 1, LinkProtection::kByAddress, options);
}
Group MakeParking(int size, CommunicatorOptions options) {
  options.spin = std::chrono::microseconds(0);
  return MakeTcpGroup(size, 1, LinkProtection::kPlain, options);
}
Group MakeEncrypted(int size, const CommunicatorOptions& options) {
  return MakeTcpGroup(size, 1, LinkProtection::kEncrypted, options);
}
// Two ranks in each pod, where that is possible.
Group MakeMixed(int size, const CommunicatorOptions& options) {
  return MakeTcpGroup(size, size % 2 == 0 ? 2 : 1, LinkProtection::kEncrypted, options);
}

INSTANTIATE_TEST_SUITE_P(Tcp, CommunicatorContract,
                         ::testing::Values(CommunicatorKind{"plain", MakePlain},
                                           CommunicatorKind{"parking", MakeParking},
                                           CommunicatorKind{"encrypted", MakeEncrypted},
                                           CommunicatorKind{"mixed", MakeMixed}),
                         [](const auto& each) { return each.param.name; });

constexpr auto kPatience = std::chrono::minutes(1);

CommunicatorOptions Patient() {
  CommunicatorOptions options;
  options.timeout = std::chrono::minutes(5);
  return options;
}

// Two pods of one rank that are about to link.
class TcpPair : public ::testing::Test {
 protected:
  TcpPair() {
    for (int pod = 0; pod < 2; ++pod) listeners_.push_back(ListenOnLoopback());
  }
  GroupEpoch Epoch(int pod) const {
    return EpochOf(listeners_, pod, 1, LinkProtection::kByAddress);
  }
  auto Connect(const GroupEpoch& group, std::chrono::milliseconds timeout = kPatience,
               const std::stop_token& stop = {}) {
    return ConnectGroup(listeners_[group.pod_index].get(), group, Patient(), timeout, stop);
  }
  // Both pods connect and pass a barrier.
  void ExpectToConnect() {
    Group group(2);
    std::vector<std::thread> threads;
    for (int pod = 0; pod < 2; ++pod) {
      threads.emplace_back([&, pod] {
        auto ranks = Connect(Epoch(pod));
        ASSERT_TRUE(ranks.ok()) << ranks.status();
        EXPECT_TRUE((*ranks)[0]->Barrier().ok());
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  // Tries to connect, again and again, until it is refused for the reason `text`.
  std::string RefusedFor(const GroupEpoch& group, const std::string& text) {
    for (;;) {
      const auto refused = Connect(group, std::chrono::milliseconds(200));
      EXPECT_EQ(refused.status().code(), absl::StatusCode::kDeadlineExceeded);
      const std::string message(refused.status().message());
      if (message.find(text) != std::string::npos) return message;
    }
  }
  SocketAddress Address(int pod) const { return *ParseAddress(listeners_[pod]->address()); }

  std::vector<std::unique_ptr<LinkListener>> listeners_;
};

TEST_F(TcpPair, AMemberOfAnotherEpochIsRefusedAndToldWhy) {
  std::stop_source stop;
  std::thread newer([&] {
    GroupEpoch group = Epoch(0);
    group.epoch = 8;
    EXPECT_EQ(Connect(group, kPatience, stop.get_token()).status().code(),
              absl::StatusCode::kCancelled);
  });
  EXPECT_THAT(RefusedFor(Epoch(1), "it is in epoch 8"),
              HasSubstr("rank 1 has no link to rank 0 at " + listeners_[0]->address() + ": "));
  stop.request_stop();
  newer.join();
}

TEST_F(TcpPair, WhoDoesNotKnowTheKeyIsRefused) {
  std::stop_source stop;
  std::thread other([&] {
    GroupEpoch group = Epoch(0);
    group.key.back() ^= 1;
    EXPECT_FALSE(Connect(group, kPatience, stop.get_token()).ok());
  });
  RefusedFor(Epoch(1), "does not know the key");
  stop.request_stop();
  other.join();
}

// Says hello as a member would, without the key.
TEST_F(TcpPair, AHelloWithoutProofGetsNoLink) {
  std::stop_source stop;
  std::thread pod([&] {
    EXPECT_EQ(Connect(Epoch(0), kPatience, stop.get_token()).status().code(),
              absl::StatusCode::kCancelled);
  });
  Hello hello;
  hello.epoch = 7;
  hello.from = 1;
  hello.to = 0;
  hello.size = 2;
  hello.nonce = std::string(32, 'n');
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  std::string answer;
  do {
    auto fd = DialOnce(Address(0), deadline);
    ASSERT_TRUE(fd.ok());
    ASSERT_TRUE(WriteAll(fd->get(), EncodeHello(hello), deadline).ok());
    answer = *ReadExactly(fd->get(), kAnswerBytes, deadline);
    if (answer[0] != 0) continue;  // the pod has not begun yet
    ASSERT_TRUE(WriteAll(fd->get(), std::string(kProofBytes, 'p'), deadline).ok());
    EXPECT_FALSE(ReadExactly(fd->get(), 1, deadline).ok());
  } while (answer[0] != 0);
  stop.request_stop();
  pod.join();
}

TEST_F(TcpPair, GarbageAndSilenceOnThePortKeepNobodyOut) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  std::vector<Descriptor> silent;
  for (int i = 0; i < 3 * LinkListener::kMaxStrangers; ++i) {
    auto fd = DialOnce(Address(0), deadline);
    ASSERT_TRUE(fd.ok());
    if (i % 2 == 0) {
      WriteAll(fd->get(), "GET / HTTP/1.1\r\nHost: " + std::string(100000, 'x'), deadline)
          .IgnoreError();
    }
    silent.push_back(*std::move(fd));
  }
  ExpectToConnect();
  // All of them are dropped in the end: reading tells it.
  for (const Descriptor& fd : silent) {
    EXPECT_FALSE(ReadExactly(fd.get(), 1, deadline).ok());
    EXPECT_LT(std::chrono::steady_clock::now(), deadline);
  }
}

TEST_F(TcpPair, AGroupMayConnectAgainAndAgain) {
  for (int i = 0; i < 20; ++i) ExpectToConnect();
}

TEST_F(TcpPair, AMissingMemberIsNamed) {
  EXPECT_THAT(RefusedFor(Epoch(0), "it has not dialled"),
              HasSubstr("rank 0 has no link to rank 1 at " + listeners_[1]->address() + ": "));
  const GroupEpoch group = Epoch(1);
  listeners_[0].reset();
  RefusedFor(group, "Connection refused");
}

TEST_F(TcpPair, AnImpossibleMembershipIsRefused) {
  GroupEpoch group = Epoch(0);
  group.key = "short";
  EXPECT_THAT(std::string(Connect(group).status().message()), HasSubstr("has not 32 bytes"));
  group = Epoch(0);
  group.data_addresses[1] = "worker-1:7070";
  EXPECT_THAT(std::string(Connect(group).status().message()),
              HasSubstr("\"worker-1:7070\" is not an address like"));
  group = Epoch(0);
  group.ranks_per_pod = 33;
  EXPECT_THAT(std::string(Connect(group).status().message()), HasSubstr("at most 64 ranks"));
}

// Passes bytes between two sockets, and changes one of them on the way to the second.
void Meddle(int from, int to, int64_t victim, const std::stop_token& stop) {
  int64_t passed = 0;
  while (!stop.stop_requested()) {
    pollfd fds[] = {{from, POLLIN, 0}, {to, POLLIN, 0}};
    poll(fds, 2, 20);
    for (int i = 0; i < 2; ++i) {
      if (fds[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t got = recv(fds[i].fd, buffer, sizeof(buffer), MSG_DONTWAIT);
      if (got == 0) return;
      if (got < 0) continue;
      if (i == 0 && victim >= passed && victim < passed + got) buffer[victim - passed] ^= 0x40;
      if (i == 0) passed += got;
      WriteAll(fds[1 - i].fd, std::string(buffer, got),
               std::chrono::steady_clock::now() + kPatience)
          .IgnoreError();
    }
  }
}

TEST_F(TcpPair, AChangedByteOnTheWireEndsAnEncryptedGroup) {
  auto proxy = LinkListener::Listen("127.0.0.1:0");  // only for a free port
  ASSERT_TRUE(proxy.ok());
  const SocketAddress proxy_address = *ParseAddress((*proxy)->address());
  proxy->reset();
  auto listening = ListenOn(proxy_address);
  ASSERT_TRUE(listening.ok()) << listening.status();
  std::jthread meddler([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      Descriptor from(accept(listening->get(), nullptr, nullptr));
      if (from.get() < 0) {
        std::this_thread::yield();
        continue;
      }
      auto to = DialOnce(Address(0), std::chrono::steady_clock::now() + kPatience);
      ASSERT_TRUE(to.ok());
      // After hello and proof: inside the payload of the first message.
      Meddle(from.get(), to->get(), kHelloBytes + kProofBytes + 100, stop);
    }
  });
  std::vector<absl::Status> results(2);
  std::vector<std::thread> threads;
  for (int pod = 0; pod < 2; ++pod) {
    threads.emplace_back([&, pod] {
      GroupEpoch group = Epoch(pod);
      group.protection = LinkProtection::kEncrypted;
      if (pod == 1) group.data_addresses[0] = FormatAddress(proxy_address);
      auto ranks = Connect(group);
      ASSERT_TRUE(ranks.ok()) << ranks.status();
      std::vector<float> values(1000, 1.0f);
      results[pod] = (*ranks)[0]->AllReduceSum(values.data(), values.size());
      if (results[pod].ok()) results[pod] = (*ranks)[0]->Barrier();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(std::string(results[0].message()), HasSubstr("a record is not authentic"));
  EXPECT_FALSE(results[1].ok());
}

constexpr char kPeerAddresses[] = "REMPART_TEST_PEER_ADDRESSES";

// Pod 1 in a process of its own, which runs the test `name` of this binary; killed in the end.
class PeerProcess {
 public:
  PeerProcess(const std::string& name, const GroupEpoch& group) {
    const std::string filter = "--gtest_filter=" + name;
    const std::string addresses =
        std::string(kPeerAddresses) + "=" + group.data_addresses[0] + "," + group.data_addresses[1];
    std::vector<char*> environment;
    for (char** each = environ; *each != nullptr; ++each) environment.push_back(*each);
    environment.push_back(const_cast<char*>(addresses.c_str()));
    environment.push_back(nullptr);
    std::string self = "/proc/self/exe", also = "--gtest_also_run_disabled_tests";
    std::string filtered = filter;
    char* const arguments[] = {self.data(), filtered.data(), also.data(), nullptr};
    EXPECT_EQ(posix_spawn(&pid_, self.c_str(), nullptr, nullptr, arguments, environment.data()), 0);
  }
  ~PeerProcess() {
    Kill();
    waitpid(pid_, nullptr, 0);
  }
  void Kill() { kill(pid_, SIGKILL); }

  static absl::StatusOr<Group> Connect() {
    const char* addresses = std::getenv(kPeerAddresses);
    if (addresses == nullptr) return absl::FailedPreconditionError("not started by a test");
    GroupEpoch group;
    group.epoch = 7;
    group.key = kTestKey;
    group.pod_index = 1;
    group.data_addresses = absl::StrSplit(addresses, ',');
    const auto listener = ListenOnLoopback();
    return ConnectGroup(listener.get(), group, Patient(), kPatience, {});
  }

 private:
  pid_t pid_ = -1;
};

// Programs of PeerProcess, no tests.
TEST(Peer, DISABLED_ReducesForEver) {
  auto ranks = PeerProcess::Connect();
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  std::vector<float> values(1 << 18);
  while ((*ranks)[0]->AllReduceSum(values.data(), values.size()).ok()) {
  }
}

TEST(Peer, DISABLED_PassesOneBarrier) {
  auto ranks = PeerProcess::Connect();
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  ASSERT_TRUE((*ranks)[0]->Barrier().ok());
  for (;;) pause();
}

TEST_F(TcpPair, AKilledProcessIsNamed) {
  PeerProcess peer("Peer.DISABLED_ReducesForEver", Epoch(1));
  auto ranks = Connect(Epoch(0));
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  Communicator& communicator = *(*ranks)[0];
  std::vector<float> values(1 << 18);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(communicator.AllReduceSum(values.data(), values.size()).ok());
  }
  std::thread killer([&] { peer.Kill(); });
  absl::Status status;
  while (status.ok()) status = communicator.AllReduceSum(values.data(), values.size());
  killer.join();
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 is gone"));
  EXPECT_EQ(communicator.progress().blamed_rank, 1);
}

TEST_F(TcpPair, AKilledProcessIsNoticedBetweenCollectives) {
  PeerProcess peer("Peer.DISABLED_PassesOneBarrier", Epoch(1));
  auto ranks = Connect(Epoch(0));
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  ASSERT_TRUE((*ranks)[0]->Barrier().ok());
  peer.Kill();
  while ((*ranks)[0]->status().ok()) std::this_thread::yield();
  EXPECT_EQ((*ranks)[0]->progress().blamed_rank, 1);
}

}  // namespace
}  // namespace rempart::worker
