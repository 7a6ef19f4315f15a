// SPDX-License-Identifier: Apache-2.0
#include "tests/operator/kube/fake_api_server.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <chrono>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace rempart::op {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;
using google::protobuf::util::MessageDifferencer;

constexpr char kCreator[] = "creator";

std::string ToText(const Struct& json) {
  std::string text;
  (void)google::protobuf::util::MessageToJsonString(json, &text);
  return text;
}

Struct FromText(const std::string& text) {
  Struct json;
  (void)google::protobuf::util::JsonStringToMessage(text, &json);
  return json;
}

Struct& Child(Struct& json, const std::string& name) {
  return *(*json.mutable_fields())[name].mutable_struct_value();
}

const Value* Find(const Struct& json, const std::vector<std::string>& path) {
  const Struct* at = &json;
  for (size_t i = 0; i < path.size(); ++i) {
    const auto found = at->fields().find(path[i]);
    if (found == at->fields().end()) return nullptr;
    if (i + 1 == path.size()) return &found->second;
    at = &found->second.struct_value();
  }
  return nullptr;
}

std::string TextAt(const Struct& json, const std::vector<std::string>& path) {
  const Value* value = Find(json, path);
  return value == nullptr ? "" : value->string_value();
}

void SetText(Struct& json, const std::string& name, const std::string& value) {
  (*json.mutable_fields())[name].set_string_value(value);
}

void SetAt(Struct& json, const std::vector<std::string>& path, const Value& value) {
  Struct* at = &json;
  for (size_t i = 0; i + 1 < path.size(); ++i) at = &Child(*at, path[i]);
  (*at->mutable_fields())[path.back()] = value;
}

void RemoveAt(Struct& json, const std::vector<std::string>& path) {
  Struct* at = &json;
  for (size_t i = 0; i + 1 < path.size(); ++i) {
    const auto found = at->mutable_fields()->find(path[i]);
    if (found == at->mutable_fields()->end()) return;
    at = found->second.mutable_struct_value();
  }
  at->mutable_fields()->erase(path.back());
}

bool IsManaged(const std::vector<std::string>& path) {
  if (path[0] == "apiVersion" || path[0] == "kind") return false;
  static const std::set<std::string> kMetadata = {"labels", "annotations", "ownerReferences"};
  return path[0] != "metadata" || (path.size() > 1 && kMetadata.count(path[1]) > 0);
}

// Lists are one value.
void CollectLeaves(const Struct& json, std::vector<std::string>& prefix,
                   std::map<std::vector<std::string>, Value>& leaves) {
  for (const auto& [name, value] : json.fields()) {
    prefix.push_back(name);
    if (value.has_struct_value()) {
      CollectLeaves(value.struct_value(), prefix, leaves);
    } else if (IsManaged(prefix)) {
      leaves[prefix] = value;
    }
    prefix.pop_back();
  }
}

std::map<std::vector<std::string>, Value> Leaves(const Struct& json) {
  std::map<std::vector<std::string>, Value> leaves;
  std::vector<std::string> prefix;
  CollectLeaves(json, prefix, leaves);
  return leaves;
}

void Merge(Struct& into, const Struct& patch) {
  for (const auto& [name, value] : patch.fields()) {
    if (value.has_null_value()) {
      into.mutable_fields()->erase(name);
    } else if (value.has_struct_value()) {
      Merge(Child(into, name), value.struct_value());
    } else {
      (*into.mutable_fields())[name] = value;
    }
  }
}

HttpResponse Refuse(int code, const std::string& reason, const std::string& message) {
  Struct status;
  SetText(status, "kind", "Status");
  SetText(status, "status", "Failure");
  SetText(status, "reason", reason);
  SetText(status, "message", message);
  (*status.mutable_fields())["code"].set_number_value(code);
  return {code, ToText(status)};
}

std::string Unescaped(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      out.push_back(static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16)));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

// "a=b,c!=d"
bool Selects(const std::string& selector, const Struct& json) {
  if (json.fields().empty()) return false;
  for (absl::string_view part : absl::StrSplit(selector, ',', absl::SkipEmpty())) {
    std::pair<std::string, std::string> term = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const bool differs = !term.first.empty() && term.first.back() == '!';
    if (differs) term.first.pop_back();
    if ((TextAt(json, {"metadata", "labels", term.first}) == term.second) == differs) return false;
  }
  return true;
}

std::string EventLine(const std::string& type, const Struct& object) {
  Struct event;
  SetText(event, "type", type);
  Child(event, "object") = object;
  return ToText(event);
}

Struct WithVersion(Struct json, int64_t version) {
  SetText(Child(json, "metadata"), "resourceVersion", absl::StrCat(version));
  return json;
}

