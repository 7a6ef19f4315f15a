// SPDX-License-Identifier: Apache-2.0
// A whole operator against the fake API server: what it makes of Models, and that its death at any
// moment does no harm.
#include "operator/reconcile/operator_process.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "operator/kube/client.h"
#include "proto/group/v1/group.grpc.pb.h"
#include "tests/operator/kube/eventually.h"
#include "tests/operator/kube/fake_api_server.h"

namespace rempart::op {
namespace {

using k8s::v1::ConfigMap;
using k8s::v1::Service;
using k8s::v1::StatefulSet;

constexpr char kNs[] = "ia";

// Counts what the operator asks for, and can let a part of it wait.
class CountedTransport : public Transport {
 public:
  explicit CountedTransport(Transport* to) : to_(to) {}

  absl::StatusOr<HttpResponse> Send(const HttpRequest& request) override {
    const bool is_lease = absl::StrContains(request.path, "/leases");
    if (request.method != "GET" && !is_lease) ++writes;
    if (absl::StrContains(request.path, "/status?")) ++status_writes;
    WaitWhileHeld(request);
    return to_->Send(request);
  }
  absl::StatusOr<HttpResponse> Stream(const HttpRequest& request,
                                      const std::function<bool(absl::string_view)>& on_line,
                                      std::stop_token stop) override {
    return to_->Stream(request, on_line, stop);
  }

  // Writes to paths that end so wait until Release.
  void Hold(const std::string& path_end) {
    MutexLock lock(&mu_);
    held_end_ = path_end;
  }
  // Writes to paths in which this is found wait until Release, too.
  void HoldAll(const std::string& path_part) {
    MutexLock lock(&mu_);
    held_part_ = path_part;
  }
  void Release() {
    MutexLock lock(&mu_);
    held_end_.clear();
    held_part_.clear();
  }

  std::atomic<int> writes = 0;
  std::atomic<int> status_writes = 0;
  std::atomic<int> held = 0;  // that have come to wait

 private:
  void WaitWhileHeld(const HttpRequest& request) {
    const std::string path = request.path.substr(0, request.path.find('?'));
    const auto may_go = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      const bool held = (!held_end_.empty() && absl::EndsWith(path, held_end_)) ||
                        (!held_part_.empty() && absl::StrContains(path, held_part_));
      return request.method == "GET" || !held;
    };
    MutexLock lock(&mu_);
    if (!may_go()) ++held;
    mu_.AwaitWithTimeout(absl::Condition(&may_go), absl::InfiniteDuration());
  }

  Transport* const to_;
  Mutex mu_;
  std::string held_end_ ABSL_GUARDED_BY(mu_);
  std::string held_part_ ABSL_GUARDED_BY(mu_);
};

class OperatorProcessTest : public testing::Test {
 protected:
  OperatorProcessTest() {
    folder_ = std::filesystem::temp_directory_path() / absl::StrCat("operator-", getpid());
    std::filesystem::create_directories(folder_);
    k8s::v1::PersistentVolumeClaim claim;
    claim.mutable_metadata()->set_namespace_(kNs);
    claim.mutable_metadata()->set_name("models");
    EXPECT_TRUE(Api<k8s::v1::PersistentVolumeClaim>(&client_).Create(claim).ok());
  }
  ~OperatorProcessTest() override {
    counted_.Release();
    StopOperator();
    std::filesystem::remove_all(folder_);
  }

  void StartOperator() {
    stop_ = std::stop_source();
    thread_ = std::thread([this] {
      OperatorOptions options;
      options.settings.worker_image = "worker:1";
      options.settings.control_address = "operator:7080";
      options.listen_address = absl::StrCat("unix:", (folder_ / "operator.sock").string());
      options.copy_worker_tls = false;
      options.lease_retry = absl::Milliseconds(5);
      options.informer_pause = absl::Milliseconds(1);
      SystemClock clock;
      exit_code_ = RunOperator(options, &counted_, &clock, stop_.get_token());
    });
  }

  void StopOperator() {
    if (!thread_.joinable()) return;
    stop_.request_stop();
    thread_.join();
    EXPECT_EQ(exit_code_, kExitOk);
  }

