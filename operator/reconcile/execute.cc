// SPDX-License-Identifier: Apache-2.0
#include "operator/reconcile/execute.h"

#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <set>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/log.h"
#include "operator/kube/reflector.h"
#include "operator/plan/placement.h"
#include "operator/reconcile/intent.h"

namespace rempart::op {
namespace {

constexpr char kFieldOwner[] = "rempart-operator";
constexpr char kStatusOwner[] = "rempart-operator-status";
constexpr char kWorkerTls[] = "rempart-worker-tls";
// How long the copied certificate is taken for the original's.
constexpr absl::Duration kTrustCopy = absl::Hours(1);
// What was created and is in no store after so long has been deleted since; the end of a pod that
// was asked for, and that no store shows, is asked for again.
constexpr absl::Duration kLag = absl::Seconds(2);
// Between two writes of a Model's status that differ in details only.
constexpr absl::Duration kStatusPause = absl::Seconds(1);

bool IsOwnedBy(const k8s::v1::ObjectMeta& metadata, const Model& owner) {
  return std::any_of(metadata.owner_references().begin(), metadata.owner_references().end(),
                     [&](const auto& o) { return o.uid() == owner.metadata().uid(); });
}

// What changes when somebody changes the object. A StatefulSet's version moves with its status; its
// generation does not.
template <typename T>
std::string VersionOf(const T& object) {
  if constexpr (std::is_same_v<T, k8s::v1::StatefulSet>) {
    return absl::StrCat(object.metadata().uid(), " ", object.metadata().generation());
  } else {
    return object.metadata().resource_version();
  }
}

k8s::v1::ObjectReference ReferenceTo(const Model& model) {
  k8s::v1::ObjectReference reference;
  reference.set_api_version(ResourceOf<Model>::Type().ApiVersion());
  reference.set_kind("Model");
  reference.set_name(model.metadata().name());
  reference.set_namespace_(model.metadata().namespace_());
  reference.set_uid(model.metadata().uid());
  return reference;
}

// Owners come in any order.
bool IsCopied(const k8s::v1::Secret& there, const k8s::v1::Secret& intent) {
  std::set<std::string> owners;
  for (const auto& owner : there.metadata().owner_references()) owners.insert(owner.uid());
  for (const auto& owner : intent.metadata().owner_references()) {
    if (owners.count(owner.uid()) == 0) return false;
  }
  k8s::v1::Secret content = intent;
  content.mutable_metadata()->clear_owner_references();
  return HoldsIntent(there, content);
}

void ClearVolatile(ModelStatus& status) {
  for (auto& group : *status.mutable_groups()) {
    for (auto& member : *group.mutable_members()) {
      member.clear_step();
      member.clear_activity();
      member.clear_last_step_age_seconds();
    }
  }
}

}  // namespace

bool StatusDiffers(ModelStatus a, ModelStatus b) {
  ClearVolatile(a);
  ClearVolatile(b);
  return !google::protobuf::util::MessageDifferencer::Equals(a, b);
}

bool StatusDiffersInSubstance(ModelStatus a, ModelStatus b) {
  for (ModelStatus* status : {&a, &b}) {
    status->clear_message();
    status->clear_groups_summary();
    status->clear_download();
    for (auto& condition : *status->mutable_conditions()) condition.clear_message();
    status->mutable_rollout()->clear_message();
    for (auto& group : *status->mutable_groups()) {
      group.clear_phase();
      group.clear_members();
      group.clear_waiting_for();
      group.clear_fabric();
      group.clear_start();
    }
  }
  return !google::protobuf::util::MessageDifferencer::Equals(a, b);
}

Executor::Executor(const Client* client, const Informers* informers, NodeLedger* ledger,
                   JoinRegistry* joins, EventRecorder* events, const Clock* clock,
                   std::string own_namespace)
    : client_(client),
      informers_(informers),
      ledger_(ledger),
      joins_(joins),
      events_(events),
      clock_(clock),
      own_namespace_(std::move(own_namespace)) {}

Executor::AppliedOfModel& Executor::Known(const ObjectKey& model) {
  MutexLock lock(&mu_);
  return applied_[model];
}

template <typename T>
bool Executor::IsApplied(const T* there, const T& intent, const Applied& last,
                         const std::string& digest, bool& lagged) const {
  const bool by_us = last.digest == digest;
  if (there == nullptr) {
    const bool is_behind = by_us && clock_->Now() - last.at < kLag;
    lagged |= is_behind;
    return is_behind;
  }
  const k8s::v1::ObjectMeta& metadata = there->metadata();
  if (!metadata.deletion_timestamp().empty()) return false;
  if (by_us && (IsOlderVersion(metadata.resource_version(), last.resource_version) ||
                VersionOf(*there) == last.content_version)) {
    return true;
  }
  const auto noted = metadata.annotations().find(kIntentAnnotation);
  if (noted == metadata.annotations().end() || noted->second != digest) return false;
  T content = intent;  // items of a list do not say their kind
  content.clear_api_version();
  content.clear_kind();
  return HoldsIntent(*there, content);
}

template <typename T>
absl::Status Executor::Apply(const Model& owner, const Store<T>& store, T intent) {
  const Api<T> api(client_);
  const ObjectKey key = KeyOf(intent);
  const std::string digest = IntentDigest(intent);
  AppliedOfModel& known = Known(KeyOf(owner));
  Applied& last = known.objects[absl::StrCat(api.type().kind, " ", key.name)];
  const auto there = store.Get(key);
  if (IsApplied(there.get(), intent, last, digest, known.lagged)) return absl::OkStatus();
  if (there == nullptr) {
    // A stranger's object of this name is not in the store, and must not be taken over.
    const absl::StatusOr<T> found = api.Get(key);
    if (!found.ok() && !absl::IsNotFound(found.status())) return found.status();
    if (found.ok() && !IsOwnedBy(found->metadata(), owner)) {
      return absl::FailedPreconditionError(
          absl::StrCat("there is a ", api.type().kind, " \"", key.name, "\" in namespace ", key.ns,
                       " that belongs to something else; rename it or the Model"));
    }
  }
  (*intent.mutable_metadata()->mutable_annotations())[kIntentAnnotation] = digest;
  ASSIGN_OR_RETURN(T applied, api.Apply(intent, kFieldOwner));
  known.progressed = true;
  last = {digest, applied.metadata().resource_version(), VersionOf(applied), clock_->Now()};
  return absl::OkStatus();
}

void Executor::Forget(const ObjectKey& model) {
  MutexLock lock(&mu_);
  applied_.erase(model);
}

template <typename T>
absl::Status Executor::Remove(const Model& owner, const Store<T>& store, const ObjectKey& key) {
  const Api<T> api(client_);
  Known(KeyOf(owner)).objects.erase(absl::StrCat(api.type().kind, " ", key.name));
  const auto there = store.Get(key);
  if (there == nullptr || !IsOwnedBy(there->metadata(), owner) ||
      !there->metadata().deletion_timestamp().empty()) {
    return absl::OkStatus();
  }
  const absl::Status status = api.Delete(key, there->metadata().uid());
  // Another incarnation has the name: the next reconcile sees it.
  return absl::IsAborted(status) ? absl::OkStatus() : status;
}

absl::Status Executor::TakeOverReplacing(const k8s::v1::StatefulSet& intent) {
  const auto there = informers_->stateful_sets.store().Get(KeyOf(intent));
  if (there == nullptr || there->spec().update_strategy().type() != "RollingUpdate") {
    return absl::OkStatus();
  }
  const absl::Status status =
      Api<k8s::v1::StatefulSet>(client_)
          .MergePatchText(KeyOf(intent),
                          R"({"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}})")
          .status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::Status Executor::ApplyGroup(const Observed& observed, const GroupPlan& group) {
  const GroupObjects objects = MakeGroupObjects(observed, group);
  const Model& owner = observed.model;
  RETURN_IF_ERROR(Apply(owner, informers_->config_maps.store(), objects.config_map));
  RETURN_IF_ERROR(Apply(owner, informers_->services.store(), objects.service));
  if (objects.network_policy.has_value()) {
    RETURN_IF_ERROR(Apply(owner, informers_->policies.store(), *objects.network_policy));
  }
  RETURN_IF_ERROR(TakeOverReplacing(objects.stateful_set));
  return Apply(owner, informers_->stateful_sets.store(), objects.stateful_set);
}

