// SPDX-License-Identifier: Apache-2.0
// A Store kept equal to the cluster by a Reflector, and those who want to hear of changes. Handlers
// run on the informer's thread: they name what to look at again (WorkQueue::Add), they decide
// nothing.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "operator/kube/reflector.h"
#include "operator/kube/store.h"

namespace rempart::op {

template <typename T>
class Informer {
 public:
  // Called with an object that is new, changed or gone (its last known state).
  using Handler = std::function<void(const T&)>;
  // Takes away what nobody reads, before an object is stored.
  using Trim = std::function<void(T&)>;

  explicit Informer(const Client* client, ReflectorOptions options = {},
                    typename Store<T>::Words words = {}, Trim trim = {},
                    StoreForm form = StoreForm::kBytes)
      : trim_(std::move(trim)),
        store_(std::move(words), form),
        reflector_(client, ResourceOf<T>::Type(), std::move(options),
                   {.replace = [this](const auto& pull) { return Replace(pull); },
                    .change = [this](const WatchEvent& event) { return Change(event); },
                    .resync = [this] { TellAll(); }}) {}

  // Before Run.
  void OnChange(Handler handler) { handlers_.push_back(std::move(handler)); }

  void Run(std::stop_token stop) { reflector_.Run(stop); }

  const Store<T>& store() const { return store_; }
  bool synced() const { return reflector_.synced(); }
  const Reflector& reflector() const { return reflector_; }

 private:
  // More deletions than this between two lists, and the oldest are forgotten.
  static constexpr size_t kMaxDeletedVersions = 4096;

  absl::StatusOr<T> Read(absl::string_view json) const {
    T object;
    RETURN_IF_ERROR(FromJson(json, object));
    if (trim_) trim_(object);
    return object;
  }

  // Each object becomes what is kept of it as it comes: all of them whole would take many times the
  // memory.
  absl::Status Replace(const std::function<absl::Status(const OnItem&)>& pull) {
    std::vector<typename Store<T>::Kept> list;
    RETURN_IF_ERROR(pull([&](absl::string_view json) -> absl::Status {
      ASSIGN_OR_RETURN(const T object, Read(json));
      list.push_back(store_.Keep(object));
      return absl::OkStatus();
    }));
    deleted_versions_.clear();
    for (const auto& changed : store_.Replace(list)) Tell(*changed->Read());
    return absl::OkStatus();
  }

  absl::Status Change(const WatchEvent& event) {
    ASSIGN_OR_RETURN(const T object, Read(event.object_json));
    const ObjectKey key = KeyOf(object);
    const std::string version = object.metadata().resource_version();
    if (IsOlderVersion(version, store_.Version(key))) return absl::OkStatus();
    if (event.kind == WatchKind::kDeleted) {
      if (deleted_versions_.size() >= kMaxDeletedVersions) deleted_versions_.clear();
      deleted_versions_[key] = version;
      store_.Remove(key);
      Tell(object);
      return absl::OkStatus();
    }
    const auto deleted = deleted_versions_.find(key);
    if (deleted != deleted_versions_.end()) {
      if (IsOlderVersion(version, deleted->second)) return absl::OkStatus();
      deleted_versions_.erase(deleted);
    }
    store_.Put(object);
    Tell(object);
    return absl::OkStatus();
  }

  void TellAll() {
    for (const auto& object : store_.AllKept()) Tell(*object->Read());
  }
  void Tell(const T& object) const {
    for (const Handler& handler : handlers_) handler(object);
  }

  const Trim trim_;
  Store<T> store_;
  std::vector<Handler> handlers_;
  std::map<ObjectKey, std::string> deleted_versions_;
  Reflector reflector_;
};

}  // namespace rempart::op
