// SPDX-License-Identifier: Apache-2.0
#include "common/health/endpoint.h"

#include <boost/asio/ip/address.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace rempart {

absl::StatusOr<boost::asio::ip::tcp::endpoint> ParseEndpoint(absl::string_view field,
                                                             const std::string& address,
                                                             int usual_port) {
  const size_t colon = address.rfind(':');
  int port = 0;
  boost::system::error_code error;
  boost::asio::ip::address host;
  if (colon != std::string::npos) {
    std::string name = address.substr(0, colon);
    if (name == "localhost") name = "127.0.0.1";
    if (name.size() > 2 && name.front() == '[') name = name.substr(1, name.size() - 2);
    host = boost::asio::ip::make_address(name, error);
  }
  if (colon == std::string::npos || error || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " is \"", address, "\": it must be an address such as 127.0.0.1:", usual_port));
  }
  return boost::asio::ip::tcp::endpoint(host, static_cast<uint16_t>(port));
}

}  // namespace rempart
