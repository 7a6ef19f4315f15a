// SPDX-License-Identifier: Apache-2.0
// How much has been computed for whom, so that of equal priorities the client that had less goes
// first: the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
// (OSDI 2024), with one unit per token that a forward pass computes. What comes out of the prefix
// cache costs nothing. Engine thread only.
//
// Invariants:
//  1. A client that comes back starts no lower than the lowest of those that are here: time away
//     earns no credit. It keeps what it had above that.
//  2. Clients without sequences are remembered only while that makes a difference.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace rempart::worker {

struct Client {
  int64_t service = 0;  // tokens
  int32_t live = 0;     // sequences
  int32_t index = 0;    // in the state of the step; the engine's
};

class ClientShares {
 public:
  // One more sequence of the client. The pointer lives until its last sequence has left.
  Client* Join(const std::string& name);
  void Leave(Client* client);

  // By name. Those with `live` of 0 are remembered only.
  std::map<std::string, Client>& clients() { return clients_; }

 private:
  std::map<std::string, Client> clients_;
};

}  // namespace rempart::worker