  Model MakeModel(const std::string& name, int replicas, const std::string& uri) {
    Model model;
    model.mutable_metadata()->set_namespace_(kNs);
    model.mutable_metadata()->set_name(name);
    model.mutable_spec()->mutable_source()->set_uri(uri);
    model.mutable_spec()->set_device("cpu");
    model.mutable_spec()->set_replicas(replicas);
    return model;
  }

  void Apply(const Model& model) {
    const auto applied = Api<Model>(&client_).Apply(model, "kubectl");
    ASSERT_TRUE(applied.ok()) << applied.status();
  }

  void ApplyModel(const std::string& name, int replicas, const std::string& uri) {
    Apply(MakeModel(name, replicas, uri));
  }

  // One group of two pods, each of which takes more than half a node of MakeNodes.
  void ApplyPairOfPods(const std::string& name) {
    Model model = MakeModel(name, 1, "pvc://models/a.gguf");
    model.mutable_spec()->mutable_parallelism()->set_tensor(2);
    model.mutable_spec()->mutable_parallelism()->set_ranks_per_pod(1);
    (*model.mutable_spec()->mutable_resources()->mutable_requests())["memory"] = "600Mi";
    Apply(model);
  }

  // Of 1 GiB each.
  void MakeNodes(int count) {
    for (int i = 0; i < count; ++i) {
      const std::string name = absl::StrCat("node-", i);
      k8s::v1::Node node;
      node.mutable_metadata()->set_name(name);
      (*node.mutable_metadata()->mutable_labels())["kubernetes.io/hostname"] = name;
      ASSERT_TRUE(Api<k8s::v1::Node>(&client_).Create(node).ok());
      k8s::v1::Node status = node;
      (*status.mutable_status()->mutable_allocatable())["memory"] = "1Gi";
      auto& ready = *status.mutable_status()->add_conditions();
      ready.set_type("Ready");
      ready.set_status("True");
      ASSERT_TRUE(Api<k8s::v1::Node>(&client_).ApplyStatus(status, "kubelet").ok());
    }
  }

  // As the StatefulSet controller makes it: behind its gate.
  void MakePod(const std::string& set_name, int index) {
    const auto set = Api<StatefulSet>(&client_).Get({kNs, set_name});
    ASSERT_TRUE(set.ok()) << set.status();
    k8s::v1::Pod pod;
    *pod.mutable_metadata() = set->spec().template_().metadata();
    pod.mutable_metadata()->set_namespace_(kNs);
    pod.mutable_metadata()->set_name(absl::StrCat(set_name, "-", index));
    *pod.mutable_spec() = set->spec().template_().spec();
    ASSERT_TRUE(Api<k8s::v1::Pod>(&client_).Create(pod).ok());
  }

  // Empty: not released.
  std::string NodeOf(const std::string& name) {
    const auto pod = Api<k8s::v1::Pod>(&client_).Get({kNs, name});
    if (!pod.ok() || pod->spec().scheduling_gates_size() > 0) return "";
    return pod->spec().node_selector().at("kubernetes.io/hostname");
  }

  // "llama-0 llama-1 "
  template <typename T>
  std::string Names() {
    std::string names;
    const auto list = Api<T>(&client_).List(kNs);
    if (!list.ok()) return std::string(list.status().message());
    for (const T& object : *list) absl::StrAppend(&names, object.metadata().name(), " ");
    return names;
  }

  bool HasGroups(const std::string& names) {
    return Names<StatefulSet>() == names && Names<Service>() == names &&
           Names<ConfigMap>() == names;
  }

  std::string Condition(const std::string& name, const std::string& type) {
    const auto model = Api<Model>(&client_).Get({kNs, name});
    if (!model.ok()) return "";
    for (const auto& condition : model->status().conditions()) {
      if (condition.type() == type) return condition.status();
    }
    return "";
  }
  std::string Accepted(const std::string& name) { return Condition(name, "Accepted"); }

  // Groups that its status tells of.
  int Existing(const std::string& name) {
    const auto model = Api<Model>(&client_).Get({kNs, name});
    return model.ok() ? model->status().replicas() : 0;
  }

