// SPDX-License-Identifier: Apache-2.0
#include "operator/crdgen/crdgen.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <yaml-cpp/yaml.h>

#include <fstream>
#include <sstream>

namespace rempart::op {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

YAML::Node ModelSchema() {
  auto crd = GenerateCrd(ReadFile(DESCRIPTORS), "rempart.serving.v1alpha1.Model");
  EXPECT_TRUE(crd.ok()) << crd.status();
  return YAML::Load(*crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
}

TEST(Crdgen, TheCheckedInDefinitionIsUpToDate) {
  auto crd = GenerateCrd(ReadFile(DESCRIPTORS), "rempart.serving.v1alpha1.Model");
  ASSERT_TRUE(crd.ok()) << crd.status();
  EXPECT_EQ(*crd, ReadFile("charts/rempart/crds/models.serving.rempart.dev.yaml"))
      << "renew it: cmake --build --preset dev --target crds";
}

TEST(Crdgen, CarriesBoundsDefaultsAndDescriptions) {
  const YAML::Node spec = ModelSchema()["properties"]["spec"]["properties"];
  EXPECT_EQ(spec["replicas"]["minimum"].as<int>(), 0);
  EXPECT_EQ(spec["replicas"]["maximum"].as<int>(), 1024);
  EXPECT_EQ(spec["replicas"]["default"].as<int>(), 1);
  EXPECT_EQ(spec["device"]["enum"][1].as<std::string>(), "gpu");
  EXPECT_THAT(spec["source"]["properties"]["uri"]["description"].as<std::string>(),
              testing::HasSubstr("pvc://claim/path"));
  EXPECT_EQ(spec["source"]["required"][0].as<std::string>(), "uri");
}

TEST(Crdgen, AnEditToRanksThatDoNotDivideIsRefusedWithThoseThatDo) {
  const YAML::Node rules = ModelSchema()["x-kubernetes-validations"];
  ASSERT_EQ(rules.size(), 1u);
  EXPECT_THAT(rules[0]["rule"].as<std::string>(), testing::HasSubstr("oldSelf"));
  EXPECT_THAT(rules[0]["message"].as<std::string>(), testing::HasSubstr("status.tensorSizes"));
  EXPECT_THAT(rules[0]["messageExpression"].as<std::string>(),
              testing::HasSubstr("self.status.tensorSizesText"));
  // The API server refuses a schema whose message is made of numbers.
  EXPECT_THAT(rules[0]["messageExpression"].as<std::string>(),
              testing::Not(testing::HasSubstr("string(")));
}

TEST(Crdgen, MergesConditionsByTypeAndServedNamesAsASet) {
  const YAML::Node schema = ModelSchema();
  const YAML::Node conditions = schema["properties"]["status"]["properties"]["conditions"];
  EXPECT_EQ(conditions["x-kubernetes-list-type"].as<std::string>(), "map");
  EXPECT_EQ(conditions["x-kubernetes-list-map-keys"][0].as<std::string>(), "type");
  const YAML::Node names = schema["properties"]["spec"]["properties"]["servedNames"];
  EXPECT_EQ(names["x-kubernetes-list-type"].as<std::string>(), "set");
  EXPECT_TRUE(names["items"]["pattern"]);
}

TEST(Crdgen, QuotesWordsThatYamlWouldReadAsBooleans) {
  const YAML::Node conditions = ModelSchema()["properties"]["status"]["properties"]["conditions"];
  const YAML::Node values = conditions["items"]["properties"]["status"]["enum"];
  ASSERT_EQ(values.size(), 3u);
  for (const YAML::Node& value : values) EXPECT_EQ(value.Tag(), "!") << value.Scalar();
}

TEST(Crdgen, QuantitiesMayBeNumbersAsInPods) {
  const YAML::Node resources =
      ModelSchema()["properties"]["spec"]["properties"]["resources"]["properties"];
  for (const char* list : {"requests", "limits"}) {
    const YAML::Node value = resources[list]["additionalProperties"];
    EXPECT_TRUE(value["x-kubernetes-int-or-string"].as<bool>()) << list;
    EXPECT_EQ(value["anyOf"][0]["type"].as<std::string>(), "integer");
    EXPECT_EQ(value["anyOf"][1]["type"].as<std::string>(), "string");
    // The API server refuses a type beside the mark.
    EXPECT_FALSE(value["type"]) << list;
  }
}

TEST(Crdgen, EveryFieldOfTheSpecIsDescribed) {
  const YAML::Node spec = ModelSchema()["properties"]["spec"]["properties"];
  for (const auto& field : spec) {
    EXPECT_TRUE(field.second["description"]) << field.first.as<std::string>();
  }
}

TEST(Crdgen, RefusesWhatIsNoResource) {
  const std::string descriptors = ReadFile(DESCRIPTORS);
  EXPECT_EQ(GenerateCrd(descriptors, "rempart.serving.v1alpha1.Source").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(GenerateCrd(descriptors, "no.such.Message").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(GenerateCrd("\xFF\xFF", "x").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace rempart::op
