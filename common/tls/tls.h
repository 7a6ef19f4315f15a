// SPDX-License-Identifier: Apache-2.0
// Credentials of every gRPC link: mutual TLS from PEM files, or none where nothing leaves the
// machine.
// 1. Without TLS, only unix sockets and loopback addresses are served or dialled.
// 2. With TLS, both sides show a certificate of the same CA; TLS 1.2 is the floor.
// 3. The files are watched: a rotated leaf is used by new connections without a restart.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rempart {

// PEM files of one party. All empty: no TLS.
struct TlsConfig {
  std::string ca_file;
  std::string certificate_file;
  std::string key_file;
  // Name that the server's certificate must carry; empty: the dialled host name.
  std::string peer_name;
};

bool TlsIsConfigured(const TlsConfig& tls);

// True for "unix:..." and for hosts 127.0.0.0/8, [::1] and localhost.
bool IsLocalAddress(absl::string_view address);

// InvalidArgument when `address` is not local and `tls` is empty or incomplete; NotFound or
// PermissionDenied, naming the file, when a file cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(
    const TlsConfig& tls, absl::string_view address);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(
    const TlsConfig& tls, absl::string_view address);

// A channel to `address` with the credentials above; connects lazily. `arguments` may carry more
// options; the peer name is set here.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const TlsConfig& tls,
                                                    const std::string& address,
                                                    grpc::ChannelArguments arguments = {});

// Server side: whether the caller's certificate carries `name` as a DNS subject alternative name.
// PermissionDenied when it does not, Unauthenticated when there is no certificate.
absl::Status CheckCallerName(const grpc::ServerContextBase& context, absl::string_view name);

}  // namespace rempart
