// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/client_shares.h"

#include <algorithm>
#include <limits>

#include "common/check.h"

namespace rempart::worker {
namespace {

// Lowest service of a client that has sequences; the lowest number there is when none has.
int64_t Floor(const std::map<std::string, Client>& clients) {
  bool found = false;
  int64_t floor = std::numeric_limits<int64_t>::max();
  for (const auto& [name, client] : clients) {
    if (client.live == 0) continue;
    found = true;
    floor = std::min(floor, client.service);
  }
  return found ? floor : std::numeric_limits<int64_t>::min();
}

}  // namespace

Client* ClientShares::Join(const std::string& name) {
  const int64_t floor = Floor(clients_);
  Client& client = clients_[name];
  if (client.live++ == 0) client.service = std::max(client.service, floor);
  return &client;
}

void ClientShares::Leave(Client* client) {
  CHECK_GT(client->live, 0);
  if (--client->live > 0) return;
  const int64_t floor = Floor(clients_);
  const bool nobody = floor == std::numeric_limits<int64_t>::min();
  std::erase_if(clients_, [&](const auto& entry) {
    return entry.second.live == 0 && (nobody || entry.second.service <= floor);
  });
}

}  // namespace rempart::worker
