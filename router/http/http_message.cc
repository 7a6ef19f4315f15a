// SPDX-License-Identifier: Apache-2.0
#include "router/http/http_message.h"

#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace rempart::router {
namespace {

namespace http = boost::beast::http;

constexpr size_t kMaxRequestIdBytes = 128;

std::string Text(boost::beast::string_view text) { return std::string(text.data(), text.size()); }

bool IsFitForLogs(const std::string& id) {
  if (id.empty() || id.size() > kMaxRequestIdBytes) return false;
  for (const char c : id) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') {
      return false;
    }
  }
  return true;
}

std::string DrawRequestId() {
  thread_local std::mt19937_64 random(std::random_device{}());
  return absl::StrCat("req-", absl::Hex(random(), absl::kZeroPad16));
}

}  // namespace

std::unique_ptr<RequestParser> NewRequestParser(const HttpLimits& limits) {
  auto parser = std::make_unique<RequestParser>();
  parser->header_limit(limits.max_header_bytes);
  parser->body_limit(limits.max_body_bytes);
  return parser;
}

HttpRequest RequestFrom(RequestParser& parser) {
  auto& message = parser.get();
  HttpRequest request;
  request.method = Text(message.method_string());
  const std::string target = Text(message.target());
  request.path = target.substr(0, target.find('?'));
  request.authorization = Text(message[http::field::authorization]);
  request.content_encoding = Text(message[http::field::content_encoding]);
  request.request_id = Text(message["x-request-id"]);
  if (!IsFitForLogs(request.request_id)) request.request_id = DrawRequestId();
  request.body = std::move(message.body());
  return request;
}

int StatusOfParseError(const boost::system::error_code& error) {
  if (error == http::error::header_limit) return 431;
  if (error == http::error::body_limit) return 413;
  return 400;
}

ParsedMessage ParseMessage(absl::string_view bytes, const HttpLimits& limits) {
  ParsedMessage result;
  const std::unique_ptr<RequestParser> parser = NewRequestParser(limits);
  parser->eager(true);
  boost::system::error_code error;
  while (!parser->is_done() && result.bytes_used < bytes.size()) {
    const size_t used = parser->put(
        boost::asio::buffer(bytes.data() + result.bytes_used, bytes.size() - result.bytes_used),
        error);
    result.bytes_used += used;
    if (error == http::error::need_more) return result;
    if (error) {
      result.error_status = StatusOfParseError(error);
      return result;
    }
    if (used == 0) break;
  }
  result.complete = parser->is_done();
  if (result.complete) result.request = RequestFrom(*parser);
  return result;
}

absl::string_view ReasonPhrase(int status) {
  const auto text = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)));
  return {text.data(), text.size()};
}

std::string HeaderText(int status,
                       const std::vector<std::pair<std::string, std::string>>& headers) {
  std::string text = absl::StrCat("HTTP/1.1 ", status, " ", ReasonPhrase(status), "\r\n");
  for (const auto& [name, value] : headers) absl::StrAppend(&text, name, ": ", value, "\r\n");
  return text + "\r\n";
}

}  // namespace rempart::router
