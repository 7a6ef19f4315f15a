// SPDX-License-Identifier: Apache-2.0
// What spec.resources gives the pods beside memory and processors: GPUs, whole, in slices and by
// claim, and network cards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "operator/plan/placement.h"
#include "tests/operator/plan/gpu_models.h"

namespace rempart::op {
namespace {

using serving::v1alpha1::ModelSpec;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

TEST(Resources, ClaimsGoInPlaceOfTheDevicePluginAlone) {
  ExpectAcceptance({
      {"a claim in place of the device plugin",
       [](ModelSpec& s) {
         auto& claim = *s.mutable_resources()->add_claims();
         claim.set_name("gpus");
         claim.set_template_("one-h200");
       },
       "", ""},
      {"a claim beside the device plugin",
       [](ModelSpec& s) {
         s.mutable_resources()->add_claims()->set_name("gpus");
         (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "1";
       },
       "InvalidResources",
       "spec.resources asks for nvidia.com/gpu and for claims, which take its place: leave one of "
       "them out"},
      {"a claim on CPU",
       [](ModelSpec& s) {
         s.set_device("cpu");
         s.mutable_resources()->add_claims()->set_name("gpus");
       },
       "NotSupported", "spec.resources.claims is not supported by this version: claims give GPUs"},
      {"network cards that the cluster hands out",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_limits())["rdma/hca"] = "1"; }, "", ""},
      {"NVIDIA's network cards beside a claim",
       [](ModelSpec& s) {
         s.mutable_resources()->add_claims()->set_name("gpus");
         (*s.mutable_resources()->mutable_limits())["nvidia.com/hostdev"] = "1";
       },
       "", ""},
  });
}

TEST(Resources, GpusOfTwoKindsAndOnCpuAreRefused) {
  ExpectAcceptance({
      {"a GPU and a slice",
       [](ModelSpec& s) {
         (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "1";
         (*s.mutable_resources()->mutable_requests())["nvidia.com/mig-1g.10gb"] = "1";
       },
       "InvalidResources",
       "spec.resources asks for nvidia.com/gpu and nvidia.com/mig-1g.10gb, but all ranks have GPUs "
       "of one kind: leave one of them out"},
      {"a GPU on CPU",
       [](ModelSpec& s) {
         s.set_device("cpu");
         (*s.mutable_resources()->mutable_limits())["nvidia.com/gpu"] = "1";
       },
       "InvalidResources",
       "spec.resources asks for nvidia.com/gpu, and spec.device is cpu, so it would stand idle: "
       "set "
       "device to gpu, or leave it out"},
      {"a network card on CPU",
       [](ModelSpec& s) {
         s.set_device("cpu");
         (*s.mutable_resources()->mutable_limits())["nvidia.com/hostdev"] = "1";
       },
       "", ""},
  });
}

TEST(Resources, QuantitiesThatNoPodMayHaveAreRefusedByName) {
  ExpectAcceptance({
      {"a card in requests alone",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_requests())["rdma/hca"] = "2"; }, "",
       ""},
      {"a card twice, the same",
       [](ModelSpec& s) {
         (*s.mutable_resources()->mutable_requests())["rdma/hca"] = "1k";
         (*s.mutable_resources()->mutable_limits())["rdma/hca"] = "1000";
       },
       "", ""},
      {"more memory than a request",
       [](ModelSpec& s) {
         (*s.mutable_resources()->mutable_requests())["memory"] = "1Gi";
         (*s.mutable_resources()->mutable_limits())["memory"] = "2Gi";
       },
       "", ""},
      {"fewer cards in requests",
       [](ModelSpec& s) {
         (*s.mutable_resources()->mutable_requests())["rdma/hca"] = "1";
         (*s.mutable_resources()->mutable_limits())["rdma/hca"] = "2";
       },
       "InvalidResources",
       "spec.resources asks for 1 rdma/hca in requests and 2 in limits, which must be the same: "
       "leave one of them out"},
      {"half a card",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_limits())["rdma/hca"] = "500m"; },
       "InvalidResources", "spec.resources.limits: rdma/hca: \"500m\" must be a whole number"},
      {"less memory than a request",
       [](ModelSpec& s) {
         (*s.mutable_resources()->mutable_requests())["memory"] = "2Gi";
         (*s.mutable_resources()->mutable_limits())["memory"] = "2G";
       },
       "InvalidResources",
       "spec.resources asks for 2Gi memory in requests and 2G in limits, which must be as much at "
       "least: raise the limit, or lower the request"},
      {"no quantity",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_requests())["memory"] = "4 GB"; },
       "InvalidResources",
       "spec.resources.requests: memory: \"4 GB\" is no quantity of Kubernetes: write it like 2 or "
       "4Gi"},
      {"no number of CPUs",
       [](ModelSpec& s) { (*s.mutable_resources()->mutable_limits())["cpu"] = "two"; },
       "InvalidResources",
       "spec.resources.limits: cpu: \"two\" is no quantity of Kubernetes: write it like 2 or 500m"},
  });
}

