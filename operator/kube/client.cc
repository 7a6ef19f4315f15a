// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/client.h"

#include <google/protobuf/util/json_util.h>
#include <simdjson.h>

#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "operator/kube/numbers_as_texts.h"

namespace rempart::op {
namespace {

// All kinds are listed at once, and a page is in memory several times while it is read.
constexpr int kPageSize = 100;
// Beyond the server's own end of a watch; a stream that is silent for longer is dead.
constexpr int kWatchGraceSeconds = 30;

bool IsUnreserved(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_' || c == '~';
}

// For a part of a path or a query.
std::string Escaped(absl::string_view text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    if (IsUnreserved(c)) {
      out.push_back(c);
    } else {
      out.push_back('%');
      out.push_back(kHex[static_cast<unsigned char>(c) >> 4]);
      out.push_back(kHex[static_cast<unsigned char>(c) & 15]);
    }
  }
  return out;
}

std::string ObjectPath(const ResourceType& type, const ObjectKey& key) {
  return absl::StrCat(type.Path(key.ns), "/", Escaped(key.name));
}

// A top-level or nested string of a parsed object; empty when it is not there.
std::string TextAt(simdjson::dom::element object, const char* pointer) {
  std::string_view text;
  if (object.at_pointer(pointer).get(text) != simdjson::SUCCESS) return "";
  return std::string(text);
}

absl::Status ErrorOf(int code, absl::string_view reason, absl::string_view message) {
  switch (code) {
    case 400:
    case 422:
      return absl::InvalidArgumentError(message);
    case 401:
      return absl::UnauthenticatedError(message);
    case 403:
      return absl::PermissionDeniedError(message);
    case 404:
      return absl::NotFoundError(message);
    case 409:
      return reason == "AlreadyExists" ? absl::AlreadyExistsError(message)
                                       : absl::AbortedError(message);
    case 410:
      return absl::OutOfRangeError(message);
    case 429:
      return absl::ResourceExhaustedError(message);
    default:
      return code >= 500 ? absl::UnavailableError(message) : absl::InternalError(message);
  }
}

absl::Status ErrorOfStatusObject(simdjson::dom::element status, int code) {
  int64_t own_code = 0;
  if (status["code"].get(own_code) == simdjson::SUCCESS) code = static_cast<int>(own_code);
  const std::string message = TextAt(status, "/message");
  return ErrorOf(code, TextAt(status, "/reason"),
                 message.empty() ? absl::StrCat("API server answers ", code) : message);
}

}  // namespace

absl::Status FromKubeResponse(const HttpResponse& response) {
  if (response.code >= 200 && response.code < 300) return absl::OkStatus();
  simdjson::dom::parser parser;
  simdjson::dom::element status;
  if (parser.parse(response.body).get(status) == simdjson::SUCCESS && status.is_object()) {
    return ErrorOfStatusObject(status, response.code);
  }
  return ErrorOf(response.code, "",
                 absl::StrCat("API server answers ", response.code, " ",
                              absl::string_view(response.body).substr(0, 256)));
}

std::string ToJson(const google::protobuf::Message& message) {
  std::string json;
  // Fails only for Any and for malformed well-known types, which these messages have not.
  (void)google::protobuf::util::MessageToJsonString(message, &json);
  return json;
}

absl::Status FromJson(absl::string_view json, google::protobuf::Message& message) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      NumbersAsTexts(message.GetDescriptor(), json), &message, options);
  if (parsed.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      message.GetDescriptor()->name(), " from the API server: ", std::string(parsed.message())));
}

absl::StatusOr<WatchEvent> ParseWatchLine(absl::string_view line) {
  simdjson::dom::parser parser;
  simdjson::dom::element event;
  simdjson::dom::element object;
  std::string_view type;
  if (parser.parse(line.data(), line.size()).get(event) != simdjson::SUCCESS ||
      event["type"].get(type) != simdjson::SUCCESS ||
      event["object"].get(object) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError("a line of a watch is not an event");
  }
  if (type == "ERROR") return ErrorOfStatusObject(object, 500);
  WatchEvent out;
  if (type == "ADDED") {
    out.kind = WatchKind::kAdded;
  } else if (type == "MODIFIED") {
    out.kind = WatchKind::kModified;
  } else if (type == "DELETED") {
    out.kind = WatchKind::kDeleted;
  } else if (type == "BOOKMARK") {
    out.kind = WatchKind::kBookmark;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("a watch event of type \"", type.data(), "\""));
  }
  out.object_json = simdjson::minify(object);
  out.resource_version = TextAt(object, "/metadata/resourceVersion");
  return out;
}

absl::StatusOr<std::string> Client::Send(HttpRequest request) const {
  ++calls_;
  if (request.method != "GET") {
    ++writes_;
    if (absl::StrContains(request.path, "/leases/")) ++lease_writes_;
  }
  ASSIGN_OR_RETURN(HttpResponse response, transport_->Send(request));
  RETURN_IF_ERROR(FromKubeResponse(response));
  return std::move(response.body);
}