absl::Status Executor::CopyWorkerTls(const Model& model) {
  const std::string& ns = model.metadata().namespace_();
  if (own_namespace_.empty() || ns == own_namespace_) return absl::OkStatus();
  MutexLock lock(&tls_mu_);
  std::map<std::string, absl::Time>& owners = tls_owners_[ns];
  const auto known = owners.find(model.metadata().uid());
  if (known != owners.end() && clock_->Now() - known->second < kTrustCopy) {
    return absl::OkStatus();
  }
  const Api<k8s::v1::Secret> secrets(client_);
  const absl::StatusOr<k8s::v1::Secret> original = secrets.Get({own_namespace_, kWorkerTls});
  if (!original.ok()) {
    return absl::Status(
        original.status().code(),
        absl::StrCat("Secret ", own_namespace_, "/", kWorkerTls,
                     ", made by the chart, cannot be read: ", original.status().message()));
  }
  k8s::v1::Secret intent;
  intent.mutable_metadata()->set_name(kWorkerTls);
  intent.mutable_metadata()->set_namespace_(ns);
  (*intent.mutable_metadata()->mutable_labels())["app.kubernetes.io/managed-by"] = kFieldOwner;
  std::map<std::string, absl::Time> written;
  for (const auto& one : informers_->models.store().All()) {
    if (one->metadata().namespace_() != ns || !one->metadata().deletion_timestamp().empty()) {
      continue;
    }
    k8s::v1::OwnerReference& owner = *intent.mutable_metadata()->add_owner_references();
    owner.set_api_version(ResourceOf<Model>::Type().ApiVersion());
    owner.set_kind("Model");
    owner.set_name(one->metadata().name());
    owner.set_uid(one->metadata().uid());
    written[one->metadata().uid()] = clock_->Now();
  }
  intent.set_type(original->type());
  *intent.mutable_data() = original->data();
  const absl::StatusOr<k8s::v1::Secret> copy = secrets.Get({ns, kWorkerTls});
  if (!copy.ok() || !IsCopied(*copy, intent)) {
    RETURN_IF_ERROR(secrets.Apply(intent, kFieldOwner).status());
  }
  owners = std::move(written);
  return absl::OkStatus();
}