TEST(Resources, ClaimsTakeThePlaceOfTheDevicePluginsGpus) {
  Observed observed = OneModelOnGpu();
  const std::string before = MakePlan(observed).groups.at(0).config_hash;
  auto& resources = *observed.model.mutable_spec()->mutable_resources();
  (*resources.mutable_requests())["cpu"] = "2";
  auto& claim = *resources.add_claims();
  claim.set_name("gpus");
  claim.set_template_("four-h200-of-one-nvlink");
  const k8s::v1::PodSpec pod = PodOf(observed);
  ASSERT_EQ(pod.resource_claims_size(), 1);
  EXPECT_EQ(pod.resource_claims(0).name(), "gpus");
  EXPECT_EQ(pod.resource_claims(0).resource_claim_template_name(), "four-h200-of-one-nvlink");
  ASSERT_EQ(pod.containers(0).resources().claims_size(), 1);
  EXPECT_EQ(pod.containers(0).resources().claims(0).name(), "gpus");
  EXPECT_THAT(pod.containers(0).resources().requests(), UnorderedElementsAre(Pair("cpu", "2")));
  EXPECT_THAT(pod.containers(0).resources().limits(), IsEmpty());
  EXPECT_NE(MakePlan(observed).groups.at(0).config_hash, before);
}

// Handed out by other device plugins than the GPUs': counted as these are.
TEST(Resources, NetworkCardsAreAskedForAndPodsGoWhereTheyAreFree) {
  Observed observed = OneModelOnGpu();
  (*observed.model.mutable_spec()->mutable_resources()->mutable_limits())["rdma/hca"] = "2";
  EXPECT_THAT(PodOf(observed).containers(0).resources().limits(),
              UnorderedElementsAre(Pair("nvidia.com/gpu", "1"), Pair("rdma/hca", "2")));
  PlacementRequest request;
  request.pods = {"a-0"};
  request.each = {{"nvidia.com/gpu", 1}, {"rdma/hca", 2}};
  request.tolerated_taints = {kGpuTaint};
  NodeObservation without = GpuNode("x", 8, 0), with = GpuNode("y", 8, 0);
  without.allocatable["rdma/hca"] = with.allocatable["rdma/hca"] = 8;
  without.requested["rdma/hca"] = 7;
  EXPECT_THAT(PlaceGroup(request, {without, with}).nodes, ElementsAre(Pair("a-0", "y")));
  EXPECT_THAT(PlaceGroup(request, {without}).missing, HasSubstr("1 rdma/hca free"));
}

// Kubernetes takes no pod that asks for them in one list alone, or for different numbers.
TEST(Resources, NetworkCardsAreNoGpusAndAreAskedForInBothLists) {
  Observed observed = OneModelOnGpus(2, 0);
  auto& resources = *observed.model.mutable_spec()->mutable_resources();
  (*resources.mutable_limits())["nvidia.com/hostdev"] = "1";
  (*resources.mutable_requests())["rdma/hca"] = "2";
  (*resources.mutable_requests())["cpu"] = "4";
  const k8s::v1::PodSpec pod = PodOf(observed);
  EXPECT_THAT(pod.containers(0).resources().limits(),
              UnorderedElementsAre(Pair("nvidia.com/gpu", "2"), Pair("nvidia.com/hostdev", "1"),
                                   Pair("rdma/hca", "2")));
  EXPECT_THAT(pod.containers(0).resources().requests(),
              UnorderedElementsAre(Pair("nvidia.com/gpu", "2"), Pair("nvidia.com/hostdev", "1"),
                                   Pair("rdma/hca", "2"), Pair("cpu", "4")));
}

TEST(Resources, ASliceThatTheManifestNamesTakesThePlaceOfAWholeGpu) {
  Observed observed = OneModelOnGpu();
  auto& limits = *observed.model.mutable_spec()->mutable_resources()->mutable_limits();
  limits["nvidia.com/mig-3g.40gb"] = "1";
  for (const auto& amounts : {PodOf(observed).containers(0).resources().requests(),
                              PodOf(observed).containers(0).resources().limits()}) {
    EXPECT_THAT(amounts, UnorderedElementsAre(Pair("nvidia.com/mig-3g.40gb", "1")));
  }
  limits["nvidia.com/mig-3g.40gb"] = "2";
  EXPECT_THAT(MakePlan(observed).status.message(), HasSubstr("2 nvidia.com/mig-3g.40gb"));
}

}  // namespace
}  // namespace rempart::op
