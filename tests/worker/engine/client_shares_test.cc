// SPDX-License-Identifier: Apache-2.0
#include "worker/engine/client_shares.h"

#include <gtest/gtest.h>

namespace rempart::worker {
namespace {

TEST(ClientShares, TimeAwayEarnsNoCredit) {
  ClientShares shares;
  Client* busy = shares.Join("busy");
  busy->service = 1000;
  EXPECT_EQ(shares.Join("new")->service, 1000);
}

TEST(ClientShares, WhoHadMoreThanTheOthersIsNotForgivenByLeaving) {
  ClientShares shares;
  shares.Join("quiet")->service = 10;
  Client* loud = shares.Join("loud");
  loud->service = 500;
  shares.Leave(loud);
  EXPECT_EQ(shares.clients().size(), 2u);
  EXPECT_EQ(shares.Join("loud")->service, 500);
}

TEST(ClientShares, RemembersNobodyForNothing) {
  ClientShares shares;
  Client* first = shares.Join("first");
  Client* second = shares.Join("second");
  first->service = 10;
  second->service = 20;
  shares.Leave(first);
  EXPECT_EQ(shares.clients().size(), 1u) << "it would come back at 20 anyway";
  shares.Leave(second);
  EXPECT_TRUE(shares.clients().empty());
}

TEST(ClientShares, StaysUntilTheLastSequenceLeaves) {
  ClientShares shares;
  Client* client = shares.Join("a");
  EXPECT_EQ(shares.Join("a"), client);
  shares.Leave(client);
  EXPECT_EQ(client->live, 1);
}

}  // namespace
}  // namespace rempart::worker
