// SPDX-License-Identifier: Apache-2.0
// The verbs of the Kubernetes API over JSON texts, and Api<T> over protobuf messages. There is no
// PUT: what this client has not read whole it cannot overwrite. Any thread.
//
// Errors: NotFound 404; AlreadyExists and Aborted (a conflict) 409; OutOfRange 410;
// InvalidArgument 400 and 422; PermissionDenied 403; Unauthenticated 401; ResourceExhausted 429;
// Unavailable when there is no answer and for 5xx.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "operator/kube/resource.h"
#include "operator/kube/transport.h"

namespace rempart::op {

// OK for 2xx; else the code and the message of the Status object in the body.
absl::Status FromKubeResponse(const HttpResponse& response);

// Protobuf JSON in the API's spelling; unknown fields are ignored when read.
std::string ToJson(const google::protobuf::Message& message);
absl::Status FromJson(absl::string_view json, google::protobuf::Message& message);

enum class WatchKind { kAdded, kModified, kDeleted, kBookmark };

struct WatchEvent {
  WatchKind kind = WatchKind::kAdded;
  std::string object_json;
  std::string resource_version;
};

// One line of a watch. The error of an ERROR event, or InvalidArgument for what is none.
absl::StatusOr<WatchEvent> ParseWatchLine(absl::string_view line);

// Takes one object of a list, as JSON; an error ends the list.
using OnItem = std::function<absl::Status(absl::string_view json)>;

struct WatchOptions {
  std::string ns = {};
  std::string label_selector = {};
  std::string resource_version = {};
  // The server ends the stream after this.
  int timeout_seconds = 290;
};

class Client {
 public:
  // The transport outlives the client.
  explicit Client(Transport* transport) : transport_(transport) {}

  absl::StatusOr<std::string> Get(const ResourceType& type, const ObjectKey& key) const;
  // All pages, one in memory at a time, and of several lists that come at once, one page is taken
  // apart at a time: its parts take several times its size. A list that expires between pages is
  // OutOfRange. Returns the version of the list. `on_item` asks nothing of the client.
  absl::StatusOr<std::string> List(const ResourceType& type, absl::string_view ns,
                                   absl::string_view label_selector, const OnItem& on_item) const;
  // Until the server ends the stream, `on_event` returns false, or a stop: all OK.
  absl::Status Watch(const ResourceType& type, const WatchOptions& options,
                     const std::function<bool(WatchEvent)>& on_event, std::stop_token stop) const;
  absl::StatusOr<std::string> Create(const ResourceType& type, const ObjectKey& key,
                                     std::string json) const;
  // Server-side apply of the whole intent of `field_owner`, taking over contested fields.
  absl::StatusOr<std::string> Apply(const ResourceType& type, const ObjectKey& key,
                                    absl::string_view subresource, std::string json,
                                    absl::string_view field_owner) const;
  // With metadata.resourceVersion in the patch it is a compare-and-swap.
  absl::StatusOr<std::string> MergePatch(const ResourceType& type, const ObjectKey& key,
                                         std::string json) const;
  // Its dependents go too, in the background. With a uid, only that incarnation. Without
  // `grace_seconds`, what the object itself says. OK when it is gone.
  absl::Status Delete(const ResourceType& type, const ObjectKey& key, absl::string_view uid,
                      std::optional<int32_t> grace_seconds = std::nullopt) const;

  // Requests that have been sent, watches apart: all of them, those other than reads, and of these
  // the renewals of the lease, which go on when nothing else does.
  int64_t calls() const { return calls_; }
  int64_t writes() const { return writes_; }
  int64_t lease_writes() const { return lease_writes_; }

 private:
  absl::StatusOr<std::string> Send(HttpRequest request) const;
  // Hands over the items; the version and the mark of the next page, empty after the last.
  absl::Status ReadPage(const ResourceType& type, const std::string& body, const OnItem& on_item,
                        std::string& version, std::string& next) const;

  Transport* const transport_;
  mutable Mutex reading_;  // held while a page is taken apart
  mutable std::atomic<int64_t> calls_ = 0;
  mutable std::atomic<int64_t> writes_ = 0;
  mutable std::atomic<int64_t> lease_writes_ = 0;
};

template <typename T>
class Api {
 public:
  explicit Api(const Client* client) : client_(client), type_(ResourceOf<T>::Type()) {}

  absl::StatusOr<T> Get(const ObjectKey& key) const { return Parse(client_->Get(type_, key)); }
  absl::StatusOr<std::vector<T>> List(absl::string_view ns,
                                      absl::string_view label_selector = "") const {
    std::vector<T> items;
    const auto version = client_->List(type_, ns, label_selector, [&](absl::string_view json) {
      return FromJson(json, items.emplace_back());
    });
    RETURN_IF_ERROR(version.status());
    return items;
  }
  absl::StatusOr<T> Create(const T& object) const {
    return Parse(client_->Create(type_, KeyOf(object), Json(object)));
  }
  absl::StatusOr<T> Apply(const T& intent, absl::string_view field_owner) const {
    return Parse(client_->Apply(type_, KeyOf(intent), "", Json(intent), field_owner));
  }
  absl::StatusOr<T> ApplyStatus(const T& intent, absl::string_view field_owner) const {
    return Parse(client_->Apply(type_, KeyOf(intent), "status", Json(intent), field_owner));
  }
  absl::StatusOr<T> MergePatchText(const ObjectKey& key, std::string json) const {
    return Parse(client_->MergePatch(type_, key, std::move(json)));
  }
  absl::StatusOr<T> MergePatch(const T& patch) const {
    return Parse(client_->MergePatch(type_, KeyOf(patch), ToJson(patch)));
  }
  absl::Status Delete(const ObjectKey& key, absl::string_view uid = "",
                      std::optional<int32_t> grace_seconds = std::nullopt) const {
    return client_->Delete(type_, key, uid, grace_seconds);
  }
  const ResourceType& type() const { return type_; }

 private:
  std::string Json(T object) const {
    object.set_api_version(type_.ApiVersion());
    object.set_kind(std::string(type_.kind));
    return ToJson(object);
  }
  static absl::StatusOr<T> Parse(absl::StatusOr<std::string> json) {
    RETURN_IF_ERROR(json.status());
    T object;
    RETURN_IF_ERROR(FromJson(*json, object));
    return object;
  }

  const Client* client_;
  ResourceType type_;
};

}  // namespace rempart::op
