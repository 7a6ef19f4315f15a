// SPDX-License-Identifier: Apache-2.0
// The last known state of all objects of one type. Any thread reads; only the Informer writes.
// Objects are immutable once stored: a reader may keep one as long as it likes.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/mutex.h"
#include "operator/kube/resource.h"

namespace rempart::op {

template <typename T>
class Store {
 public:
  using Pointer = std::shared_ptr<const T>;

  // Null when there is none.
  Pointer Get(const ObjectKey& key) const {
    MutexLock lock(&mu_);
    const auto found = objects_.find(key);
    return found == objects_.end() ? nullptr : found->second;
  }

  // In the order of their keys.
  std::vector<Pointer> All() const {
    return Where([](const T&) { return true; });
  }

  template <typename Predicate>
  std::vector<Pointer> Where(const Predicate& predicate) const {
    std::vector<Pointer> found;
    MutexLock lock(&mu_);
    for (const auto& [key, object] : objects_) {
      if (predicate(*object)) found.push_back(object);
    }
    return found;
  }

  // Returns what was there before.
  Pointer Put(T object) {
    auto stored = std::make_shared<const T>(std::move(object));
    MutexLock lock(&mu_);
    return std::exchange(objects_[KeyOf(*stored)], stored);
  }

  Pointer Remove(const ObjectKey& key) {
    MutexLock lock(&mu_);
    const auto found = objects_.find(key);
    if (found == objects_.end()) return nullptr;
    Pointer removed = std::move(found->second);
    objects_.erase(found);
    return removed;
  }

  // Swaps in a whole list at once. Returns every object that is new, changed or gone.
  std::vector<Pointer> Replace(std::vector<T> list) {
    std::map<ObjectKey, Pointer> fresh;
    for (T& object : list) {
      ObjectKey key = KeyOf(object);
      fresh[std::move(key)] = std::make_shared<const T>(std::move(object));
    }
    std::vector<Pointer> changed;
    MutexLock lock(&mu_);
    for (const auto& [key, object] : fresh) {
      const auto old = objects_.find(key);
      if (old == objects_.end() ||
          old->second->metadata().resource_version() != object->metadata().resource_version()) {
        changed.push_back(object);
      }
    }
    for (const auto& [key, object] : objects_) {
      if (fresh.find(key) == fresh.end()) changed.push_back(object);
    }
    objects_ = std::move(fresh);
    return changed;
  }

 private:
  mutable Mutex mu_;
  std::map<ObjectKey, Pointer> objects_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
