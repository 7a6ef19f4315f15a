// SPDX-License-Identifier: Apache-2.0
#include "cli/drill/drill.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/strings/substitute.h"
#include "absl/time/clock.h"
#include "cli/drill/load.h"
#include "cli/drill/report.h"
#include "cli/drill/target.h"
#include "cli/drill/watch.h"
#include "common/exit_code.h"
#include "common/status_macros.h"
#include "operator/kube/client.h"
#include "operator/kube/curl_transport.h"
#include "operator/kube/wait.h"

namespace rempart::cli {
namespace {

using serving::v1alpha1::Model;
constexpr char kOwner[] = "rempart-drill";
constexpr absl::Duration kTurn = absl::Milliseconds(200);
// Answers before the strike, per client; and after it, before the drill is over.
constexpr int kAnswersBefore = 2;
constexpr int kAnswersAfter = 2;
constexpr int kHelperStartSeconds = 60;
// Between a cut's last words and the cut (worker/strike/strike.cc).
constexpr double kCutAfterSeconds = 0.3;
constexpr double kOpenRequestsSeconds = 120;

void Say(const std::string& words) {
  std::printf("drill: %s\n", words.c_str());
  std::fflush(stdout);
}

// One drill from its preparation to its report.
class Drill {
 public:
  Drill(const DrillOptions& options, op::ClusterAccess access, std::stop_token stop)
      : options_(options), stop_(stop), transport_(std::move(access)), client_(&transport_) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Prepare());
    RETURN_IF_ERROR(load_->Learn(stop_));
    load_->Start(options_.clients);
    RETURN_IF_ERROR(WaitFor("the load runs", options_.timeout_seconds, [this] {
      return load_->completed() >= kAnswersBefore * options_.clients;
    }));
    const absl::Status struck = Strike();
    const absl::Status back = struck.ok() ? AwaitService() : struck;
    const double ended = load_->seconds();
    const absl::Status mended = Mend();
    Say("waiting for the requests that are open");
    load_->Stop(back.ok() ? kOpenRequestsSeconds : 0);
    RETURN_IF_ERROR(back);
    RETURN_IF_ERROR(mended);
    return Report(ended);
  }

 private:
  absl::Status Prepare();
  absl::Status WaitFor(const char* what, int seconds, const std::function<bool()>& holds);
  absl::Status Strike() {
    return options_.kind == DrillOptions::Kind::kDrainNode ? Cordon(true) : StrikeByHelper();
  }
  absl::Status StrikeByHelper();
  absl::Status FollowHelper(double deadline, std::string& heard);
  absl::Status Cordon(bool cordoned);
  absl::Status AwaitService();
  bool ServesAgain();
  absl::Status Mend();
  absl::Status Report(double ended);
  std::string HelperPath() const {
    return absl::StrCat("/api/v1/namespaces/", options_.helper_namespace, "/pods/", helper_);
  }
  std::string GroupName() const { return absl::StrCat(options_.model, "-", options_.group); }

  const DrillOptions options_;
  const std::stop_token stop_;
  op::CurlTransport transport_;
  const op::Client client_;
  DrillTarget target_;
  std::string helper_;  // name of its pod; empty: there is none
  bool cordoned_ = false;
  std::unique_ptr<DrillLoad> load_;
  std::unique_ptr<ModelWatch> watch_;  // after load_, whose clock it reads
  int epoch_before_ = 0;
  int answers_when_back_ = -1;
  DrillRecord record_;
};

absl::StatusOr<std::string> ReadKey(const std::string& file) {
  if (file.empty()) return std::string();
  std::ifstream in(file);
  std::string key;
  if (!std::getline(in, key) || absl::StripAsciiWhitespace(key).empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--api-key-file ", file, " has no key in its first line"));
  }
  return std::string(absl::StripAsciiWhitespace(key));
}

