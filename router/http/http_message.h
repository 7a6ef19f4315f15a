// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 requests and replies as the router's handlers see them.
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace rempart::router {

struct HttpRequest {
  std::string method;
  std::string path;  // without the query
  std::string authorization;
  std::string content_encoding;
  std::string request_id;  // the client's, if it is fit for logs; else drawn
  std::string body;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};
};

struct HttpLimits {
  uint32_t max_header_bytes = 32 << 10;
  uint64_t max_body_bytes = 8 << 20;
};

// Beast's parser with our limits.
using RequestParser = boost::beast::http::request_parser<boost::beast::http::string_body>;
std::unique_ptr<RequestParser> NewRequestParser(const HttpLimits& limits);

// What a complete message asks. The parser gives up its body.
HttpRequest RequestFrom(RequestParser& parser);

// The status that answers a message which could not be read: 400, 413, 431.
int StatusOfParseError(const boost::system::error_code& error);

// Whether one complete message lies at the start of `bytes`; the same parser, without a socket.
struct ParsedMessage {
  bool complete = false;
  int error_status = 0;  // 0: none
  size_t bytes_used = 0;
  HttpRequest request;
};
ParsedMessage ParseMessage(absl::string_view bytes, const HttpLimits& limits);

absl::string_view ReasonPhrase(int status);
// Status line and headers up to the empty line.
std::string HeaderText(int status, const std::vector<std::pair<std::string, std::string>>& headers);

}  // namespace rempart::router
