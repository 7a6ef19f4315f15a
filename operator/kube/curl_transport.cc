// SPDX-License-Identifier: Apache-2.0
#include "operator/kube/curl_transport.h"

#include <curl/curl.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/check.h"

namespace rempart::op {
namespace {

constexpr size_t kMaxIdleHandles = 8;
constexpr size_t kMaxBodyBytes = size_t{256} << 20;
constexpr size_t kMaxLineBytes = size_t{16} << 20;
constexpr size_t kMaxErrorBytes = size_t{64} << 10;
constexpr long kConnectTimeoutMs = 10'000;

// Once per process, before any handle.
void InitCurl() {
  static const CURLcode result = curl_global_init(CURL_GLOBAL_DEFAULT);
  CHECK_EQ(static_cast<int>(result), 0) << "libcurl";
}

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return std::string(absl::StripAsciiWhitespace(line));
}

void SetPem(CURL* curl, const PemSource& source, CURLoption file_option, CURLoption blob_option) {
  if (!source.file.empty()) curl_easy_setopt(curl, file_option, source.file.c_str());
  if (source.text.empty()) return;
  curl_blob blob = {const_cast<char*>(source.text.data()), source.text.size(), CURL_BLOB_NOCOPY};
  curl_easy_setopt(curl, blob_option, &blob);
}

int ResponseCode(CURL* curl) {
  long code = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &code);
  return static_cast<int>(code);
}

size_t AppendBody(char* data, size_t size, size_t count, void* user) {
  auto* body = static_cast<std::string*>(user);
  if (body->size() + size * count > kMaxBodyBytes) return 0;
  body->append(data, size * count);
  return size * count;
}

}  // namespace

struct CurlTransport::Handle {
  Handle() : curl(curl_easy_init()) { CHECK(curl != nullptr) << "no memory"; }
  ~Handle() {
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void AddHeader(const std::string& line) { headers = curl_slist_append(headers, line.c_str()); }
  absl::Status Error(CURLcode code) const {
    const char* why = detail[0] != '\0' ? detail : curl_easy_strerror(code);
    return absl::UnavailableError(absl::StrCat("API server: ", why));
  }

  CURL* const curl;
  curl_slist* headers = nullptr;
  char detail[CURL_ERROR_SIZE] = {};
};

// What one Stream call has received.
struct CurlTransport::StreamState {
  CURL* curl;
  const std::function<bool(absl::string_view)>& on_line;
  std::string partial = {};
  std::string error_body = {};
  bool ended_by_caller = false;

  bool Consume(absl::string_view data) {
    if (ResponseCode(curl) != 200) {
      error_body.append(data.data(), std::min(data.size(), kMaxErrorBytes - error_body.size()));
      return true;
    }
    while (!data.empty()) {
      const size_t end = data.find('\n');
      partial.append(data.data(), end == absl::string_view::npos ? data.size() : end);
      if (partial.size() > kMaxLineBytes) return false;
      if (end == absl::string_view::npos) return true;
      data.remove_prefix(end + 1);
      const std::string line = std::exchange(partial, {});
      if (!line.empty() && !on_line(line)) {
        ended_by_caller = true;
        return false;
      }
    }
    return true;
  }