absl::Status Executor::ApplyOfModel(const Observed& observed, const Plan& plan) {
  if (plan.groups.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CopyWorkerTls(observed.model));
  RETURN_IF_ERROR(
      Apply(observed.model, informers_->budgets.store(), MakeDisruptionBudget(observed.model)));
  if (!plan.last_good.has_value()) return absl::OkStatus();
  return Apply(observed.model, informers_->config_maps.store(),
               MakeLastGoodRecord(observed.model, *plan.last_good));
}

// Names the pod's node and lifts our gate, in one patch; gates of others stay.
absl::StatusOr<bool> Executor::LiftGate(const ObjectKey& key, const PodRelease& release) {
  const auto pod = informers_->pods.store().Get(key);
  const auto node = informers_->nodes.store().Get({"", release.node});
  if (pod == nullptr || node == nullptr || pod->metadata().uid() != release.uid) {
    return false;
  }
  k8s::v1::Pod patch;
  patch.mutable_metadata()->set_uid(release.uid);
  const auto host = node->metadata().labels().find(kHostnameLabel);
  (*patch.mutable_spec()->mutable_node_selector())[kHostnameLabel] =
      host == node->metadata().labels().end() ? release.node : host->second;
  for (const auto& gate : pod->spec().scheduling_gates()) {
    if (gate.name() != kPlacementGate) *patch.mutable_spec()->add_scheduling_gates() = gate;
  }
  std::string json = ToJson(patch);
  if (patch.spec().scheduling_gates().empty()) {
    json = absl::StrReplaceAll(json, {{"\"spec\":{", "\"spec\":{\"schedulingGates\":null,"}});
  }
  const absl::Status status = Api<k8s::v1::Pod>(client_).MergePatchText(key, json).status();
  if (absl::IsNotFound(status) || absl::IsAborted(status)) return false;
  RETURN_IF_ERROR(status);
  return true;
}

absl::Status Executor::Release(const std::string& ns, const PodRelease& release) {
  const ObjectKey key{ns, release.pod};
  const absl::StatusOr<bool> lifted = LiftGate(key, release);
  if (!lifted.ok() || !*lifted) {
    ledger_->Withdraw(key, release.uid);
    return lifted.status();
  }
  LogInfo("plan", "pod released", {{"pod", key.ToString()}, {"node", release.node}});
  return absl::OkStatus();
}

