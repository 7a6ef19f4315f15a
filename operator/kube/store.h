// SPDX-License-Identifier: Apache-2.0
// The last known state of all objects of one type, with an index over words of the caller's choice.
// Any thread reads; only the Informer writes.
// Objects are immutable once stored: a reader may keep one as long as it likes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
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
  // The words under which an object is found.
  using Words = std::function<std::vector<std::string>(const T&)>;

  explicit Store(Words words = {}) : words_(std::move(words)) {}

  // Null when there is none.
  Pointer Get(const ObjectKey& key) const {
    MutexLock lock(&mu_);
    const auto found = objects_.find(key);
    return found == objects_.end() ? nullptr : found->second;
  }

  // In the order of their keys.
  std::vector<Pointer> All() const {
    std::vector<Pointer> found;
    MutexLock lock(&mu_);
    found.reserve(objects_.size());
    for (const auto& [key, object] : objects_) found.push_back(object);
    return found;
  }

  // Those that have this word, in the order of their keys.
  std::vector<Pointer> Find(const std::string& word) const {
    std::vector<Pointer> found;
    MutexLock lock(&mu_);
    const auto keys = index_.find(word);
    if (keys == index_.end()) return found;
    for (const auto& [key, object] : keys->second) found.push_back(object);
    return found;
  }

  size_t size() const {
    MutexLock lock(&mu_);
    return objects_.size();
  }

  // Returns what was there before.
  Pointer Put(T object) {
    auto stored = std::make_shared<const T>(std::move(object));
    const ObjectKey key = KeyOf(*stored);
    MutexLock lock(&mu_);
    Pointer before = std::exchange(objects_[key], stored);
    if (before != nullptr) Unlist(key, *before);
    Enlist(key, stored);
    return before;
  }

  Pointer Remove(const ObjectKey& key) {
    MutexLock lock(&mu_);
    const auto found = objects_.find(key);
    if (found == objects_.end()) return nullptr;
    Pointer removed = std::move(found->second);
    objects_.erase(found);
    Unlist(key, *removed);
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
    index_.clear();
    for (const auto& [key, object] : objects_) Enlist(key, object);
    return changed;
  }

 private:
  void Enlist(const ObjectKey& key, const Pointer& object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!words_) return;
    for (const std::string& word : words_(*object)) index_[word][key] = object;
  }
  void Unlist(const ObjectKey& key, const T& object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!words_) return;
    for (const std::string& word : words_(object)) {
      const auto found = index_.find(word);
      if (found == index_.end()) continue;
      found->second.erase(key);
      if (found->second.empty()) index_.erase(found);
    }
  }

  const Words words_;
  mutable Mutex mu_;
  std::map<ObjectKey, Pointer> objects_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::map<ObjectKey, Pointer>> index_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