  static size_t Write(char* data, size_t size, size_t count, void* user) {
    auto* state = static_cast<StreamState*>(user);
    return state->Consume({data, size * count}) ? size * count : 0;
  }
};

CurlTransport::CurlTransport(ClusterAccess access) : access_(std::move(access)) { InitCurl(); }

CurlTransport::~CurlTransport() = default;

std::unique_ptr<CurlTransport::Handle> CurlTransport::Take() {
  {
    MutexLock lock(&mu_);
    if (!idle_.empty()) {
      std::unique_ptr<Handle> handle = std::move(idle_.back());
      idle_.pop_back();
      return handle;
    }
  }
  return std::make_unique<Handle>();
}

void CurlTransport::Return(std::unique_ptr<Handle> handle) {
  curl_easy_reset(handle->curl);  // keeps its connections
  curl_slist_free_all(std::exchange(handle->headers, nullptr));
  handle->detail[0] = '\0';
  MutexLock lock(&mu_);
  if (idle_.size() < kMaxIdleHandles) idle_.push_back(std::move(handle));
}

void CurlTransport::Prepare(const HttpRequest& request, Handle& handle) const {
  CURL* const curl = handle.curl;
  const std::string url = absl::StrCat(access_.server, request.path);
  curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, handle.detail);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(curl, CURLOPT_PROXY, "");
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPIDLE, 30L);
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPINTVL, 10L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, kConnectTimeoutMs);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS,
                   static_cast<long>(absl::ToInt64Milliseconds(request.timeout)));
  SetPem(curl, access_.authority, CURLOPT_CAINFO, CURLOPT_CAINFO_BLOB);
  SetPem(curl, access_.certificate, CURLOPT_SSLCERT, CURLOPT_SSLCERT_BLOB);
  SetPem(curl, access_.key, CURLOPT_SSLKEY, CURLOPT_SSLKEY_BLOB);
  handle.AddHeader("Accept: application/json");
  handle.AddHeader("User-Agent: rempart-operator");
  handle.AddHeader("Expect:");
  const std::string token =
      access_.token_file.empty() ? access_.token : FirstLine(access_.token_file);
  if (!token.empty()) handle.AddHeader(absl::StrCat("Authorization: Bearer ", token));
  if (!request.content_type.empty()) {
    handle.AddHeader(absl::StrCat("Content-Type: ", request.content_type));
  }
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, handle.headers);
  if (request.method != "GET") {
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
  if (!request.body.empty()) {
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.body.data());
  }
}

absl::StatusOr<HttpResponse> CurlTransport::Send(const HttpRequest& request) {
  std::unique_ptr<Handle> handle = Take();
  Prepare(request, *handle);
  HttpResponse response;
  curl_easy_setopt(handle->curl, CURLOPT_WRITEFUNCTION, AppendBody);
  curl_easy_setopt(handle->curl, CURLOPT_WRITEDATA, &response.body);
  const CURLcode result = curl_easy_perform(handle->curl);
  if (result != CURLE_OK) return handle->Error(result);  // the connection may be bad: not pooled
  response.code = ResponseCode(handle->curl);
  Return(std::move(handle));
  return response;
}

absl::StatusOr<HttpResponse> CurlTransport::Stream(
    const HttpRequest& request, const std::function<bool(absl::string_view)>& on_line,
    std::stop_token stop) {
  Handle handle;
  Prepare(request, handle);
  StreamState state{handle.curl, on_line};
  curl_easy_setopt(handle.curl, CURLOPT_WRITEFUNCTION, StreamState::Write);
  curl_easy_setopt(handle.curl, CURLOPT_WRITEDATA, &state);
  CURLM* const multi = curl_multi_init();
  CHECK(multi != nullptr) << "no memory";
  curl_multi_add_handle(multi, handle.curl);
  std::optional<CURLcode> result;
  {
    const std::stop_callback wake(stop, [multi] { curl_multi_wakeup(multi); });
    int running = 1;
    while (running > 0 && !stop.stop_requested()) {
      if (curl_multi_perform(multi, &running) != CURLM_OK) break;
      if (running > 0) curl_multi_poll(multi, nullptr, 0, 1000, nullptr);
    }
    int left = 0;
    while (const CURLMsg* message = curl_multi_info_read(multi, &left)) {
      if (message->msg == CURLMSG_DONE) result = message->data.result;
    }
  }
  HttpResponse response{ResponseCode(handle.curl), std::move(state.error_body)};
  curl_multi_remove_handle(multi, handle.curl);
  curl_multi_cleanup(multi);
  if (stop.stop_requested() || state.ended_by_caller) return HttpResponse{200, ""};
  if (!result.has_value()) return absl::UnavailableError("API server: the transfer stopped");
  if (*result != CURLE_OK) return handle.Error(*result);
  return response;
}

}  // namespace rempart::op