absl::Status Executor::DeletePod(const PodDeletion& deletion, const std::string& ns,
                                 AppliedOfModel& known) {
  const absl::Time now = clock_->Now();
  std::erase_if(known.ending, [&](const auto& one) {
    // A clock that was set back must not keep a pod alive.
    return now < one.second || now - one.second >= kLag;
  });
  const auto asked = std::make_pair(deletion.uid, deletion.grace_seconds);
  if (known.ending.count(asked) > 0) return absl::OkStatus();
  const ObjectKey key{ns, deletion.pod};
  LogInfo("plan", "pod deleted", {{"pod", key.ToString()}, {"because", deletion.why}});
  const absl::Status status =
      Api<k8s::v1::Pod>(client_).Delete(key, deletion.uid, deletion.grace_seconds);
  // Another incarnation has the name: the next reconcile sees it.
  if (!status.ok() && !absl::IsAborted(status)) return status;
  known.ending[asked] = now;
  return absl::OkStatus();
}

void Executor::RemoveGroup(const Observed& observed, const std::string& name,
                           absl::Status& result) {
  const ObjectKey key{observed.model.metadata().namespace_(), name};
  result.Update(Remove(observed.model, informers_->stateful_sets.store(), key));
  result.Update(Remove(observed.model, informers_->services.store(), key));
  result.Update(Remove(observed.model, informers_->config_maps.store(), key));
  result.Update(Remove(observed.model, informers_->policies.store(), key));
}

absl::StatusOr<absl::Duration> Executor::WriteStatus(const Observed& observed, const Plan& plan) {
  const ModelStatus& before = observed.model.status();
  if (!StatusDiffers(before, plan.status)) return absl::ZeroDuration();
  AppliedOfModel& known = Known(KeyOf(observed.model));
  const absl::Duration left = known.status_at + kStatusPause - clock_->Now();
  const bool can_wait = plan.events.empty() && !StatusDiffersInSubstance(before, plan.status);
  // A clock that was set back must not silence it.
  if (can_wait && left > absl::ZeroDuration() && left <= kStatusPause) return left;
  Model intent;
  intent.mutable_metadata()->set_name(observed.model.metadata().name());
  intent.mutable_metadata()->set_namespace_(observed.model.metadata().namespace_());
  *intent.mutable_status() = plan.status;
  const absl::Status status = Api<Model>(client_).ApplyStatus(intent, kStatusOwner).status();
  if (absl::IsNotFound(status)) return absl::ZeroDuration();  // deleted meanwhile
  RETURN_IF_ERROR(status);
  known.status_at = clock_->Now();
  for (const PlannedEvent& event : plan.events) {
    events_->Record({ReferenceTo(observed.model), event.type, event.reason, event.message});
  }
  return absl::ZeroDuration();
}

absl::StatusOr<absl::Duration> Executor::Execute(const Observed& observed, const Plan& plan) {
  absl::Status result;
  AppliedOfModel& known = Known(KeyOf(observed.model));
  known.lagged = known.progressed = false;
  const auto keep = [&](const absl::Status& status) {
    if (!status.ok()) result.Update(status);
    return status.ok();
  };
  const std::string& ns = observed.model.metadata().namespace_();
  keep(ApplyOfModel(observed, plan));
  for (const GroupPlan& group : plan.groups) {
    if (group.apply && !keep(ApplyGroup(observed, group))) break;
  }
  for (const auto& [index, order] : plan.drains) {
    joins_->Drain(absl::StrCat(ns, "/", order.group), absl::Seconds(order.deadline_seconds));
  }
  for (const std::string& name : plan.resumes) joins_->Resume(absl::StrCat(ns, "/", name));
  for (const PodDeletion& deletion : plan.deletions) keep(DeletePod(deletion, ns, known));
  for (const PodRelease& release : plan.releases) keep(Release(ns, release));
  for (const std::string& name : plan.removed_groups) RemoveGroup(observed, name, result);
  if (!result.ok()) {
    events_->Record(
        {ReferenceTo(observed.model), "Warning", "CannotApply", std::string(result.message())});
  }
  // The status is written whatever went wrong, so that it stays true.
  const absl::StatusOr<absl::Duration> status_waits = WriteStatus(observed, plan);
  keep(status_waits.status());
  RETURN_IF_ERROR(result);
  absl::Duration again =
      plan.requeue_seconds == 0 ? absl::InfiniteDuration() : absl::Seconds(plan.requeue_seconds);
  if (*status_waits > absl::ZeroDuration()) again = std::min(again, *status_waits);
  return known.lagged ? std::min(again, kLag) : again;
}

void PromiseReleases(const std::string& ns, const Plan& plan, NodeLedger& ledger) {
  for (const PodRelease& release : plan.releases) {
    ledger.Promise({ns, release.pod}, release.uid, release.node, release.requests);
  }
}

}  // namespace rempart::op
