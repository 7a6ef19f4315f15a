// SPDX-License-Identifier: Apache-2.0
// Who is served on Join, and who is sent to the operator that leads.
#include "operator/streams/join_service.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace rempart::op {
namespace {

using group::v1::FromMember;
using group::v1::ToMember;

class JoinServiceTest : public testing::Test {
 protected:
  JoinServiceTest() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~JoinServiceTest() override { server_->Shutdown(std::chrono::system_clock::now()); }

  // A stream that has introduced itself.
  struct Worker {
    explicit Worker(const std::string& address)
        : stub(group::v1::GroupControl::NewStub(
              grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
      stream = stub->Join(&context);
      FromMember hello;
      hello.mutable_identity()->set_group_name("ia/m-0");
      hello.mutable_identity()->set_pod_count(1);
      stream->Write(hello);
    }
    std::unique_ptr<group::v1::GroupControl::Stub> stub;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<FromMember, ToMember>> stream;
  };

  const std::string address_ = absl::StrCat("unix:/tmp/rempart_join_service_", getpid(), ".sock");
  SystemClock clock_;
  JoinRegistry registry_{&clock_, [](const std::string&) {}};
  std::atomic<bool> admits_ = true;
  JoinService service_{&registry_,
                       {.open = false,
                        .leader_address = [] { return std::string("10.0.0.7:7080"); },
                        .admit =
                            [this](const group::v1::Identity&) {
                              return admits_ ? absl::OkStatus()
                                             : absl::FailedPreconditionError("it was replaced");
                            }}};
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(JoinServiceTest, AnOperatorThatDoesNotLeadNamesTheOneThatDoes) {
  Worker worker(address_);
  ToMember message;
  ASSERT_TRUE(worker.stream->Read(&message));
  EXPECT_EQ(message.redirect().leader_address(), "10.0.0.7:7080");
  EXPECT_FALSE(worker.stream->Read(&message));
  EXPECT_EQ(worker.stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(registry_.streams(), 0);
  EXPECT_EQ(service_.redirected(), 1);
}

TEST_F(JoinServiceTest, LosingTheLeadEndsTheStreamsAndClosesTheDoor) {
  service_.Open();
  Worker worker(address_);
  ToMember message;
  ASSERT_TRUE(worker.stream->Read(&message));
  EXPECT_TRUE(message.has_epoch());
  ASSERT_TRUE(worker.stream->Read(&message));
  EXPECT_TRUE(message.has_go());
  service_.Close();
  EXPECT_FALSE(worker.stream->Read(&message));
  EXPECT_EQ(worker.stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  Worker late(address_);
  ASSERT_TRUE(late.stream->Read(&message));
  EXPECT_TRUE(message.has_redirect());
}

TEST_F(JoinServiceTest, WhoHasBeenReplacedIsToldSoAndChangesNothing) {
  service_.Open();
  Worker worker(address_);
  ToMember message;
  ASSERT_TRUE(worker.stream->Read(&message));
  admits_ = false;
  Worker old(address_);
  EXPECT_FALSE(old.stream->Read(&message));
  const grpc::Status refused = old.stream->Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(refused.error_message(), "it was replaced");
  EXPECT_TRUE(registry_.Report("ia/m-0").members.at(0).connected);
  EXPECT_EQ(registry_.streams(), 1);
  worker.context.TryCancel();
}

TEST_F(JoinServiceTest, HearsOfGpusAndPassesOverWhatItDoesNotKnow) {
  service_.Open();
  Worker worker(address_);
  worker.stream->Write(FromMember());  // as a kind of a newer worker looks here
  FromMember message;
  message.mutable_gpus()->add_gpus()->set_name("NVIDIA H200");
  worker.stream->Write(message);
  const auto gpus = [&] {
    const GroupReport report = registry_.Report("ia/m-0");
    return report.members.empty() ? 0 : report.members[0].gpus.gpus.size();
  };
  for (int i = 0; i < 2000 && gpus() == 0; ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(gpus(), 1u);
  EXPECT_EQ(registry_.groups(), std::vector<std::string>{"ia/m-0"});
  worker.context.TryCancel();
}

}  // namespace
}  // namespace rempart::op