bool SpecDiffers(const Struct& a, const Struct& b) {
  const Value* x = Find(a, {"spec"});
  const Value* y = Find(b, {"spec"});
  if (x == nullptr || y == nullptr) return x != y;
  return !MessageDifferencer::Equals(*x, *y);
}

// MicroTime has exactly six fractional digits: "2026-01-01T00:00:00.000000Z".
bool HasWrongMicroTime(const Struct& json) {
  for (const char* field : {"renewTime", "acquireTime"}) {
    const std::string time = TextAt(json, {"spec", field});
    if (!time.empty() && (time.size() != 27 || time[19] != '.')) return true;
  }
  return false;
}

}  // namespace

FakeApiServer::Target FakeApiServer::ParseTarget(const std::string& path) {
  Target target;
  const std::pair<std::string, std::string> halves = absl::StrSplit(path, absl::MaxSplits('?', 1));
  for (absl::string_view pair : absl::StrSplit(halves.second, '&', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> words = absl::StrSplit(pair, absl::MaxSplits('=', 1));
    target.query[words.first] = Unescaped(words.second);
  }
  std::vector<std::string> parts = absl::StrSplit(halves.first, '/', absl::SkipEmpty());
  size_t at = parts[0] == "api" ? 2 : 3;
  for (size_t i = 0; i < at; ++i) absl::StrAppend(&target.kind_path, "/", parts[i]);
  if (parts[at] == "namespaces" && parts.size() > at + 2) {
    target.ns = parts[at + 1];
    at += 2;
  }
  target.collection = absl::StrCat(target.kind_path, "/", parts[at]);
  if (parts.size() > at + 1) target.name = Unescaped(parts[at + 1]);
  if (parts.size() > at + 2) target.subresource = parts[at + 2];
  return target;
}

bool FakeApiServer::Chance(double share) {
  return share > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < share;
}

absl::StatusOr<HttpResponse> FakeApiServer::Send(const HttpRequest& request) {
  const std::lock_guard lock(mu_);
  if (Chance(faults_.fail)) return Refuse(503, "ServiceUnavailable", "try again");
  HttpResponse response = Answer(request);
  changed_.notify_all();
  return response;
}

HttpResponse FakeApiServer::Answer(const HttpRequest& request) {
  const Target target = ParseTarget(request.path);
  if (request.method == "GET" && target.name.empty()) return List(target);
  if (request.method == "GET") {
    const auto found = objects_.find({target.collection, target.ns, target.name});
    if (found == objects_.end()) return Refuse(404, "NotFound", target.name + " not found");
    return {200, ToText(found->second.json)};
  }
  const Json body = FromText(request.body);
  if (HasWrongMicroTime(body)) return Refuse(422, "Invalid", "renewTime: not a MicroTime");
  if (request.method == "POST") return Create(target, body);
  if (request.method == "DELETE") return Delete(target, body);
  if (request.content_type == "application/apply-patch+yaml") return Apply(target, body);
  return MergePatch(target, body);
}

HttpResponse FakeApiServer::List(const Target& target) {
  size_t limit = 0;
  const auto limit_text = target.query.find("limit");
  if (limit_text == target.query.end() || !absl::SimpleAtoi(limit_text->second, &limit)) {
    limit = SIZE_MAX;
  }
  std::string token;
  if (const auto found = target.query.find("continue"); found != target.query.end()) {
    token = found->second;
    if (pages_.count(token) == 0) return Refuse(410, "Expired", "the continue token expired");
  } else {
    token = absl::StrCat("page-", ++next_page_);
    const auto selector = target.query.find("labelSelector");
    Page page{version_, {}};
    for (const auto& [id, object] : objects_) {
      if (id.collection != target.collection || (!target.ns.empty() && id.ns != target.ns))
        continue;
      if (selector != target.query.end() && !Selects(selector->second, object.json)) continue;
      page.rest.push_back(object.json);
    }
    pages_[token] = std::move(page);
  }
  return NextPage(token, limit);
}

HttpResponse FakeApiServer::NextPage(const std::string& token, size_t limit) {
  Page& page = pages_[token];
  Json list;
  SetText(Child(list, "metadata"), "resourceVersion", absl::StrCat(page.version));
  auto& items = *(*list.mutable_fields())["items"].mutable_list_value();
  for (size_t i = 0; i < limit && !page.rest.empty(); ++i) {
    *items.add_values()->mutable_struct_value() = std::move(page.rest.front());
    page.rest.pop_front();
  }
  if (page.rest.empty()) {
    pages_.erase(token);
  } else {
    SetText(Child(list, "metadata"), "continue", token);
  }
  return {200, ToText(list)};
}

HttpResponse FakeApiServer::Commit(const ObjectId& id, Json json, int code) {
  Object& object = objects_[id];
  const Json before = object.json;
  Json& metadata = Child(json, "metadata");
  SetText(metadata, "name", id.name);
  if (!id.ns.empty()) SetText(metadata, "namespace", id.ns);
  if (before.fields().empty()) {
    SetText(metadata, "uid", absl::StrFormat("00000000-0000-4000-8000-%012d", next_uid_++));
    SetText(metadata, "creationTimestamp",
            absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone()));
    (*metadata.mutable_fields())["generation"].set_number_value(1);
  } else {
    for (const char* kept : {"uid", "creationTimestamp", "generation", "resourceVersion"}) {
      (*metadata.mutable_fields())[kept] = *Find(before, {"metadata", kept});
    }
    if (SpecDiffers(before, json)) {
      Value& generation = (*metadata.mutable_fields())["generation"];
      generation.set_number_value(generation.number_value() + 1);
    }
  }
  if (MessageDifferencer::Equals(before, json)) return {200, ToText(json)};
  object.json = WithVersion(std::move(json), ++version_);
  history_.push_back(
      {version_, id, before.fields().empty() ? "ADDED" : "MODIFIED", before, object.json});
  HttpResponse response = {code, ToText(object.json)};
  CollectGarbage();
  return response;
}

