// SPDX-License-Identifier: Apache-2.0
// A model on ranks whose links are slow: TENSOR ranks in each of STAGES stages, one thread each,
// over TCP through proxies that hold every byte back for DELAY microseconds each way. MICRO is the
// size of micro-batches in tokens, 0 for none, or "auto" as a leader decides. Prints milliseconds
// of a decode step and tokens per second of a prompt, medians, as JSON.
//   link_bench MODEL TENSOR STAGES DELAY MICRO PROMPT_TOKENS
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/comm/connect.h"
#include "worker/comm/socket.h"
#include "worker/group/micro_batch_size.h"
#include "worker/model/model_source.h"
#include "worker/model/rope.h"
#include "worker/model/transformer.h"

namespace rempart::worker {
namespace {

using SteadyClock = std::chrono::steady_clock;
using Micros = std::chrono::microseconds;

constexpr int kDecodes = 12;
constexpr int kPrompts = 3;

// One direction of a proxied connection, until it closes.
void PassLate(int from, int to, Micros delay, const std::stop_token& stop) {
  std::deque<std::pair<SteadyClock::time_point, std::string>> held;
  std::string buffer(1 << 20, '\0');
  while (!stop.stop_requested()) {
    auto wait = std::chrono::nanoseconds(std::chrono::milliseconds(20));
    if (!held.empty()) {
      wait = std::clamp<std::chrono::nanoseconds>(held.front().first - SteadyClock::now(),
                                                  std::chrono::nanoseconds(0), wait);
    }
    pollfd fd = {from, POLLIN, 0};
    const timespec time = {0, wait.count()};
    ppoll(&fd, 1, &time, nullptr);
    if (fd.revents != 0) {
      const ssize_t got = recv(from, buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got == 0) return void(shutdown(to, SHUT_WR));
      if (got > 0) held.emplace_back(SteadyClock::now() + delay, buffer.substr(0, got));
    }
    for (; !held.empty() && held.front().first <= SteadyClock::now(); held.pop_front()) {
      const auto deadline = SteadyClock::now() + std::chrono::seconds(10);
      if (!WriteAll(to, held.front().second, deadline).ok()) return;
    }
  }
}

// Stands before a listener, and passes on what comes to it.
class LateProxy {
 public:
  static absl::StatusOr<std::unique_ptr<LateProxy>> Start(const std::string& target, Micros delay) {
    auto proxy = std::unique_ptr<LateProxy>(new LateProxy(delay));
    ASSIGN_OR_RETURN(proxy->target_, ParseAddress(target));
    ASSIGN_OR_RETURN(const SocketAddress any, ParseAddress("127.0.0.1:0"));
    ASSIGN_OR_RETURN(proxy->listening_, ListenOn(any));
    ASSIGN_OR_RETURN(proxy->address_, LocalAddress(proxy->listening_.get()));
    proxy->accepting_ = std::jthread([&proxy = *proxy](std::stop_token stop) { proxy.Run(stop); });
    return proxy;
  }
  const std::string& address() const { return address_; }

 private:
  explicit LateProxy(Micros delay) : delay_(delay) {}

