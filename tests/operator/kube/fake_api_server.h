// SPDX-License-Identifier: Apache-2.0
// A Kubernetes API server in memory, behind the Transport seam: lists in pages, watches with
// versions and 410, server-side apply with field owners, conflicts, preconditions, the status
// subresource, deletion of dependents. kube_contract_test holds it to what the real one does.
// It knows no schemas: what it stores, it stores as it came (of Leases, the times are checked).
//
// Faults are injected by the test: requests that fail, streams that break, events that come twice
// or out of order, a history that is forgotten.
#pragma once

#include <compare>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "google/protobuf/struct.pb.h"
#include "operator/kube/transport.h"

namespace rempart::op {

// Shares of one: of requests that get a 503; of watch events before which the stream breaks, that
// come twice, or that change places with the next event.
struct Faults {
  double fail = 0;
  double break_stream = 0;
  double repeat = 0;
  double swap = 0;
  uint64_t seed = 1;
};

class FakeApiServer : public Transport {
 public:
  FakeApiServer() = default;

  absl::StatusOr<HttpResponse> Send(const HttpRequest& request) override;
  absl::StatusOr<HttpResponse> Stream(const HttpRequest& request,
                                      const std::function<bool(absl::string_view)>& on_line,
                                      std::stop_token stop) override;

  void SetFaults(const Faults& faults);
  // The connection of every open stream breaks.
  void BreakStreams();
  // Watches from versions before now, and lists in progress, get 410.
  void ForgetHistory();
  // The next line of every stream is not JSON.
  void SendGarbage();

 private:
  using Json = google::protobuf::Struct;
  using FieldPath = std::vector<std::string>;

  struct Target {
    std::string collection;  // "/apis/apps/v1/statefulsets"
    std::string kind_path;   // "/apis/apps/v1"
    std::string ns;
    std::string name;
    std::string subresource;
    std::map<std::string, std::string> query;
  };
  struct ObjectId {
    std::string collection;
    std::string ns;
    std::string name;
    auto operator<=>(const ObjectId&) const = default;
  };
  struct Object {
    Json json;
    std::map<std::string, std::map<FieldPath, bool>> owned;  // by field manager
  };
  struct Change {
    int64_t version = 0;
    ObjectId id;
    std::string type;
    Json before;  // empty: it was not there
    Json after;   // of a deletion: the last state, with the version of the deletion
  };
  struct Page {
    int64_t version;
    std::deque<Json> rest;
  };

  static Target ParseTarget(const std::string& path);
  HttpResponse Answer(const HttpRequest& request);
  HttpResponse List(const Target& target);
  HttpResponse NextPage(const std::string& token, size_t limit);
  HttpResponse Create(Target target, Json json);
  HttpResponse Apply(const Target& target, const Json& intent);
  HttpResponse MergePatch(const Target& target, const Json& patch);
  HttpResponse Delete(const Target& target, const Json& options);
  // Stores `json` if it differs from what is there, under a new version.
  HttpResponse Commit(const ObjectId& id, Json json, int code);
  void Erase(const ObjectId& id);
  // As the garbage collector does: what names owners of which none is there goes.
  void CollectGarbage();

  // The lines that a watch has to send next, and the version it has then reached.
  std::vector<std::string> Lines(const Target& target, int64_t& version);
  bool Chance(double share);

  mutable std::mutex mu_;
  std::condition_variable_any changed_;
  std::map<ObjectId, Object> objects_;
  std::vector<Change> history_;
  std::map<std::string, Page> pages_;
  int64_t version_ = 1000;
  int64_t forgotten_ = 1000;  // watches must start here or later
  int64_t stream_epoch_ = 0;  // grows when all streams break
  int64_t garbage_epoch_ = 0;
  int64_t next_uid_ = 1;
  int64_t next_page_ = 0;
  Faults faults_;
  std::mt19937_64 random_;
};

}  // namespace rempart::op