absl::StatusOr<std::string> Client::Get(const ResourceType& type, const ObjectKey& key) const {
  return Send({.path = ObjectPath(type, key)});
}

absl::Status Client::ReadPage(const ResourceType& type, const std::string& body,
                              const OnItem& on_item, std::string& version,
                              std::string& next) const {
  MutexLock lock(&reading_);
  simdjson::dom::parser parser;
  simdjson::dom::element page;
  simdjson::dom::array items;
  if (parser.parse(body).get(page) != simdjson::SUCCESS || !page.is_object()) {
    return absl::UnavailableError(absl::StrCat("the list of ", type.plural, " is not JSON"));
  }
  if (page["items"].get(items) == simdjson::SUCCESS) {
    for (const simdjson::dom::element item : items) {
      RETURN_IF_ERROR(on_item(simdjson::minify(item)));
    }
  }
  version = TextAt(page, "/metadata/resourceVersion");
  next = TextAt(page, "/metadata/continue");
  return absl::OkStatus();
}

absl::StatusOr<std::string> Client::List(const ResourceType& type, absl::string_view ns,
                                         absl::string_view label_selector,
                                         const OnItem& on_item) const {
  std::string version;
  std::string next;
  do {
    std::string path = absl::StrCat(type.Path(ns), "?limit=", kPageSize);
    if (!label_selector.empty()) absl::StrAppend(&path, "&labelSelector=", Escaped(label_selector));
    if (!next.empty()) absl::StrAppend(&path, "&continue=", Escaped(next));
    ASSIGN_OR_RETURN(const std::string body, Send({.path = std::move(path)}));
    RETURN_IF_ERROR(ReadPage(type, body, on_item, version, next));
  } while (!next.empty());
  return version;
}

absl::Status Client::Watch(const ResourceType& type, const WatchOptions& options,
                           const std::function<bool(WatchEvent)>& on_event,
                           std::stop_token stop) const {
  HttpRequest request;
  request.path = absl::StrCat(type.Path(options.ns), "?watch=1&allowWatchBookmarks=true",
                              "&timeoutSeconds=", options.timeout_seconds,
                              "&resourceVersion=", Escaped(options.resource_version));
  if (!options.label_selector.empty()) {
    absl::StrAppend(&request.path, "&labelSelector=", Escaped(options.label_selector));
  }
  request.timeout = absl::Seconds(options.timeout_seconds + kWatchGraceSeconds);
  absl::Status failure;
  absl::StatusOr<HttpResponse> response = transport_->Stream(
      request,
      [&](absl::string_view line) {
        absl::StatusOr<WatchEvent> event = ParseWatchLine(line);
        if (event.ok()) return on_event(*std::move(event));
        failure = event.status();
        return false;
      },
      stop);
  RETURN_IF_ERROR(failure);
  RETURN_IF_ERROR(response.status());
  return FromKubeResponse(*response);
}

absl::StatusOr<std::string> Client::Create(const ResourceType& type, const ObjectKey& key,
                                           std::string json) const {
  return Send({.method = "POST",
               .path = type.Path(key.ns),
               .content_type = "application/json",
               .body = std::move(json)});
}

absl::StatusOr<std::string> Client::Apply(const ResourceType& type, const ObjectKey& key,
                                          absl::string_view subresource, std::string json,
                                          absl::string_view field_owner) const {
  return Send(
      {.method = "PATCH",
       .path = absl::StrCat(ObjectPath(type, key), subresource.empty() ? "" : "/", subresource,
                            "?fieldManager=", Escaped(field_owner), "&force=true"),
       .content_type = "application/apply-patch+yaml",
       .body = std::move(json)});
}

absl::StatusOr<std::string> Client::MergePatch(const ResourceType& type, const ObjectKey& key,
                                               std::string json) const {
  return Send({.method = "PATCH",
               .path = ObjectPath(type, key),
               .content_type = "application/merge-patch+json",
               .body = std::move(json)});
}

absl::Status Client::Delete(const ResourceType& type, const ObjectKey& key, absl::string_view uid,
                            std::optional<int32_t> grace_seconds) const {
  std::string options =
      R"({"apiVersion":"v1","kind":"DeleteOptions","propagationPolicy":"Background")";
  // A uid is made of characters that need no escape in JSON.
  if (!uid.empty()) absl::StrAppend(&options, R"(,"preconditions":{"uid":")", uid, "\"}");
  if (grace_seconds.has_value())
    absl::StrAppend(&options, R"(,"gracePeriodSeconds":)", *grace_seconds);
  const absl::Status status = Send({.method = "DELETE",
                                    .path = ObjectPath(type, key),
                                    .content_type = "application/json",
                                    .body = options + "}"})
                                  .status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace rempart::op