  std::filesystem::path folder_;
  FakeApiServer server_;
  CountedTransport counted_{&server_};  // the operator's
  Client client_{&server_};
  std::stop_source stop_;
  std::thread thread_;
  int exit_code_ = -1;
};

constexpr char kUri[] = "pvc://models/a.gguf";

TEST_F(OperatorProcessTest, AModelBecomesItsGroupsAndTakesThemAlongWhenItGoes) {
  StartOperator();
  ApplyModel("llama", 2, kUri);
  EXPECT_TRUE(Eventually([&] { return HasGroups("llama-0 llama-1 "); })) << Names<StatefulSet>();
  EXPECT_TRUE(Eventually([&] { return Accepted("llama") == "True"; }));
  ApplyModel("llama", 1, kUri);
  EXPECT_TRUE(Eventually([&] { return HasGroups("llama-0 "); })) << Names<StatefulSet>();
  ASSERT_TRUE(Api<Model>(&client_).Delete({kNs, "llama"}).ok());
  EXPECT_TRUE(Eventually([&] { return HasGroups(""); })) << Names<StatefulSet>();
}

TEST_F(OperatorProcessTest, AClaimIsWrittenToOnceItSaysThatItIsForRepackedWeights) {
  StartOperator();
  Model model = MakeModel("llama", 1, kUri);
  model.mutable_spec()->mutable_engine()->set_repack_cache_claim("repacked");
  Apply(model);
  ASSERT_TRUE(Eventually([&] { return Accepted("llama") == "False"; }));
  k8s::v1::PersistentVolumeClaim claim;
  claim.mutable_metadata()->set_namespace_(kNs);
  claim.mutable_metadata()->set_name("repacked");
  const auto says = [&](const char* words) {
    const auto seen = Api<Model>(&client_).Get({kNs, "llama"});
    return seen.ok() && absl::StrContains(seen->status().message(), words);
  };
  EXPECT_TRUE(Eventually([&] { return says("there is no such PersistentVolumeClaim"); }));
  ASSERT_TRUE(Api<k8s::v1::PersistentVolumeClaim>(&client_).Create(claim).ok());
  EXPECT_TRUE(Eventually([&] { return says("rempart.dev/repack-cache=true"); }));
  EXPECT_TRUE(HasGroups(""));
  (*claim.mutable_metadata()->mutable_labels())["rempart.dev/repack-cache"] = "true";
  ASSERT_TRUE(Api<k8s::v1::PersistentVolumeClaim>(&client_).Apply(claim, "kubectl").ok());
  EXPECT_TRUE(Eventually([&] { return HasGroups("llama-0 "); })) << Names<StatefulSet>();
  EXPECT_TRUE(Eventually([&] { return Accepted("llama") == "True"; }));
}

TEST_F(OperatorProcessTest, WhatIsRemovedByHandComesBack) {
  StartOperator();
  ApplyModel("llama", 1, kUri);
  ASSERT_TRUE(Eventually([&] { return HasGroups("llama-0 "); }));
  ASSERT_TRUE(Api<Service>(&client_).Delete({kNs, "llama-0"}).ok());
  EXPECT_TRUE(Eventually([&] { return HasGroups("llama-0 "); }));
}

TEST_F(OperatorProcessTest, AStrangersObjectIsNotTakenOver) {
  ConfigMap theirs;
  theirs.mutable_metadata()->set_namespace_(kNs);
  theirs.mutable_metadata()->set_name("llama-0");
  (*theirs.mutable_data())["theirs"] = "x";
  ASSERT_TRUE(Api<ConfigMap>(&client_).Create(theirs).ok());
  StartOperator();
  ApplyModel("llama", 1, kUri);
  EXPECT_TRUE(Eventually([&] {
    const auto events = Api<k8s::v1::Event>(&client_).List(kNs);
    return events.ok() && !events->empty() && (*events)[0].reason() == "CannotApply";
  }));
  EXPECT_EQ(Api<ConfigMap>(&client_).Get({kNs, "llama-0"})->data().size(), 1u);
}

TEST_F(OperatorProcessTest, ARefusedModelGetsNoGroupAndAnEditHealsIt) {
  StartOperator();
  ApplyModel("llama", 1, "oci://registry.intra/models/a:1");
  EXPECT_TRUE(Eventually([&] { return Accepted("llama") == "False"; }));
  EXPECT_EQ(Names<StatefulSet>(), "");
  ApplyModel("llama", 1, kUri);
  EXPECT_TRUE(Eventually([&] { return HasGroups("llama-0 "); }));
  EXPECT_TRUE(Eventually([&] { return Accepted("llama") == "True"; }));
}

// The StatefulSet controller of this test: pods behind their gate.
TEST_F(OperatorProcessTest, PodsOfAGroupAreReleasedTogetherAndReplacedOnesToo) {
  MakeNodes(2);
  StartOperator();
  ApplyPairOfPods("llama");
  ASSERT_TRUE(Eventually([&] { return HasGroups("llama-0 "); }));
  EXPECT_EQ(Names<k8s::v1::NetworkPolicy>(), "llama-0 ");
  EXPECT_EQ(Names<k8s::v1::PodDisruptionBudget>(), "llama ");
  MakePod("llama-0", 0);
  MakePod("llama-0", 1);
  ASSERT_TRUE(
      Eventually([&] { return !NodeOf("llama-0-0").empty() && !NodeOf("llama-0-1").empty(); }));
  EXPECT_NE(NodeOf("llama-0-0"), NodeOf("llama-0-1"));
  const std::string before = NodeOf("llama-0-1");
  ASSERT_TRUE(Api<k8s::v1::Pod>(&client_).Delete({kNs, "llama-0-1"}).ok());
  MakePod("llama-0", 1);
  ASSERT_TRUE(Eventually([&] { return !NodeOf("llama-0-1").empty(); }));
  EXPECT_EQ(NodeOf("llama-0-1"), before);  // the other node is full
}

TEST_F(OperatorProcessTest, AModelIsNotHeldUpByTheCallsOfAnother) {
  StartOperator();
  counted_.Hold("/statefulsets/slow-0");
  ApplyModel("slow", 1, kUri);
  ASSERT_TRUE(Eventually([&] { return counted_.held > 0; }));
  ApplyModel("quick", 1, kUri);
  EXPECT_TRUE(Eventually([&] { return Existing("quick") == 1; }));
  EXPECT_EQ(Names<StatefulSet>(), "quick-0 ");
  counted_.Release();
  EXPECT_TRUE(Eventually([&] { return HasGroups("quick-0 slow-0 "); }));
}

// As many Models as there are reconcilers, and more, have something to be written after a change
// that nobody waits for; the API server does not answer.
TEST_F(OperatorProcessTest, AnEditIsNotHeldUpByCallsForAllOtherModels) {
  StartOperator();
  constexpr int kModels = 12;
  const auto name = [](int i) { return absl::StrCat("slow", i); };
  for (int i = 0; i < kModels; ++i) ApplyModel(name(i), 1, kUri);
  ASSERT_TRUE(Eventually([&] {
    for (int i = 0; i < kModels; ++i) {
      if (Existing(name(i)) != 1) return false;
    }
    return true;
  }));
  counted_.HoldAll("/services/slow");
  for (int i = 0; i < kModels; ++i) {
    ASSERT_TRUE(Api<Service>(&client_).Delete({kNs, absl::StrCat(name(i), "-0")}).ok());
  }
  ASSERT_TRUE(Eventually([&] { return counted_.held >= 4; }));
  ApplyModel("quick", 1, kUri);
  EXPECT_TRUE(Eventually([&] { return Api<StatefulSet>(&client_).Get({kNs, "quick-0"}).ok(); }));
  EXPECT_TRUE(Eventually([&] { return Accepted("quick") == "True"; }));
  counted_.Release();
}

// While the release of one pod waits for its answer, its room is not given to another.
TEST_F(OperatorProcessTest, RoomIsPromisedOnce) {
  MakeNodes(3);
  StartOperator();
  ApplyPairOfPods("a");
  ApplyPairOfPods("b");
  ASSERT_TRUE(Eventually([&] { return HasGroups("a-0 b-0 "); }));
  counted_.Hold("/pods/a-0-0");
  for (const int index : {0, 1}) MakePod("a-0", index);
  ASSERT_TRUE(Eventually([&] { return counted_.held > 0; }));
  for (const int index : {0, 1}) MakePod("b-0", index);
  EXPECT_TRUE(Eventually([&] { return Condition("b", "Fits") == "False"; }));
  counted_.Release();
  EXPECT_TRUE(Eventually([&] { return !NodeOf("a-0-0").empty() && !NodeOf("a-0-1").empty(); }));
  for (const char* pod : {"b-0-0", "b-0-1"}) EXPECT_EQ(NodeOf(pod), "");
}

TEST_F(OperatorProcessTest, StatesOfMembersAreWrittenOnceASecond) {
  MakeNodes(2);
  StartOperator();
  ApplyPairOfPods("llama");
  ASSERT_TRUE(Eventually([&] { return HasGroups("llama-0 "); }));
  for (const int index : {0, 1}) MakePod("llama-0", index);
  ASSERT_TRUE(
      Eventually([&] { return !NodeOf("llama-0-0").empty() && !NodeOf("llama-0-1").empty(); }));
  const auto member_state = [&] {
    const auto model = Api<Model>(&client_).Get({kNs, "llama"});
    const bool known = model.ok() && model->status().groups_size() == 1 &&
                       model->status().groups(0).members_size() == 2;
    return known ? model->status().groups(0).members(1).state() : "";
  };
  const auto set_phase = [&](const char* phase) {
    k8s::v1::Pod pod;
    pod.mutable_metadata()->set_namespace_(kNs);
    pod.mutable_metadata()->set_name("llama-0-1");
    pod.mutable_status()->set_phase(phase);
    ASSERT_TRUE(Api<k8s::v1::Pod>(&client_).ApplyStatus(pod, "kubelet").ok());
  };
  set_phase("Pending");
  ASSERT_TRUE(Eventually([&] { return member_state() == "Pending"; }));
  const auto begin = std::chrono::steady_clock::now();
  counted_.status_writes = 0;
  for (int i = 0; i < 40; ++i) {
    set_phase(i % 2 == 0 ? "Pending" : "Running");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_TRUE(Eventually([&] { return member_state() == "Running"; }));
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LE(counted_.status_writes, 2 + static_cast<int>(took.count()));
}

// What changed while no operator ran is carried out; what did not change is left as it is.
TEST_F(OperatorProcessTest, ARestartedOperatorFinishesTheWorkAndRepeatsNothing) {
  StartOperator();
  ApplyModel("kept", 1, kUri);
  ApplyModel("llama", 1, kUri);
  ASSERT_TRUE(Eventually([&] { return HasGroups("kept-0 llama-0 "); }));
  StopOperator();
  const auto before = Api<StatefulSet>(&client_).Get({kNs, "kept-0"});
  ApplyModel("llama", 2, kUri);
  StartOperator();
  EXPECT_TRUE(Eventually([&] { return HasGroups("kept-0 llama-0 llama-1 "); }));
  const auto after = Api<StatefulSet>(&client_).Get({kNs, "kept-0"});
  EXPECT_EQ(after->metadata().resource_version(), before->metadata().resource_version());
}

TEST_F(OperatorProcessTest, ARestartedOperatorWritesOnlyWhatIsNotAsItShallBe) {
  StartOperator();
  for (const char* name : {"a", "b", "c"}) ApplyModel(name, 2, kUri);
  ASSERT_TRUE(Eventually([&] { return HasGroups("a-0 a-1 b-0 b-1 c-0 c-1 "); }));
  ASSERT_TRUE(Eventually([&] { return Existing("a") + Existing("b") + Existing("c") == 6; }));
  StopOperator();
  // Meanwhile somebody changes what is ours, and adds what is not.
  Service selector;
  selector.mutable_metadata()->set_namespace_(kNs);
  selector.mutable_metadata()->set_name("b-1");
  (*selector.mutable_metadata()->mutable_labels())["team"] = "x";
  (*selector.mutable_spec()->mutable_selector())["rempart.dev/group"] = "elsewhere";
  ASSERT_TRUE(Api<Service>(&client_).MergePatch(selector).ok());
  counted_.writes = 0;
  StartOperator();
  EXPECT_TRUE(Eventually([&] {
    const auto service = Api<Service>(&client_).Get({kNs, "b-1"});
    return service.ok() && service->spec().selector().at("rempart.dev/group") == "b-1" &&
           service->metadata().labels().at("team") == "x";
  }));
  // One more Model comes after all that there was.
  ApplyModel("d", 1, kUri);
  EXPECT_TRUE(Eventually([&] { return Existing("d") == 1; }));
  const int of_one_model = 8;  // ConfigMap, Service, StatefulSet, budget, and its status some times
  EXPECT_LE(counted_.writes, 1 + of_one_model);
}

// Two operators: a worker that dials the one that stands by is told where the other is; when that
// ends, the worker's stream ends and the other takes over.
TEST_F(OperatorProcessTest, WorkersAreSentToTheOperatorThatLeads) {
  using Stream = grpc::ClientReaderWriter<group::v1::FromMember, group::v1::ToMember>;
  const auto address = [&](const char* name) {
    return absl::StrCat("unix:", (folder_ / name).string());
  };
  std::stop_source stops[2];
  std::thread threads[2];
  const char* const names[2] = {"one", "two"};
  const auto start = [&](int i) {
    threads[i] = std::thread([&, i] {
      OperatorOptions options;
      options.identity = names[i];
      options.settings.worker_image = "worker:1";
      options.listen_address = options.own_address = address(names[i]);
      options.copy_worker_tls = false;
      options.lease_retry = absl::Milliseconds(5);
      SystemClock clock;
      RunOperator(options, &server_, &clock, stops[i].get_token());
    });
  };
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<group::v1::GroupControl::Stub> stub;
  const auto join = [&](const std::string& where) {
    context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    context->set_wait_for_ready(true);
    stub = group::v1::GroupControl::NewStub(
        grpc::CreateChannel(where, grpc::InsecureChannelCredentials()));
    std::unique_ptr<Stream> stream = stub->Join(context.get());
    group::v1::FromMember hello;
    hello.mutable_identity()->set_group_name("ia/m-0");
    hello.mutable_identity()->set_pod_count(1);
    stream->Write(hello);
    return stream;
  };
  const auto first_word = [&](const std::string& where) {
    group::v1::ToMember message;
    const std::unique_ptr<Stream> stream = join(where);
    stream->Read(&message);
    context->TryCancel();
    stream->Finish();
    return message;
  };
  start(0);
  ASSERT_TRUE(Eventually([&] { return first_word(address("one")).has_epoch(); }));
  start(1);
  ASSERT_TRUE(Eventually(
      [&] { return first_word(address("two")).redirect().leader_address() == address("one"); }));
  const std::unique_ptr<Stream> kept = join(address("one"));
  group::v1::ToMember message;
  ASSERT_TRUE(kept->Read(&message) && message.has_epoch());
  auto kept_context = std::move(context);
  auto kept_stub = std::move(stub);
  stops[0].request_stop();
  while (kept->Read(&message)) {
  }
  EXPECT_EQ(kept->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(Eventually([&] { return first_word(address("two")).has_epoch(); }));
  stops[1].request_stop();
  for (std::thread& thread : threads) thread.join();
}

TEST_F(OperatorProcessTest, AServerThatFailsOftenOnlyDelaysTheWork) {
  ApplyModel("llama", 3, kUri);
  server_.SetFaults({.fail = 0.2, .break_stream = 0.2, .seed = 8});
  StartOperator();
  const bool done = Eventually([&] { return Names<StatefulSet>() == "llama-0 llama-1 llama-2 "; });
  server_.SetFaults({});
  EXPECT_TRUE(done) << Names<StatefulSet>();
  EXPECT_TRUE(Eventually([&] { return HasGroups("llama-0 llama-1 llama-2 "); }));
}

}  // namespace
}  // namespace rempart::op