  void Run(const std::stop_token& stop) {
    std::vector<std::jthread> passing;
    std::deque<Descriptor> open;
    while (!stop.stop_requested()) {
      pollfd fd = {listening_.get(), POLLIN, 0};
      poll(&fd, 1, 20);
      Descriptor client(accept4(listening_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (client.get() < 0) continue;
      auto server = DialOnce(target_, SteadyClock::now() + std::chrono::seconds(5));
      if (!server.ok()) continue;
      for (const int each : {client.get(), server->get()}) {
        SetLinkOptions(each, std::chrono::seconds(30));
      }
      const int near = client.get(), far = server->get();
      open.push_back(std::move(client));
      open.push_back(*std::move(server));
      for (const auto& [from, to] : {std::pair(near, far), std::pair(far, near)}) {
        passing.emplace_back([this, from = from, to = to](const std::stop_token& own) {
          PassLate(from, to, delay_, own);
        });
      }
    }
    passing.clear();
  }

  const Micros delay_;
  SocketAddress target_;
  Descriptor listening_;
  std::string address_;
  std::jthread accepting_;
};

struct Shape {
  int tensor = 1;
  int stages = 1;
  Micros delay{0};
  int32_t micro = -1;  // -1: as a leader decides
  int prompt = 0;
};

// A rank with its weights and its communicator.
struct Rank {
  ThreadPool pool{{.threads = 1}};
  Weights weights;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<Communicator> communicator;
};

absl::Status Connect(const Shape& shape, std::vector<std::unique_ptr<Rank>>& ranks,
                     std::vector<std::unique_ptr<LateProxy>>& proxies) {
  const int size = static_cast<int>(ranks.size());
  std::vector<std::unique_ptr<LinkListener>> listeners;
  GroupEpoch epoch;
  epoch.epoch = 1;
  epoch.key = std::string(32, 'k');
  for (int rank = 0; rank < size; ++rank) {
    ASSIGN_OR_RETURN(auto listener, LinkListener::Listen("127.0.0.1:0"));
    ASSIGN_OR_RETURN(auto proxy, LateProxy::Start(listener->address(), shape.delay));
    epoch.data_addresses.push_back(proxy->address());
    listeners.push_back(std::move(listener));
    proxies.push_back(std::move(proxy));
  }
  std::vector<absl::Status> results(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, own = epoch]() mutable {
      own.pod_index = rank;
      auto made = ConnectGroup(listeners[rank].get(), own, {}, std::chrono::seconds(30), {});
      results[rank] = made.status();
      if (made.ok()) ranks[rank]->communicator = std::move((*made)[0]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

// The same steps on every rank; times of rank 0, in milliseconds, of prompts and then of decodes.
absl::Status Compute(const Shape& shape, Rank& rank, std::vector<double>& times) {
  Transformer& transformer = *rank.transformer;
  transformer.SetCommunicator(rank.communicator.get());
  const int64_t vocabulary = transformer.config().vocabulary;
  std::vector<int32_t> ids(shape.prompt + kDecodes),
      table(ids.size() / kernels::kKvBlockTokens + 1);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(static_cast<int64_t>(i * 7919 + 11) % vocabulary);
  }
  std::iota(table.begin(), table.end(), 0);
  std::vector<float> logits(vocabulary);
  const auto step = [&](int first, int count) -> absl::Status {
    StepBatch batch;
    batch.slices.push_back({absl::MakeConstSpan(ids).subspan(first, count), first, table, true});
    batch.micro_batch_tokens = shape.micro >= 0
                                   ? shape.micro
                                   : MicroBatchTokens(batch, shape.stages, kLeastMicroBatchOnCpu);
    const auto begin = SteadyClock::now();
    RETURN_IF_ERROR(transformer.Forward(batch, absl::MakeSpan(logits)));
    times.push_back(std::chrono::duration<double, std::milli>(SteadyClock::now() - begin).count());
    return absl::OkStatus();
  };
  for (int i = 0; i <= kPrompts; ++i) RETURN_IF_ERROR(step(0, shape.prompt));
  for (int i = 0; i < kDecodes; ++i) RETURN_IF_ERROR(step(shape.prompt + i, 1));
  return absl::OkStatus();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

absl::Status Run(const std::string& path, const Shape& shape) {
  ASSIGN_OR_RETURN(ModelSource source, OpenModel(path));
  ChooseRopes(shape.prompt + kDecodes, source.config);
  RETURN_IF_ERROR(CheckTensorParallel(source.config, shape.tensor));
  RETURN_IF_ERROR(CheckPipelineParallel(source.config, shape.stages));
  const int size = shape.tensor * shape.stages;
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int i = 0; i < size; ++i) {
    Rank& rank = *ranks.emplace_back(std::make_unique<Rank>());
    ASSIGN_OR_RETURN(rank.weights,
                     BindWeights(source.tensors, source.config, kernels::BestOps(), {}, rank.pool,
                                 PositionOf(i, shape.tensor, shape.stages)));
    TransformerOptions options;
    options.kv_blocks = (shape.prompt + kDecodes) / kernels::kKvBlockTokens + 1;
    options.max_step_tokens = shape.prompt;
    ASSIGN_OR_RETURN(rank.transformer, Transformer::Create(source.config, rank.weights,
                                                           kernels::BestOps(), rank.pool, options));
  }
  std::vector<std::unique_ptr<LateProxy>> proxies;
  if (size > 1) RETURN_IF_ERROR(Connect(shape, ranks, proxies));
  std::vector<std::vector<double>> times(size);
  std::vector<absl::Status> results(size);
  std::vector<std::thread> threads;
  for (int i = 0; i < size; ++i) {
    threads.emplace_back([&, i] { results[i] = Compute(shape, *ranks[i], times[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  // The first of each kind warms up.
  const auto first_decode = times[0].begin() + kPrompts + 1;
  const double prompt_ms = Median({times[0].begin() + 1, first_decode});
  const double decode_ms = Median({first_decode + 1, times[0].end()});
  std::printf("{\"decode_ms\": %.3f, \"prompt_tokens_per_second\": %.1f}\n", decode_ms,
              shape.prompt / prompt_ms * 1000);
  return absl::OkStatus();
}

absl::Status Main(int argc, char** argv) {
  Shape shape;
  int delay = 0;
  const bool automatic = argc == 7 && std::string(argv[5]) == "auto";
  if (argc != 7 || !absl::SimpleAtoi(argv[2], &shape.tensor) ||
      !absl::SimpleAtoi(argv[3], &shape.stages) || !absl::SimpleAtoi(argv[4], &delay) ||
      !(automatic || absl::SimpleAtoi(argv[5], &shape.micro)) ||
      !absl::SimpleAtoi(argv[6], &shape.prompt) || shape.prompt < 1 || delay < 0) {
    return absl::InvalidArgumentError("link_bench MODEL TENSOR STAGES DELAY MICRO PROMPT_TOKENS");
  }
  shape.delay = Micros(delay);
  return Run(argv[1], shape);
}

}  // namespace
}  // namespace rempart::worker

int main(int argc, char** argv) {
  const absl::Status status = rempart::worker::Main(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "link_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
