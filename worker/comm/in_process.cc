// SPDX-License-Identifier: Apache-2.0
#include "worker/comm/in_process.h"

#include <tuple>
#include <utility>

#include "common/check.h"
#include "worker/comm/memory_link.h"

namespace rempart::worker {

std::vector<std::unique_ptr<Communicator>> CreateInProcess(int size,
                                                           const CommunicatorOptions& options) {
  CHECK(size >= 1 && size <= kMaxRanks);
  std::vector<std::shared_ptr<Waker>> wakers(size);
  for (auto& waker : wakers) waker = std::make_shared<Waker>();
  std::vector<std::vector<std::unique_ptr<Link>>> links(size);
  for (auto& of_rank : links) of_rank.resize(size);
  for (int a = 0; a < size; ++a) {
    for (int b = a + 1; b < size; ++b) {
      std::tie(links[a][b], links[b][a]) = CreateMemoryLink(a, wakers[a], b, wakers[b]);
    }
  }
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.push_back(
        std::make_unique<MeshCommunicator>(rank, std::move(links[rank]), wakers[rank], options));
  }
  return ranks;
}

}  // namespace rempart::worker