HttpResponse FakeApiServer::Create(Target target, Json json) {
  target.name = TextAt(json, {"metadata", "name"});
  const ObjectId id{target.collection, target.ns, target.name};
  if (objects_.count(id) > 0) return Refuse(409, "AlreadyExists", id.name + " already exists");
  json.mutable_fields()->erase("status");
  Object& object = objects_[id];
  for (const auto& [path, value] : Leaves(json)) object.owned[kCreator][path] = true;
  return Commit(id, std::move(json), 201);
}

HttpResponse FakeApiServer::Apply(const Target& target, const Json& intent) {
  const ObjectId id{target.collection, target.ns, target.name};
  const bool is_status = target.subresource == "status";
  if (is_status && objects_.count(id) == 0) return Refuse(404, "NotFound", id.name + " not found");
  const int code = objects_.count(id) > 0 ? 200 : 201;
  Object& object = objects_[id];
  Json json = object.json;
  for (const char* field : {"apiVersion", "kind"}) SetText(json, field, TextAt(intent, {field}));
  const std::string manager = target.query.at("fieldManager") + (is_status ? "/status" : "");
  std::map<FieldPath, bool> owned;
  for (const auto& [path, value] : Leaves(intent)) {
    if ((path[0] == "status") != is_status) continue;
    const Value* before = Find(json, path);
    if (before == nullptr || !MessageDifferencer::Equals(*before, value)) {
      for (auto& [other, paths] : object.owned) paths.erase(path);
      SetAt(json, path, value);
    }
    owned[path] = true;
  }
  const std::map<FieldPath, bool> gave_up = std::exchange(object.owned[manager], std::move(owned));
  for (const auto& [path, unused] : gave_up) {
    bool still_owned = false;
    for (const auto& [other, paths] : object.owned) still_owned |= paths.count(path) > 0;
    if (!still_owned) RemoveAt(json, path);
  }
  return Commit(id, std::move(json), code);
}

HttpResponse FakeApiServer::MergePatch(const Target& target, const Json& patch) {
  const ObjectId id{target.collection, target.ns, target.name};
  const auto found = objects_.find(id);
  if (found == objects_.end()) return Refuse(404, "NotFound", id.name + " not found");
  const std::string wanted = TextAt(patch, {"metadata", "resourceVersion"});
  if (!wanted.empty() && wanted != TextAt(found->second.json, {"metadata", "resourceVersion"})) {
    return Refuse(409, "Conflict", "the object has been modified");
  }
  Json json = found->second.json;
  Merge(json, patch);
  return Commit(id, std::move(json), 200);
}

HttpResponse FakeApiServer::Delete(const Target& target, const Json& options) {
  const ObjectId id{target.collection, target.ns, target.name};
  const auto found = objects_.find(id);
  if (found == objects_.end()) return Refuse(404, "NotFound", id.name + " not found");
  const std::string uid = TextAt(options, {"preconditions", "uid"});
  if (!uid.empty() && uid != TextAt(found->second.json, {"metadata", "uid"})) {
    return Refuse(409, "Conflict", "the uid does not match");
  }
  Erase(id);
  return {200, "{\"kind\":\"Status\",\"status\":\"Success\"}"};
}

void FakeApiServer::Erase(const ObjectId& id) {
  const auto found = objects_.find(id);
  const Json last = std::move(found->second.json);
  objects_.erase(found);
  ++version_;
  history_.push_back({version_, id, "DELETED", last, WithVersion(last, version_)});
  CollectGarbage();
}

