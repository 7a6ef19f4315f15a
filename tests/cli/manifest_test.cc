// SPDX-License-Identifier: Apache-2.0
// What `rempart plan` says of the groups of a manifest.
#include "cli/manifest.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace rempart::cli {
namespace {

std::string ProcessesOf(const std::string& parallelism) {
  const auto models = ParseManifests(
      absl::StrCat("apiVersion: serving.rempart.dev/v1alpha1\nkind: Model\nmetadata: {name: m}\n"
                   "spec: {source: {uri: \"file:///m.gguf\"}, device: gpu, parallelism: {",
                   parallelism, "}}\n"));
  EXPECT_TRUE(models.ok()) << models.status();
  if (!models.ok()) return "";
  const auto plans = PlanLocally(*models);
  EXPECT_TRUE(plans.ok()) << plans.status();
  return plans.ok() ? ProcessesInWords(plans->at(0).groups.at(0)) : "";
}

TEST(ProcessesInWords, CountsThoseThatServeWouldStart) {
  EXPECT_EQ(ProcessesOf(""), "one rempart-worker process");
  EXPECT_EQ(ProcessesOf("tensor: 4"), "one rempart-worker process of 4 ranks");
  EXPECT_EQ(ProcessesOf("tensor: 4, ranksPerPod: 2"), "2 rempart-worker processes of 2 ranks each");
  EXPECT_EQ(ProcessesOf("tensor: 2, ranksPerPod: 1"), "2 rempart-worker processes");
  EXPECT_EQ(ProcessesOf("tensor: 2, pipeline: 3"), "3 rempart-worker processes of 2 ranks each");
}

}  // namespace
}  // namespace rempart::cli
