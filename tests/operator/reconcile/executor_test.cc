// SPDX-License-Identifier: Apache-2.0
// What an executor sends, while stores do not show yet what it has sent.
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "operator/reconcile/execute.h"
#include "tests/operator/kube/fake_api_server.h"

namespace rempart::op {
namespace {

constexpr char kNs[] = "ia";

class DeletionsTransport : public Transport {
 public:
  explicit DeletionsTransport(Transport* to) : to_(to) {}

  absl::StatusOr<HttpResponse> Send(const HttpRequest& request) override {
    if (request.method != "DELETE") return to_->Send(request);
    ++sent;
    if (fails) return HttpResponse{503, "{}"};
    return to_->Send(request);
  }
  absl::StatusOr<HttpResponse> Stream(const HttpRequest& request,
                                      const std::function<bool(absl::string_view)>& on_line,
                                      std::stop_token stop) override {
    return to_->Stream(request, on_line, stop);
  }

  int sent = 0;
  bool fails = false;

 private:
  Transport* const to_;
};

class ExecutorTest : public testing::Test {
 protected:
  ExecutorTest() {
    observed_.model.mutable_metadata()->set_namespace_(kNs);
    observed_.model.mutable_metadata()->set_name("llama");
    EXPECT_TRUE(Api<Model>(&direct_).Create(observed_.model).ok());
  }

  // The stores stay empty: nothing of what is sent comes back.
  void DeletePod(const std::string& uid, std::optional<int32_t> grace) {
    Plan plan;
    plan.deletions.push_back({"llama-0-0", uid, grace, "it is outdated"});
    (void)executor_.Execute(observed_, plan);
  }

  ManualClock clock_;
  FakeApiServer server_;
  DeletionsTransport counted_{&server_};
  Client direct_{&server_};
  Client client_{&counted_};
  Informers informers_{&client_};
  NodeLedger ledger_;
  JoinRegistry joins_{&clock_, [](const std::string&) {}};
  EventRecorder events_{&client_, "test", &clock_};
  Executor executor_{&client_, &informers_, &ledger_, &joins_, &events_, &clock_, ""};
  Observed observed_;
};

TEST_F(ExecutorTest, TheEndOfAPodIsAskedForOnceUntilTheStoreMustHaveShownIt) {
  DeletePod("1", std::nullopt);
  DeletePod("1", std::nullopt);
  EXPECT_EQ(counted_.sent, 1);
  clock_.Advance(absl::Seconds(2));
  DeletePod("1", std::nullopt);
  EXPECT_EQ(counted_.sent, 2);
}

TEST_F(ExecutorTest, AShorterGraceAndAnotherIncarnationAreNewQuestions) {
  DeletePod("1", std::nullopt);
  DeletePod("1", 0);
  DeletePod("2", std::nullopt);
  EXPECT_EQ(counted_.sent, 3);
}

TEST_F(ExecutorTest, ADeletionThatFailedIsRepeatedAtOnce) {
  counted_.fails = true;
  DeletePod("1", std::nullopt);
  counted_.fails = false;
  DeletePod("1", std::nullopt);
  EXPECT_EQ(counted_.sent, 2);
}

}  // namespace
}  // namespace rempart::op
