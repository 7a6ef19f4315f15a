// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/numbers_as_texts.h"

#include <gtest/gtest.h>

#include <string>

#include "operator/kube/client.h"
#include "proto/k8s/v1/objects.pb.h"
#include "proto/serving/v1alpha1/model.pb.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::Model;

TEST(NumbersAsTexts, AQuantityIsReadAsAPodWouldTakeIt) {
  Model model;
  const auto read = FromJson(
      R"({"metadata": {"name": "m", "generation": 7},
          "spec": {"replicas": 2, "resources": {
            "requests": {"cpu": "100m", "memory": 17179869184},
            "limits": {"nvidia.com/gpu": 2, "rdma/hca": "1", "none": 0}}}})",
      model);
  ASSERT_TRUE(read.ok()) << read;
  EXPECT_EQ(model.spec().replicas(), 2);
  EXPECT_EQ(model.metadata().generation(), 7);
  const auto& requests = model.spec().resources().requests();
  EXPECT_EQ(requests.at("cpu"), "100m");
  EXPECT_EQ(requests.at("memory"), "17179869184");
  const auto& limits = model.spec().resources().limits();
  EXPECT_EQ(limits.at("nvidia.com/gpu"), "2");
  EXPECT_EQ(limits.at("rdma/hca"), "1");
  EXPECT_EQ(limits.at("none"), "0");
}

TEST(NumbersAsTexts, OnlyQuantitiesMayBeNumbers) {
  Model model;
  EXPECT_FALSE(FromJson(R"({"spec": {"servedNames": [1]}})", model).ok());
  EXPECT_FALSE(FromJson(R"({"metadata": {"labels": {"a": 1}}})", model).ok());
  EXPECT_FALSE(FromJson(R"({"spec": {"resources": {"limits": {"cpu": true}}}})", model).ok());
}

TEST(NumbersAsTexts, WhatHasNoSuchNumberStaysAsItIs) {
  const auto* message = Model::descriptor();
  for (const std::string text :
       {R"({"spec":  {"replicas": 2, "resources": {"limits": {"cpu": "2"}}}})", R"({"spec": 3})",
        R"({"spec": {"resources": [1]}})", "[1, 2]", "no JSON", ""}) {
    EXPECT_EQ(NumbersAsTexts(message, text), text);
  }
  const std::string pod = R"({"spec": {"limits": {"cpu": 2}}})";
  EXPECT_EQ(NumbersAsTexts(k8s::v1::Pod::descriptor(), pod), pod);
}

}  // namespace
}  // namespace rempart::op