absl::Status Drill::Prepare() {
  ASSIGN_OR_RETURN(const std::string key, ReadKey(options_.api_key_file));
  const op::Api<Model> models(&client_);
  const auto model = models.Get({options_.ns, options_.model});
  if (!model.ok()) {
    return absl::Status(
        model.status().code(),
        absl::StrCat("model ", options_.ns, "/", options_.model, ": ", model.status().message()));
  }
  if (model->spec().served_names().empty()) {
    return absl::FailedPreconditionError("the Model has no served name to send requests to");
  }
  const op::Api<k8s::v1::Pod> pods(&client_);
  ASSIGN_OR_RETURN(const auto all,
                   pods.List(options_.ns, absl::StrCat("rempart.dev/model=", options_.model)));
  ASSIGN_OR_RETURN(target_, ChooseTarget(options_, *model, all));
  const op::ResourceType node_type = op::ResourceOf<k8s::v1::Node>::Type();
  ASSIGN_OR_RETURN(const std::string pod, client_.Get(pods.type(), {options_.ns, target_.pod}));
  ASSIGN_OR_RETURN(const std::string node, client_.Get(node_type, {"", target_.node}));
  RETURN_IF_ERROR(AddFacts(pod, node, target_));
  record_.options = options_;
  record_.pod = target_.pod;
  record_.node = target_.node;
  record_.date = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  for (const auto& group : model->status().groups()) {
    if (group.name() == GroupName()) epoch_before_ = group.epoch();
  }
  load_ = std::make_unique<DrillLoad>(options_.url, key, model->spec().served_names(0));
  watch_ = std::make_unique<ModelWatch>(&client_, op::ObjectKey{options_.ns, options_.model},
                                        [load = load_.get()] { return load->seconds(); });
  Say(absl::StrCat(DrillName(options_.kind), " will strike pod ", target_.pod, " on node ",
                   target_.node, "; first, what is right is learned"));
  return absl::OkStatus();
}

absl::Status Drill::WaitFor(const char* what, int seconds, const std::function<bool()>& holds) {
  const double deadline = load_->seconds() + seconds;
  while (!holds()) {
    if (stop_.stop_requested()) return absl::CancelledError("interrupted");
    if (load_->seconds() > deadline) {
      return absl::DeadlineExceededError(absl::StrCat("not within ", seconds, " s: ", what));
    }
    op::PauseUnlessStopped(stop_, kTurn);
  }
  return absl::OkStatus();
}

// Until it says "struck"; its log says so within milliseconds, its status only in whole seconds.
absl::Status Drill::FollowHelper(double deadline, std::string& heard) {
  const auto on_line = [&](absl::string_view line) {
    if (absl::StripAsciiWhitespace(line) == "struck") {
      const bool cuts = options_.kind == DrillOptions::Kind::kCutNode;
      record_.struck = load_->seconds() + (cuts ? kCutAfterSeconds : 0);
      return false;
    }
    absl::StrAppend(&heard, line, " ");
    return true;
  };
  while (record_.struck == 0) {
    if (stop_.stop_requested()) return absl::CancelledError("interrupted");
    const auto log =
        transport_.Stream({"GET", absl::StrCat(HelperPath(), "/log?follow=true")}, on_line, stop_);
    if (record_.struck > 0 || stop_.stop_requested()) break;
    const bool ended = log.ok() && log->code == 200;
    if (ended || load_->seconds() > deadline) {
      const std::string path =
          absl::StrCat("kubectl -n ", options_.helper_namespace, " describe pod ", helper_);
      return absl::UnavailableError(absl::StrCat("the helper pod did not strike",
                                                 ended ? "" : absl::StrCat(" (", path, ")"), ": ",
                                                 heard.empty() && log.ok() ? log->body : heard));
    }
    op::PauseUnlessStopped(stop_, kTurn);
  }
  return absl::OkStatus();
}

absl::Status Drill::StrikeByHelper() {
  const std::string name = absl::StrCat("rempart-drill-", absl::ToUnixSeconds(absl::Now()));
  const auto made =
      client_.Create(op::ResourceOf<k8s::v1::Pod>::Type(), {options_.helper_namespace, name},
                     HelperManifest(options_, target_, name));
  if (!made.ok()) {
    return absl::Status(
        made.status().code(),
        absl::StrCat("the helper pod, which needs ",
                     options_.kind == DrillOptions::Kind::kCutNode ? "its node's network"
                                                                   : "to see its node's processes",
                     ", was refused: ", made.status().message(),
                     ". --helper-namespace names a namespace where that is allowed"));
  }
  helper_ = name;
  std::string heard;
  RETURN_IF_ERROR(FollowHelper(load_->seconds() + kHelperStartSeconds, heard));
  Say("struck");
  return absl::OkStatus();
}

