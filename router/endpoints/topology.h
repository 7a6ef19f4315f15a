// SPDX-License-Identifier: Apache-2.0
// What the router knows of the cluster: models and the groups that serve them. Plain data,
// published whole; whoever holds a copy may keep it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rempart::topology::v1 {
class Snapshot;
}

namespace rempart::router {

struct GroupEntry {
  std::string group_name;
  std::string address;
  bool ready = false;
  bool draining = false;

  bool operator==(const GroupEntry&) const = default;
};

struct ModelEntry {
  std::string model_name;
  std::vector<std::string> served_names;
  std::vector<GroupEntry> groups;
  int64_t created_unix_seconds = 0;
  int32_t context_length = 0;
};

struct Topology {
  std::vector<ModelEntry> models;

  // The model that clients ask for by this name, or null.
  const ModelEntry* FindServed(absl::string_view served_name) const;
};

using TopologyPtr = std::shared_ptr<const Topology>;

// A model without served names is served by its model name. InvalidArgument naming what is missing
// or there twice.
absl::StatusOr<Topology> TopologyFrom(const topology::v1::Snapshot& snapshot);
// topology.v1.Snapshot as protobuf JSON; unknown fields are errors.
absl::StatusOr<Topology> ParseTopology(absl::string_view json);

}  // namespace rempart::router
