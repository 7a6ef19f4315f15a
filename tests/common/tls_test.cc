// SPDX-License-Identifier: Apache-2.0
// Real handshakes over loopback: who gets in, who does not, and what the refusal says.
#include "common/tls/tls.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/group/v1/group.grpc.pb.h"

namespace rempart {
namespace {

void RunCommand(const std::string& command) {
  ASSERT_EQ(std::system(absl::StrCat(command, " >/dev/null 2>&1").c_str()), 0) << command;
}

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = absl::StrCat(testing::TempDir(), "rempart_tls_", getpid());
    std::filesystem::create_directories(dir_);
    MakeCa("ca");
    MakeLeaf("ca", "rempart-worker");
    MakeLeaf("ca", "rempart-router");
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  void MakeCa(const std::string& name) {
    RunCommand(absl::StrCat(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ", dir_, "/",
        name, ".key -out ", dir_, "/", name, ".pem -subj /CN=", name, " -days 2"));
  }
  void MakeLeaf(const std::string& ca, const std::string& name) {
    const std::string base = absl::StrCat(dir_, "/", name);
    RunCommand(
        absl::StrCat("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ",
                     base, ".key -out ", base, ".csr -subj /CN=", name));
    RunCommand(absl::StrCat("echo subjectAltName=DNS:", name, " > ", base,
                            ".ext; openssl x509 -req -in ", base, ".csr -CA ", dir_, "/", ca,
                            ".pem -CAkey ", dir_, "/", ca, ".key -CAcreateserial -days 2 -extfile ",
                            base, ".ext -out ", base, ".pem"));
  }
  TlsConfig Party(const std::string& name, const std::string& peer, const std::string& ca = "ca") {
    return {absl::StrCat(dir_, "/", ca, ".pem"), absl::StrCat(dir_, "/", name, ".pem"),
            absl::StrCat(dir_, "/", name, ".key"), peer};
  }
  std::string dir_;
};

// Answers nothing but who called: OK for the router's certificate.
class Gate : public group::v1::GroupControl::Service {
  grpc::Status Join(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<group::v1::ToMember, group::v1::FromMember>*) override {
    const absl::Status caller = CheckCallerName(*context, "rempart-router");
    if (caller.ok()) return grpc::Status::OK;
    return grpc::Status(static_cast<grpc::StatusCode>(caller.code()),
                        std::string(caller.message()));
  }
};

grpc::Status Call(const TlsConfig& client, int port) {
  auto channel = Dial(client, absl::StrCat("127.0.0.1:", port));
  if (!channel.ok()) return grpc::Status(grpc::StatusCode::INTERNAL, channel.status().ToString());
  auto stub = group::v1::GroupControl::NewStub(*channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  auto stream = stub->Join(&context);
  group::v1::ToMember message;
  while (stream->Read(&message)) {
  }
  return stream->Finish();
}

TEST_F(TlsTest, OnlyACertificateOfTheSameAuthorityGetsIn) {
  auto credentials = ServerCredentials(Party("rempart-worker", ""), "0.0.0.0:0");
  ASSERT_TRUE(credentials.ok()) << credentials.status();
  Gate gate;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", *credentials, &port);
  builder.RegisterService(&gate);
  auto server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);

  EXPECT_TRUE(Call(Party("rempart-router", "rempart-worker"), port).ok());
  // Known to the CA, but not the router.
  EXPECT_EQ(Call(Party("rempart-worker", "rempart-worker"), port).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
  // The server is not who the client wants.
  EXPECT_EQ(Call(Party("rempart-router", "rempart-operator"), port).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  // No certificate at all.
  EXPECT_EQ(Call({}, port).error_code(), grpc::StatusCode::UNAVAILABLE);
  // A certificate of someone else's CA.
  MakeCa("other");
  MakeLeaf("other", "rempart-intruder");
  EXPECT_EQ(Call(Party("rempart-intruder", "rempart-worker"), port).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  server->Shutdown(std::chrono::system_clock::now());
}

TEST_F(TlsTest, RefusesPlainTextOutsideThisMachine) {
  const auto server = ServerCredentials({}, "0.0.0.0:7070");
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(server.status().message(), "0.0.0.0:7070"));
  EXPECT_FALSE(ChannelCredentials({}, "worker-0.ia.svc:7070").ok());
  EXPECT_TRUE(ServerCredentials({}, "unix:/run/rempart/w.sock").ok());
  EXPECT_TRUE(ChannelCredentials({}, "127.0.0.1:7070").ok());
}

TEST_F(TlsTest, NamesTheFileThatIsMissing) {
  TlsConfig tls = Party("rempart-worker", "");
  tls.key_file = "/nowhere/key.pem";
  const auto credentials = ServerCredentials(tls, "0.0.0.0:7070");
  EXPECT_EQ(credentials.status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(credentials.status().message(), "/nowhere/key.pem"));
  tls.key_file.clear();
  EXPECT_TRUE(absl::StrContains(ServerCredentials(tls, "0.0.0.0:1").status().message(),
                                "tls.key_file is empty"));
}

TEST(LocalAddress, IsUnixOrLoopback) {
  for (const char* local : {"unix:/a", "127.0.0.1:1", "127.1.2.3:9", "localhost:1", "[::1]:1"}) {
    EXPECT_TRUE(IsLocalAddress(local)) << local;
  }
  for (const char* far : {"0.0.0.0:1", "10.0.0.1:1", "127.evil.example:1", "[::]:1", "host", ""}) {
    EXPECT_FALSE(IsLocalAddress(far)) << far;
  }
}

}  // namespace
}  // namespace rempart
