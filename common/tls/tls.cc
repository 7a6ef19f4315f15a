// SPDX-License-Identifier: Apache-2.0
#include "common/tls/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace rempart {
namespace {

constexpr unsigned kWatchSeconds = 5;
constexpr char kIdentity[] = "leaf";
constexpr char kRoot[] = "root";

absl::Status CheckReadable(absl::string_view field, const std::string& path) {
  if (path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tls.", field, " is empty: give ca, certificate and key, or none of them"));
  }
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    const int error = errno;
    const std::string message =
        absl::StrCat("tls.", field, ": cannot read ", path, ": ", std::strerror(error));
    return error == EACCES ? absl::PermissionDeniedError(message) : absl::NotFoundError(message);
  }
  char byte;
  const bool has_content = std::fread(&byte, 1, 1, file) == 1;
  std::fclose(file);
  if (!has_content) {
    return absl::InvalidArgumentError(absl::StrCat("tls.", field, ": ", path, " is empty"));
  }
  return absl::OkStatus();
}

absl::Status CheckFiles(const TlsConfig& tls) {
  RETURN_IF_ERROR(CheckReadable("ca_file", tls.ca_file));
  RETURN_IF_ERROR(CheckReadable("certificate_file", tls.certificate_file));
  return CheckReadable("key_file", tls.key_file);
}

absl::Status CheckLocal(absl::string_view address) {
  if (IsLocalAddress(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("address ", address,
                   " leaves this machine and tls is not configured: set tls.ca_file, "
                   "tls.certificate_file and tls.key_file, or use unix: or 127.0.0.1"));
}

std::shared_ptr<grpc::experimental::CertificateProviderInterface> Watch(const TlsConfig& tls) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key_file, tls.certificate_file, tls.ca_file, kWatchSeconds);
}

}  // namespace

bool TlsIsConfigured(const TlsConfig& tls) {
  return !tls.ca_file.empty() || !tls.certificate_file.empty() || !tls.key_file.empty();
}

bool IsLocalAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  for (absl::string_view scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&address, scheme)) break;
  }
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return false;
  const absl::string_view host = address.substr(0, colon);
  if (host == "localhost" || host == "[::1]") return true;
  if (!absl::StartsWith(host, "127.")) return false;
  return host.find_first_not_of("0123456789.") == absl::string_view::npos;
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(
    const TlsConfig& tls, absl::string_view address) {
  if (!TlsIsConfigured(tls)) {
    RETURN_IF_ERROR(CheckLocal(address));
    return grpc::InsecureServerCredentials();
  }
  RETURN_IF_ERROR(CheckFiles(tls));
  grpc::experimental::TlsServerCredentialsOptions options(Watch(tls));
  options.watch_root_certs();
  options.set_root_cert_name(kRoot);
  options.watch_identity_key_cert_pairs();
  options.set_identity_cert_name(kIdentity);
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentials(
    const TlsConfig& tls, absl::string_view address) {
  if (!TlsIsConfigured(tls)) {
    RETURN_IF_ERROR(CheckLocal(address));
    return grpc::InsecureChannelCredentials();
  }
  RETURN_IF_ERROR(CheckFiles(tls));
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(Watch(tls));
  options.watch_root_certs();
  options.set_root_cert_name(kRoot);
  options.watch_identity_key_cert_pairs();
  options.set_identity_cert_name(kIdentity);
  return grpc::experimental::TlsCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Dial(const TlsConfig& tls,
                                                    const std::string& address,
                                                    grpc::ChannelArguments arguments) {
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::ChannelCredentials> credentials,
                   ChannelCredentials(tls, address));
  if (TlsIsConfigured(tls) && !tls.peer_name.empty()) {
    arguments.SetSslTargetNameOverride(tls.peer_name);
  }
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

absl::Status CheckCallerName(const grpc::ServerContextBase& context, absl::string_view name) {
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  if (auth == nullptr) return absl::UnauthenticatedError("the caller showed no certificate");
  const std::vector<grpc::string_ref> names =
      auth->FindPropertyValues("x509_subject_alternative_name");
  if (names.empty()) return absl::UnauthenticatedError("the caller's certificate has no name");
  for (const grpc::string_ref& found : names) {
    if (absl::string_view(found.data(), found.size()) == name) return absl::OkStatus();
  }
  return absl::PermissionDeniedError(
      absl::StrCat("the caller's certificate is not for ", name, " but for ",
                   absl::string_view(names[0].data(), names[0].size())));
}

}  // namespace rempart
