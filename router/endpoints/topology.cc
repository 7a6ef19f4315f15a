// SPDX-License-Identifier: Apache-2.0
#include "router/endpoints/topology.h"

#include <google/protobuf/util/json_util.h>

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "proto/topology/v1/topology.pb.h"

namespace rempart::router {
namespace {

ModelEntry ModelFrom(const topology::v1::ModelEntry& from) {
  ModelEntry model;
  model.model_name = from.model_name();
  model.served_names.assign(from.served_names().begin(), from.served_names().end());
  if (model.served_names.empty()) model.served_names.push_back(model.model_name);
  model.created_unix_seconds = from.created_unix_seconds();
  model.context_length = from.context_length();
  for (const topology::v1::GroupEntry& group : from.groups()) {
    model.groups.push_back({group.group_name(), group.address(), group.ready(), group.draining()});
  }
  return model;
}

absl::Status Check(const Topology& topology) {
  std::set<std::string> served, groups;
  for (const ModelEntry& model : topology.models) {
    if (model.model_name.empty()) {
      return absl::InvalidArgumentError("topology: a model has no modelName");
    }
    for (const std::string& name : model.served_names) {
      if (served.insert(name).second) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("topology: two models are served as \"", name, "\""));
    }
    for (const GroupEntry& group : model.groups) {
      if (group.group_name.empty() || group.address.empty()) {
        return absl::InvalidArgumentError(absl::StrCat("topology: a group of ", model.model_name,
                                                       " needs both groupName and address"));
      }
      if (groups.insert(group.group_name).second) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("topology: group ", group.group_name, " is there twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

const ModelEntry* Topology::FindServed(absl::string_view served_name) const {
  for (const ModelEntry& model : models) {
    for (const std::string& name : model.served_names) {
      if (name == served_name) return &model;
    }
  }
  return nullptr;
}

absl::StatusOr<Topology> TopologyFrom(const topology::v1::Snapshot& snapshot) {
  Topology topology;
  for (const topology::v1::ModelEntry& model : snapshot.models()) {
    topology.models.push_back(ModelFrom(model));
  }
  RETURN_IF_ERROR(Check(topology));
  return topology;
}

absl::StatusOr<Topology> ParseTopology(absl::string_view json) {
  topology::v1::Snapshot snapshot;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &snapshot);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("topology: ", std::string(parsed.message())));
  }
  return TopologyFrom(snapshot);
}

}  // namespace rempart::router