void FakeApiServer::CollectGarbage() {
  std::set<std::string> uids;
  for (const auto& [id, object] : objects_) uids.insert(TextAt(object.json, {"metadata", "uid"}));
  for (const auto& [id, object] : objects_) {
    const Value* owners = Find(object.json, {"metadata", "ownerReferences"});
    if (owners == nullptr || owners->list_value().values_size() == 0) continue;
    bool owned = false;
    for (const Value& owner : owners->list_value().values()) {
      owned |= uids.count(TextAt(owner.struct_value(), {"uid"})) > 0;
    }
    // Erase comes back here for the rest.
    if (!owned) return Erase(ObjectId(id));
  }
}

std::vector<std::string> FakeApiServer::Lines(const Target& target, int64_t& version) {
  std::vector<std::string> lines;
  const auto selector = target.query.find("labelSelector");
  for (const Change& change : history_) {
    if (change.version <= version || change.id.collection != target.collection ||
        (!target.ns.empty() && change.id.ns != target.ns)) {
      continue;
    }
    std::string type = change.type;
    if (selector != target.query.end()) {
      const bool was = Selects(selector->second, change.before);
      const bool is = type != "DELETED" && Selects(selector->second, change.after);
      if (!was && !is) continue;
      type = !was ? "ADDED" : !is ? "DELETED" : type;
    }
    lines.push_back(EventLine(type, change.after));
  }
  version = version_;
  return lines;
}

absl::StatusOr<HttpResponse> FakeApiServer::Stream(
    const HttpRequest& request, const std::function<bool(absl::string_view)>& on_line,
    std::stop_token stop) {
  const Target target = ParseTarget(request.path);
  int64_t version = 0;
  int seconds = 0;
  if (!absl::SimpleAtoi(target.query.at("resourceVersion"), &version) ||
      !absl::SimpleAtoi(target.query.at("timeoutSeconds"), &seconds)) {
    return Refuse(400, "BadRequest", "resourceVersion and timeoutSeconds must be numbers");
  }
  const auto end = std::chrono::system_clock::now() + std::chrono::seconds(seconds);
  std::unique_lock lock(mu_);
  const int64_t epoch = stream_epoch_;
  int64_t garbage = garbage_epoch_;
  while (!stop.stop_requested()) {
    if (epoch != stream_epoch_) return absl::UnavailableError("the connection broke");
    if (version < forgotten_) {
      const Struct expired = FromText(Refuse(410, "Expired", "too old resource version").body);
      const std::string line = EventLine("ERROR", expired);
      lock.unlock();
      on_line(line);
      return HttpResponse{200, ""};
    }
    std::vector<std::string> lines = Lines(target, version);
    if (std::exchange(garbage, garbage_epoch_) != garbage) lines.push_back("<html>not JSON</html>");
    for (size_t i = 0; i + 1 < lines.size(); ++i) {
      // A pair stays together, so that both arrive before the stream can break.
      if (Chance(faults_.swap)) std::swap(lines[i], lines[i + 1]);
    }
    if (!lines.empty() && Chance(faults_.repeat)) lines.push_back(lines.back());
    const bool breaks = Chance(lines.empty() ? 0 : faults_.break_stream);
    if (lines.empty() && std::chrono::system_clock::now() >= end) break;
    if (!lines.empty()) {
      lock.unlock();
      for (const std::string& line : lines) {
        if (!on_line(line)) return HttpResponse{200, ""};
      }
      if (breaks) return absl::UnavailableError("the connection broke");
      lock.lock();
      continue;
    }
    changed_.wait_until(lock, stop, end, [&] {
      return version_ > version || epoch != stream_epoch_ || version < forgotten_ ||
             garbage != garbage_epoch_;
    });
  }
  lock.unlock();
  // The server's last word of a watch in good order.
  Json bookmark;
  on_line(EventLine("BOOKMARK", WithVersion(std::move(bookmark), version)));
  return HttpResponse{200, ""};
}

void FakeApiServer::SetFaults(const Faults& faults) {
  const std::lock_guard lock(mu_);
  faults_ = faults;
  random_.seed(faults.seed);
}

void FakeApiServer::BreakStreams() {
  const std::lock_guard lock(mu_);
  ++stream_epoch_;
  changed_.notify_all();
}

void FakeApiServer::ForgetHistory() {
  const std::lock_guard lock(mu_);
  // Versions are of the whole cluster: something else has changed meanwhile.
  forgotten_ = ++version_;
  history_.clear();
  pages_.clear();
  changed_.notify_all();
}

void FakeApiServer::SendGarbage() {
  const std::lock_guard lock(mu_);
  ++garbage_epoch_;
  changed_.notify_all();
}

}  // namespace rempart::op