absl::Status Drill::Cordon(bool cordoned) {
  const op::ResourceType type = op::ResourceOf<k8s::v1::Node>::Type();
  const auto patched = client_.MergePatch(
      type, {"", target_.node},
      absl::Substitute(R"({"spec":{"unschedulable":$0}})", cordoned ? "true" : "null"));
  if (!patched.ok()) {
    return absl::Status(patched.status().code(),
                        absl::StrCat(cordoned ? "cordoning" : "uncordoning", " node ", target_.node,
                                     ": ", patched.status().message()));
  }
  cordoned_ = cordoned;
  if (!cordoned) return absl::OkStatus();
  record_.struck = load_->seconds();
  Say(absl::StrCat("node ", target_.node, " is cordoned; should this program be killed: kubectl ",
                   "uncordon ", target_.node));
  return absl::OkStatus();
}

// A new epoch serves, and has for some answers; a drained node has no pod of the group any more.
bool Drill::ServesAgain() {
  const auto seen = watch_->Of(GroupName());
  if (seen.empty()) return false;
  const auto& group = seen.back().group;
  bool is_back = group.phase() == "Ready";
  if (options_.kind == DrillOptions::Kind::kDrainNode) {
    for (const auto& member : group.members()) is_back &= member.node() != target_.node;
  } else if (group.members_size() > 1) {
    is_back &= group.epoch() > epoch_before_;
  } else {
    is_back &= FirstBlame(seen, record_.struck).has_value();
  }
  if (!is_back) return false;
  if (answers_when_back_ < 0) answers_when_back_ = load_->completed();
  return load_->completed() >= answers_when_back_ + kAnswersAfter * options_.clients;
}

absl::Status Drill::AwaitService() {
  const absl::Status back =
      WaitFor("the group serves again", options_.timeout_seconds, [this] { return ServesAgain(); });
  record_.served_again = back.ok();
  // That is a finding, and the rest of the report is of use.
  return absl::IsDeadlineExceeded(back) ? absl::OkStatus() : back;
}

// Also after an interruption: with requests that nothing stops, and a deadline.
absl::Status Drill::Mend() {
  if (cordoned_) RETURN_IF_ERROR(Cordon(false));
  if (helper_.empty()) return absl::OkStatus();
  const op::ResourceType type = op::ResourceOf<k8s::v1::Pod>::Type();
  const op::ObjectKey key = {options_.helper_namespace, helper_};
  // A helper on a node that is cut off hears of nothing before its time is over.
  const double deadline = load_->seconds() + options_.seconds + kHelperStartSeconds;
  RETURN_IF_ERROR(client_.Delete(type, key, ""));
  while (load_->seconds() < deadline) {
    const auto left = client_.Get(type, key);
    if (absl::IsNotFound(left.status())) return absl::OkStatus();
    absl::SleepFor(kTurn);
  }
  return absl::DeadlineExceededError(absl::StrCat(
      "helper pod ", key.ToString(), " on node ", target_.node,
      " does not end; what it broke may still be broken: see kubectl get node ", target_.node));
}

absl::Status Drill::Report(double ended) {
  record_.ended = ended;
  record_.answers = load_->answers();
  const auto blame = FirstBlame(watch_->Of(GroupName()), record_.struck);
  if (blame.has_value()) {
    record_.named = blame->at;
    record_.named_as = blame->text;
  }
  const DrillReport report = Evaluate(record_);
  const k8s::v1::ConfigMap stored = StoredReport(record_, report);
  std::fputs(ReportText(record_, report).c_str(), stdout);
  RETURN_IF_ERROR(op::Api<k8s::v1::ConfigMap>(&client_).Apply(stored, kOwner).status());
  Say(absl::StrCat("stored: kubectl -n ", options_.ns, " get configmap ", stored.metadata().name(),
                   " -o yaml"));
  if (report.findings.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError("not all held");
}

}  // namespace

int RunDrill(const DrillOptions& options, std::stop_token stop) {
  auto access = op::FindAccess(options.kubeconfig);
  if (!access.ok()) {
    std::fprintf(stderr, "rempart: drill: %s\n", std::string(access.status().message()).c_str());
    return kExitConfig;
  }
  Drill drill(options, *std::move(access), stop);
  const absl::Status status = drill.Run();
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "rempart: drill: %s\n", std::string(status.message()).c_str());
  return kExitRuntime;
}

}  // namespace rempart::cli
