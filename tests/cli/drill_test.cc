// SPDX-License-Identifier: Apache-2.0
// `rempart drill`: what its words mean, whom it strikes, what a record of it comes to.
#include <gtest/gtest.h>
#include <simdjson.h>

#include <string>
#include <vector>

#include "cli/drill/load.h"
#include "cli/drill/options.h"
#include "cli/drill/report.h"
#include "cli/drill/target.h"
#include "cli/drill/watch.h"

namespace rempart::cli {
namespace {

using serving::v1alpha1::Model;
using Words = std::vector<std::string>;

const Words kWords = {"kill-rank", "--model",           "llama",     "-n",      "ia",
                      "--url",     "http://router/v1/", "--confirm", "ia/llama"};

Words With(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

DrillOptions Options(DrillOptions::Kind kind = DrillOptions::Kind::kKillRank) {
  DrillOptions options = *ParseDrillOptions(kWords);
  options.kind = kind;
  return options;
}

TEST(ParseDrillOptions, ReadsWords) {
  const auto options = ParseDrillOptions(With(kWords, {"--rank", "2", "--seconds", "45"}));
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->kind, DrillOptions::Kind::kKillRank);
  EXPECT_EQ(options->ns, "ia");
  EXPECT_EQ(options->url, "http://router");
  EXPECT_EQ(options->rank, 2);
  EXPECT_EQ(options->seconds, 45);
  EXPECT_EQ(options->helper_namespace, "ia");
}

TEST(ParseDrillOptions, NothingIsBrokenThatWasNotNamedTwice) {
  Words words = kWords;
  words.resize(words.size() - 2);
  EXPECT_NE(ParseDrillOptions(words).status().message().find("--confirm ia/llama"),
            std::string::npos);
  words = With(words, {"--confirm", "default/llama"});
  EXPECT_NE(ParseDrillOptions(words).status().message().find("not default/llama"),
            std::string::npos);
}

TEST(ParseDrillOptions, NamesTheFlagAtFault) {
  for (const auto& [words, named] : std::vector<std::pair<Words, std::string>>{
           {{}, "kill-rank, freeze-rank, cut-node, drain-node"},
           {{"burn-node"}, "burn-node"},
           {With(kWords, {"--rank", "-1"}), "--rank -1"},
           {With(kWords, {"--clients", "0"}), "from 1 to 64"},
           {With(kWords, {"--seconds"}), "--seconds needs a value"},
           {With(kWords, {"--model", "a/b"}), "--model a/b"},
           {With(kWords, {"--url", "router:80"}), "--url"},
           {With(kWords, {"--force", "yes"}), "--force"}}) {
    const auto options = ParseDrillOptions(words);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(options.status().message().find(named), std::string::npos) << options.status();
  }
}

Model ReadyModel() {
  Model model;
  model.mutable_metadata()->set_uid("uid-1");
  model.mutable_spec()->mutable_parallelism()->set_tensor(4);
  model.mutable_spec()->mutable_parallelism()->set_ranks_per_pod(2);
  auto& group = *model.mutable_status()->add_groups();
  group.set_name("llama-0");
  group.set_phase("Ready");
  return model;
}

std::vector<k8s::v1::Pod> Pods() {
  std::vector<k8s::v1::Pod> pods(3);
  const char* const names[] = {"llama-0-1", "llama-0-0", "llama-1-0"};
  const char* const nodes[] = {"node-b", "node-a", "node-c"};
  for (int i = 0; i < 3; ++i) {
    pods[i].mutable_metadata()->set_name(names[i]);
    (*pods[i].mutable_metadata()->mutable_labels())["rempart.dev/group"] =
        std::string(names[i]).substr(0, 7);
    pods[i].mutable_spec()->set_node_name(nodes[i]);
    pods[i].mutable_spec()->add_containers()->set_image("worker:1");
  }
  return pods;
}

TEST(ChooseTarget, TakesTheLastPodOrThatOfTheRank) {
  DrillOptions options = Options();
  EXPECT_EQ(ChooseTarget(options, ReadyModel(), Pods())->pod, "llama-0-1");
  options.rank = 1;
  const auto target = ChooseTarget(options, ReadyModel(), Pods());
  ASSERT_TRUE(target.ok()) << target.status();
  EXPECT_EQ(target->pod, "llama-0-0");
  EXPECT_EQ(target->node, "node-a");
}

TEST(ChooseTarget, RefusesWhatDoesNotServe) {
  DrillOptions options = Options();
  Model model = ReadyModel();
  model.mutable_status()->mutable_groups(0)->set_phase("Loading");
  EXPECT_EQ(ChooseTarget(options, model, Pods()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  options.rank = 4;
  EXPECT_EQ(ChooseTarget(options, ReadyModel(), Pods()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  options.group = 3;
  EXPECT_EQ(ChooseTarget(options, ReadyModel(), Pods()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

DrillTarget TargetWithFacts() {
  DrillTarget target = *ChooseTarget(Options(), ReadyModel(), Pods());
  EXPECT_TRUE(AddFacts(R"({"status":{"containerStatuses":[{"containerID":"containerd://abc"}]}})",
                       R"({"spec":{"podCIDRs":["10.244.1.0/24"]}})", target)
                  .ok());
  return target;
}

TEST(HelperManifest, HasTheRightsThatItsStrikeNeedsAndNoMore) {
  const DrillTarget target = TargetWithFacts();
  simdjson::dom::parser parser;
  simdjson::dom::element pod;
  std::string json = HelperManifest(Options(), target, "helper");
  ASSERT_EQ(parser.parse(json).get(pod), simdjson::SUCCESS) << json;
  EXPECT_TRUE(bool(pod.at_pointer("/spec/hostPID")));
  EXPECT_NE(pod.at_pointer("/spec/hostNetwork").error(), simdjson::SUCCESS);
  EXPECT_NE(json.find(R"("strike", "kill", "abc")"), std::string::npos) << json;
  EXPECT_EQ(json.find("NET_ADMIN"), std::string::npos);
  EXPECT_NE(json.find("\"runAsNonRoot\": true"), std::string::npos);

  json = HelperManifest(Options(DrillOptions::Kind::kCutNode), target, "helper");
  ASSERT_EQ(parser.parse(json).get(pod), simdjson::SUCCESS) << json;
  EXPECT_TRUE(bool(pod.at_pointer("/spec/hostNetwork")));
  EXPECT_NE(pod.at_pointer("/spec/hostPID").error(), simdjson::SUCCESS);
  EXPECT_NE(json.find(R"("strike", "cut", "30", "10.244.1.0/24")"), std::string::npos) << json;
}

TEST(ParseChatLine, ReadsTextEndAndError) {
  EXPECT_EQ(ParseChatLine(R"(data: {"choices":[{"delta":{"content":"Pa"}}]})")->text, "Pa");
  EXPECT_TRUE(
      ParseChatLine(R"(data: {"choices":[{"delta":{},"finish_reason":"stop"}]})")->finished);
  EXPECT_EQ(ParseChatLine(R"(data: {"error":{"message":"lost"}})")->error, "lost");
  EXPECT_TRUE(ParseChatLine("data: [DONE]")->text.empty());
  EXPECT_TRUE(ParseChatLine(": keep-alive")->text.empty());
  EXPECT_FALSE(ParseChatLine("data: {").ok());
}

ModelWatch::Seen Status(double at, const std::string& time, const std::string& failure) {
  ModelWatch::Seen seen{at, {}};
  seen.group.set_last_failure_time(time);
  seen.group.set_last_failure(failure);
  return seen;
}

TEST(FirstBlame, IsNoFailureThatWasCountedBefore) {
  const std::vector<ModelWatch::Seen> seen = {
      Status(1, "10:00", "lost llama-0-0"), Status(6, "10:00", "lost llama-0-0"),
      Status(7, "10:05", "lost llama-0-1"), Status(9, "10:05", "lost llama-0-1")};
  const auto blame = FirstBlame(seen, 5);
  ASSERT_TRUE(blame.has_value());
  EXPECT_EQ(blame->at, 7);
  EXPECT_EQ(blame->text, "lost llama-0-1");
  EXPECT_FALSE(FirstBlame(seen, 8).has_value());
}

// Two clients, a token every half second; struck at 10 s, back at 14 s.
//   one   ├─────────x          ├──┤
//   other    ├──────x          ├────┤
DrillRecord Record() {
  DrillRecord record;
  record.options = Options();
  record.pod = "llama-0-1";
  record.node = "node-b";
  record.date = "2026-01-02T03:04:05Z";
  record.struck = 10;
  record.ended = 16;
  record.served_again = true;
  record.named = 10.5;
  record.named_as = "lost llama-0-1 on node-b";
  record.answers = {{1, 5, {1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5}, "", false},
                    {8, 14.5, {8.5, 9, 9.5, 14, 14.5}, "", false},
                    {9, 15.5, {9.5, 10, 14.2, 15, 15.5}, "", false},
                    {14.5, 16, {15, 15.5, 16}, "", false}};
  return record;
}

TEST(Evaluate, MeasuresWhatClientsSaw) {
  const DrillReport report = Evaluate(Record());
  EXPECT_DOUBLE_EQ(*report.detect_seconds, 0.5);
  EXPECT_DOUBLE_EQ(report.recover_seconds, 4);
  EXPECT_EQ(report.completed, 4);
  EXPECT_EQ(report.delayed, 2);
  EXPECT_EQ(report.lost, 0);
  EXPECT_EQ(report.wrong, 0);
  EXPECT_TRUE(report.findings.empty());
}

TEST(Evaluate, FindsWhatDidNotHold) {
  DrillRecord record = Record();
  record.answers[1].error = "the connection broke";
  record.answers[2].differs = true;
  record.named_as = "lost llama-0-0 on node-a";
  record.served_again = false;
  const DrillReport report = Evaluate(record);
  EXPECT_EQ(report.lost, 1);
  EXPECT_EQ(report.wrong, 1);
  ASSERT_EQ(report.findings.size(), 4u);
  EXPECT_NE(report.findings[1].find("the connection broke"), std::string::npos);
  EXPECT_NE(report.findings[3].find("wrong member"), std::string::npos);
  record.named.reset();
  EXPECT_FALSE(Evaluate(record).detect_seconds.has_value());
}

TEST(Evaluate, BlamesNobodyForADrain) {
  DrillRecord record = Record();
  record.options.kind = DrillOptions::Kind::kDrainNode;
  record.named.reset();
  EXPECT_TRUE(Evaluate(record).findings.empty());
}

TEST(StoredReport, IsJsonThatIsFoundByItsLabels) {
  DrillRecord record = Record();
  record.named_as = "a \"quoted\"\nline";
  const k8s::v1::ConfigMap stored = StoredReport(record, Evaluate(record));
  EXPECT_EQ(stored.metadata().name(), "drill-llama-20260102-030405");
  EXPECT_EQ(stored.metadata().namespace_(), "ia");
  EXPECT_EQ(stored.metadata().labels().at("rempart.dev/drill"), "kill-rank");
  EXPECT_EQ(stored.metadata().labels().at("rempart.dev/drill-model"), "llama");
  simdjson::dom::parser parser;
  simdjson::dom::element report;
  ASSERT_EQ(parser.parse(stored.data().at("report.json")).get(report), simdjson::SUCCESS);
  EXPECT_DOUBLE_EQ(double(report["recover_seconds"]), 4);
  EXPECT_EQ(std::string_view(report["named_as"]), record.named_as);
}

}  // namespace
}  // namespace rempart::cli
