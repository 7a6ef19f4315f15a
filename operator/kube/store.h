// SPDX-License-Identifier: Apache-2.0
// The last known state of all objects of one type, with an index over words of the caller's choice.
// Any thread reads; only the Informer writes.
// Objects are kept as bytes, and made whole when somebody reads them: a message takes some ten
// times what it says, and most of ten thousand are read seldom. What is read often may be kept
// whole. What a reader gets never changes: it may keep it as long as it likes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/check.h"
#include "common/mutex.h"
#include "operator/kube/resource.h"

namespace rempart::op {

enum class StoreForm { kBytes, kWhole };

// One object, as it is kept.
template <typename T>
class Stored {
 public:
  Stored(const T& object, StoreForm form)
      : key_(KeyOf(object)), version_(object.metadata().resource_version()) {
    if (form == StoreForm::kBytes) bytes_ = object.SerializeAsString();
    // Text that is no UTF-8 can be written as bytes, but not be read again.
    if (form == StoreForm::kBytes && T().ParseFromString(bytes_)) return;
    bytes_ = {};
    whole_ = std::make_shared<const T>(object);
  }

  const ObjectKey& key() const { return key_; }
  const std::string& version() const { return version_; }
  std::shared_ptr<const T> Read() const {
    if (whole_ != nullptr) return whole_;
    auto object = std::make_shared<T>();
    CHECK(object->ParseFromString(bytes_)) << key_.ToString();
    return object;
  }

 private:
  const ObjectKey key_;
  const std::string version_;
  std::string bytes_;
  std::shared_ptr<const T> whole_;  // instead of bytes_
};

template <typename T>
class Store {
 public:
  using Pointer = std::shared_ptr<const T>;
  using Kept = std::shared_ptr<const Stored<T>>;
  // The words under which an object is found.
  using Words = std::function<std::vector<std::string>(const T&)>;

  explicit Store(Words words = {}, StoreForm form = StoreForm::kBytes)
      : words_(std::move(words)), form_(form) {}

  // Null when there is none.
  Pointer Get(const ObjectKey& key) const { return Read(Find(key)); }

  bool Has(const ObjectKey& key) const { return Find(key) != nullptr; }

  // The version of the object; empty when there is none.
  std::string Version(const ObjectKey& key) const {
    const Kept found = Find(key);
    return found == nullptr ? "" : found->version();
  }

  // In the order of their keys.
  std::vector<Pointer> All() const { return Read(AllKept()); }
  std::vector<Kept> AllKept() const {
    std::vector<Kept> found;
    MutexLock lock(&mu_);
    found.reserve(objects_.size());
    for (const auto& [key, object] : objects_) found.push_back(object);
    return found;
  }

  // Those that have this word, in the order of their keys.
  std::vector<Pointer> Find(const std::string& word) const {
    std::vector<Kept> found;
    {
      MutexLock lock(&mu_);
      const auto keys = index_.find(word);
      if (keys != index_.end()) {
        for (const auto& [key, object] : keys->second) found.push_back(object);
      }
    }
    return Read(found);
  }

  std::vector<ObjectKey> Keys(const std::string& word) const {
    std::vector<ObjectKey> found;
    MutexLock lock(&mu_);
    const auto keys = index_.find(word);
    if (keys == index_.end()) return found;
    for (const auto& [key, object] : keys->second) found.push_back(key);
    return found;
  }

  size_t size() const {
    MutexLock lock(&mu_);
    return objects_.size();
  }

  // The form in which Replace takes an object.
  Kept Keep(const T& object) const { return std::make_shared<const Stored<T>>(object, form_); }

  void Put(const T& object) {
    const Kept kept = Keep(object);
    MutexLock lock(&mu_);
    const Kept before = std::exchange(objects_[kept->key()], kept);
    if (before != nullptr) Unlist(*before);
    Enlist(kept);
  }

  void Remove(const ObjectKey& key) {
    MutexLock lock(&mu_);
    const auto found = objects_.find(key);
    if (found == objects_.end()) return;
    const Kept removed = std::move(found->second);
    objects_.erase(found);
    Unlist(*removed);
  }

  // Swaps in a whole list at once. Returns every object that is new, changed or gone.
  std::vector<Kept> Replace(const std::vector<Kept>& list) {
    std::map<ObjectKey, Kept> fresh;
    for (const Kept& object : list) fresh[object->key()] = object;
    std::vector<Kept> changed;
    MutexLock lock(&mu_);
    for (const auto& [key, object] : fresh) {
      const auto old = objects_.find(key);
      if (old == objects_.end() || old->second->version() != object->version()) {
        changed.push_back(object);
      }
    }
    for (const auto& [key, object] : objects_) {
      if (fresh.find(key) == fresh.end()) changed.push_back(object);
    }
    objects_ = std::move(fresh);
    index_.clear();
    for (const auto& [key, object] : objects_) Enlist(object);
    return changed;
  }

 private:
  static Pointer Read(const Kept& kept) { return kept == nullptr ? nullptr : kept->Read(); }
  static std::vector<Pointer> Read(const std::vector<Kept>& kept) {
    std::vector<Pointer> objects;
    objects.reserve(kept.size());
    for (const Kept& one : kept) objects.push_back(one->Read());
    return objects;
  }

  Kept Find(const ObjectKey& key) const {
    MutexLock lock(&mu_);
    const auto found = objects_.find(key);
    return found == objects_.end() ? nullptr : found->second;
  }

  void Enlist(const Kept& object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!words_) return;
    for (const std::string& word : words_(*object->Read())) index_[word][object->key()] = object;
  }
  void Unlist(const Stored<T>& object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!words_) return;
    for (const std::string& word : words_(*object.Read())) {
      const auto found = index_.find(word);
      if (found == index_.end()) continue;
      found->second.erase(object.key());
      if (found->second.empty()) index_.erase(found);
    }
  }

  const Words words_;
  const StoreForm form_;
  mutable Mutex mu_;
  std::map<ObjectKey, Kept> objects_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::map<ObjectKey, Kept>> index_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rempart::op
