// SPDX-License-Identifier: Apache-2.0
#include "worker/strike/routing_rules.h"

#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace rempart::worker {
namespace {

// Right behind the table of the machine's own addresses (priority 0); nobody else uses them.
constexpr uint32_t kKeptPriority = 1;
constexpr uint32_t kCutPriority = 2;

void AddAttribute(uint16_t type, const void* data, size_t bytes, std::string& message) {
  rtattr attribute = {};
  attribute.rta_type = type;
  attribute.rta_len = static_cast<uint16_t>(RTA_LENGTH(bytes));
  message.append(reinterpret_cast<const char*>(&attribute), sizeof(attribute));
  message.append(static_cast<const char*>(data), bytes);
  message.resize(NLMSG_ALIGN(message.size()), '\0');
}

// A rule of ours: of `kept`, that its traffic takes the machine's own routes; else of all traffic,
// that it is dropped. To delete, the priority is enough.
std::string RuleMessage(uint16_t type, uint16_t flags, int family, uint32_t priority,
                        const std::optional<Network>& kept) {
  std::string message(NLMSG_HDRLEN, '\0');
  fib_rule_hdr rule = {};
  rule.family = static_cast<uint8_t>(family);
  rule.action = kept.has_value() ? FR_ACT_TO_TBL : FR_ACT_BLACKHOLE;
  if (type == RTM_DELRULE) rule.action = FR_ACT_UNSPEC;
  if (kept.has_value()) {
    rule.dst_len = static_cast<uint8_t>(kept->prefix_length);
    rule.table = RT_TABLE_MAIN;
  }
  message.append(reinterpret_cast<const char*>(&rule), sizeof(rule));
  AddAttribute(FRA_PRIORITY, &priority, sizeof(priority), message);
  if (kept.has_value()) {
    AddAttribute(FRA_DST, kept->address.data(), kept->address.size(), message);
  }
  nlmsghdr header = {};
  header.nlmsg_len = static_cast<uint32_t>(message.size());
  header.nlmsg_type = type;
  header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  std::memcpy(message.data(), &header, sizeof(header));
  return message;
}

// Zero, or the errno that the kernel answers with.
int Ask(int socket_fd, const std::string& message) {
  if (send(socket_fd, message.data(), message.size(), 0) < 0) return errno;
  alignas(nlmsghdr) char answer[4096];
  const ssize_t bytes = recv(socket_fd, answer, sizeof(answer), 0);
  if (bytes < 0) return errno;
  const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
  if (static_cast<size_t>(bytes) < NLMSG_LENGTH(sizeof(nlmsgerr)) ||
      header->nlmsg_type != NLMSG_ERROR) {
    return EPROTO;
  }
  return -static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
}

absl::Status StatusOf(int error, const char* what) {
  if (error == EPERM) {
    return absl::PermissionDeniedError(
        absl::StrCat(what, ": not permitted; it needs CAP_NET_ADMIN in the node's network"));
  }
  return absl::ErrnoToStatus(error, what);
}

absl::StatusOr<int> OpenSocket() {
  const int socket_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (socket_fd < 0) return absl::ErrnoToStatus(errno, "netlink socket");
  const timeval timeout = {5, 0};
  setsockopt(socket_fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  return socket_fd;
}

}  // namespace

absl::StatusOr<Network> ParseNetwork(const std::string& text) {
  const size_t slash = text.find('/');
  const std::string address = text.substr(0, slash);
  Network network;
  network.family = address.find(':') == std::string::npos ? AF_INET : AF_INET6;
  network.address.resize(network.family == AF_INET ? 4 : 16);
  const int longest = static_cast<int>(network.address.size()) * 8;
  if (slash == std::string::npos ||
      inet_pton(network.family, address.c_str(), network.address.data()) != 1 ||
      !absl::SimpleAtoi(text.substr(slash + 1), &network.prefix_length) ||
      network.prefix_length < 1 || network.prefix_length > longest) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no network; say it like 10.244.1.0/24"));
  }
  return network;
}

absl::Status CutAllBut(const std::vector<Network>& kept) {
  ASSIGN_OR_RETURN(const int socket_fd, OpenSocket());
  const auto closing = absl::MakeCleanup([socket_fd] { close(socket_fd); });
  constexpr uint16_t kCreate = NLM_F_CREATE | NLM_F_EXCL;
  for (const Network& network : kept) {
    const int error =
        Ask(socket_fd, RuleMessage(RTM_NEWRULE, kCreate, network.family, kKeptPriority, network));
    if (error != 0 && error != EEXIST) return StatusOf(error, "keeping the node's pods reachable");
  }
  for (const int family : {AF_INET, AF_INET6}) {
    const int error =
        Ask(socket_fd, RuleMessage(RTM_NEWRULE, kCreate, family, kCutPriority, std::nullopt));
    // A kernel without IPv6 has nothing to cut there.
    if (error == EAFNOSUPPORT || error == EOPNOTSUPP) continue;
    if (error != 0 && error != EEXIST) return StatusOf(error, "cutting the node's network");
  }
  return absl::OkStatus();
}

absl::Status MendCut() {
  ASSIGN_OR_RETURN(const int socket_fd, OpenSocket());
  const auto closing = absl::MakeCleanup([socket_fd] { close(socket_fd); });
  for (const uint32_t priority : {kCutPriority, kKeptPriority}) {
    for (const int family : {AF_INET, AF_INET6}) {
      int error = 0;
      // Several networks may be kept; the kernel deletes one rule at a time.
      for (int i = 0; i < 64 && error == 0; ++i) {
        error = Ask(socket_fd, RuleMessage(RTM_DELRULE, 0, family, priority, std::nullopt));
      }
      if (error == ENOENT || error == EAFNOSUPPORT || error == EOPNOTSUPP) continue;
      if (error != 0) return StatusOf(error, "mending the node's network");
    }
  }
  return absl::OkStatus();
}

}  // namespace rempart::worker
