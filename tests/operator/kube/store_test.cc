// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/store.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace rempart::op {
namespace {

using k8s::v1::ConfigMap;

const ObjectKey kA = {"ns", "a"};
const ObjectKey kB = {"ns", "b"};

ConfigMap Named(const ObjectKey& key, const std::string& version, const std::string& team) {
  ConfigMap map;
  map.mutable_metadata()->set_namespace_(key.ns);
  map.mutable_metadata()->set_name(key.name);
  map.mutable_metadata()->set_resource_version(version);
  (*map.mutable_data())["team"] = team;
  return map;
}

std::vector<std::string> ByTeam(const ConfigMap& map) { return {map.data().at("team")}; }

class StoreTest : public testing::TestWithParam<StoreForm> {
 protected:
  // Names under a word.
  std::string Under(const std::string& word) const {
    std::string names;
    for (const auto& map : store_.Find(word)) absl::StrAppend(&names, map->metadata().name(), " ");
    std::string keys;
    for (const ObjectKey& key : store_.Keys(word)) absl::StrAppend(&keys, key.name, " ");
    EXPECT_EQ(names, keys);
    return names;
  }

  Store<ConfigMap> store_{ByTeam, GetParam()};
};

TEST_P(StoreTest, WhatIsPutIsReadAndFoundByItsWords) {
  store_.Put(Named(kA, "1", "red"));
  store_.Put(Named(kB, "2", "red"));
  EXPECT_EQ(store_.Get(kA)->SerializeAsString(), Named(kA, "1", "red").SerializeAsString());
  EXPECT_EQ(Under("red"), "a b ");
  store_.Put(Named(kA, "3", "blue"));
  EXPECT_EQ(Under("red"), "b ");
  EXPECT_EQ(Under("blue"), "a ");
  EXPECT_EQ(store_.Version(kA), "3");
  store_.Remove(kA);
  EXPECT_EQ(store_.Get(kA), nullptr);
  EXPECT_FALSE(store_.Has(kA));
  EXPECT_EQ(store_.Version(kA), "");
  EXPECT_EQ(Under("blue"), "");
  EXPECT_EQ(store_.size(), 1u);
}

TEST_P(StoreTest, AReaderKeepsWhatItHasRead) {
  store_.Put(Named(kA, "1", "red"));
  const auto read = store_.Get(kA);
  store_.Put(Named(kA, "2", "blue"));
  EXPECT_EQ(read->data().at("team"), "red");
}

TEST_P(StoreTest, AListTellsWhatIsNewChangedOrGone) {
  store_.Put(Named({"ns", "gone"}, "1", "red"));
  store_.Put(Named({"ns", "same"}, "2", "red"));
  store_.Put(Named({"ns", "changed"}, "3", "red"));
  std::vector<Store<ConfigMap>::Kept> list;
  for (const auto& map : {Named({"ns", "same"}, "2", "red"), Named({"ns", "changed"}, "4", "blue"),
                          Named({"ns", "new"}, "5", "blue")}) {
    list.push_back(store_.Keep(map));
  }
  std::string told;
  for (const auto& one : store_.Replace(list)) absl::StrAppend(&told, one->key().name, " ");
  EXPECT_EQ(told, "changed new gone ");
  EXPECT_EQ(Under("red"), "same ");
  EXPECT_EQ(Under("blue"), "changed new ");
}

// Bytes of such text cannot be read back.
TEST_P(StoreTest, TextThatIsNoUtf8IsKept) {
  store_.Put(Named(kA, "1", "\xff"));
  ASSERT_NE(store_.Get(kA), nullptr);
  EXPECT_EQ(store_.Get(kA)->data().at("team"), "\xff");
}

INSTANTIATE_TEST_SUITE_P(InEachForm, StoreTest,
                         testing::Values(StoreForm::kBytes, StoreForm::kWhole),
                         [](const auto& info) {
                           return info.param == StoreForm::kBytes ? "Bytes" : "Whole";
                         });

}  // namespace
}  // namespace rempart::op
