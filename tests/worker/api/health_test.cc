// SPDX-License-Identifier: Apache-2.0
#include "worker/api/health_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "worker/api/worker_metrics.h"

namespace rempart::worker {
namespace {

using testing::HasSubstr;
using testing::Not;

const absl::Time kNow = absl::FromUnixSeconds(1000);

TEST(Liveness, IsAStepInTimeNotAThreadThatExists) {
  const absl::Duration limit = absl::Seconds(60);
  EngineLoad load;
  EXPECT_EQ(LivenessReply(load, {}, kNow, limit).code, 200) << "idle, no step yet";
  load.steps = 5;
  load.last_step = kNow - absl::Hours(3);
  EXPECT_EQ(LivenessReply(load, {}, kNow, limit).code, 200) << "idle for hours";
  load.busy_since = kNow - absl::Seconds(59);
  EXPECT_EQ(LivenessReply(load, {}, kNow, limit).code, 200) << "one slow step";
  load.busy_since = kNow - absl::Seconds(61);
  const HealthReply stuck = LivenessReply(load, {}, kNow, limit);
  EXPECT_EQ(stuck.code, 503);
  EXPECT_THAT(stuck.body, HasSubstr("\"last_step_age_ms\":10800000"));
}

TEST(Readiness, IsThePhase) {
  EXPECT_EQ(ReadinessReply({.phase = Phase::kLoading}).code, 503);
  EXPECT_EQ(ReadinessReply({.phase = Phase::kWarmingUp}).code, 503);
  EXPECT_EQ(ReadinessReply({.phase = Phase::kReady}).code, 200);
  EXPECT_EQ(ReadinessReply({.phase = Phase::kDraining}).code, 503);
}

TEST(Metrics, AreInPrometheusText) {
  EngineLoad load;
  load.generated_tokens = 12;
  const std::string text = MetricsText(
      load,
      {.phase = Phase::kReady,
       .start_parts = {{"repack", absl::Milliseconds(250)}, {"total", absl::Seconds(1)}}},
      {.model_name = "ia/m", .kernel_tier = "baseline", .threads = 3}, {}, {});
  EXPECT_THAT(text, HasSubstr("# TYPE rempart_worker_generated_tokens_total counter"));
  EXPECT_THAT(text, HasSubstr("rempart_worker_generated_tokens_total{model=\"ia/m\"} 12"));
  EXPECT_THAT(text, HasSubstr("kernels=\"baseline\""));
  EXPECT_THAT(text, HasSubstr("rempart_worker_kernel_info{model=\"ia/m\",op=\"matmul_fast\","
                              "when=\"quantised weights, 1 to 3 tokens\",kernel=\""));
  EXPECT_THAT(text, HasSubstr("rempart_worker_threads{model=\"ia/m\"} 3"));
  EXPECT_THAT(text, HasSubstr("rempart_worker_start_seconds{model=\"ia/m\",part=\"repack\"} 0.25"));
  EXPECT_THAT(text, HasSubstr("rempart_worker_start_seconds{model=\"ia/m\",part=\"total\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("rempart_worker_gpu_"))) << "it has none";
  EXPECT_THAT(text, Not(HasSubstr("rempart_worker_node_disk"))) << "outside a pod";
}

TEST(Metrics, TellHowMuchOfTheNodesDiskIsFree) {
  EXPECT_THAT(MetricsText({}, {.node_disk_free_share = 0.25}, {.model_name = "ia/m"}, {}, {}),
              HasSubstr("rempart_worker_node_disk_free_ratio{model=\"ia/m\"} 0.25"));
}

TEST(Metrics, TellWhatIsKnownOfEachGpu) {
  GpuSnapshot gpus;
  gpus.driver_version = "580.65.06";
  gpus.cuda_version = "13.1";
  for (const char* uuid : {"GPU-a", "GPU-b"}) {
    GpuFacts& gpu = gpus.gpus.emplace_back();
    gpu.uuid = uuid;
    gpu.name = "NVIDIA H200";
    gpu.pci_bus_id = "00000000:1B:00.0";
    gpu.compute_capability = "9.0";
    gpu.total_bytes = 1024;
    gpu.used_bytes = 0;
  }
  gpus.gpus[0].ecc_uncorrected = 3;
  gpus.gpus[0].power_milliwatts = 350'500;
  gpus.gpus[0].slowdowns = {"power_cap", "thermal_hardware"};
  gpus.gpus[1].remap_pending = true;
  gpus.pairs = {{.first = 0, .second = 1, .nvlinks = 18, .path = "SYS"}};
  gpus.xids = {{{1, 31}, 2}, {{1, 79}, 1}};
  gpus.fault = {.gpu = 1, .xid = 79, .is_broken = true};
  const std::string text = MetricsText({}, {}, {.model_name = "ia/m"}, {}, gpus);
  for (const char* line :
       {"rempart_worker_gpu_info{model=\"ia/m\",gpu=\"1\",uuid=\"GPU-b\",name=\"NVIDIA H200\","
        "pci=\"00000000:1B:00.0\",compute_capability=\"9.0\",mig=\"0\",driver=\"580.65.06\","
        "cuda=\"13.1\"} 1",
        "rempart_worker_gpu_memory_total_bytes{model=\"ia/m\",gpu=\"0\"} 1024",
        "rempart_worker_gpu_memory_used_bytes{model=\"ia/m\",gpu=\"1\"} 0",
        "rempart_worker_gpu_power_watts{model=\"ia/m\",gpu=\"0\"} 350.5",
        "rempart_worker_gpu_ecc_uncorrected{model=\"ia/m\",gpu=\"0\"} 3",
        "rempart_worker_gpu_remap_pending{model=\"ia/m\",gpu=\"0\"} 0",
        "rempart_worker_gpu_remap_pending{model=\"ia/m\",gpu=\"1\"} 1",
        "rempart_worker_gpu_slowdown{model=\"ia/m\",gpu=\"0\",reason=\"thermal_hardware\"} 1",
        "rempart_worker_gpu_nvlinks{model=\"ia/m\",gpu=\"0\",peer=\"1\",path=\"SYS\"} 18",
        "rempart_worker_gpu_nvlinks{model=\"ia/m\",gpu=\"1\",peer=\"0\",path=\"SYS\"} 18",
        "# TYPE rempart_worker_gpu_xids_total counter",
        "rempart_worker_gpu_xids_total{model=\"ia/m\",gpu=\"1\",xid=\"31\"} 2",
        "rempart_worker_gpu_broken{model=\"ia/m\",gpu=\"0\"} 0",
        "rempart_worker_gpu_broken{model=\"ia/m\",gpu=\"1\"} 1"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("one_shot")));
  // What a GPU does not tell is absent.
  EXPECT_THAT(text, Not(HasSubstr("rempart_worker_gpu_ecc_uncorrected{model=\"ia/m\",gpu=\"1\"}")));
  EXPECT_THAT(text, Not(HasSubstr("rempart_worker_gpu_temperature_celsius")));
}

TEST(Metrics, TellWhichSumsGoInOneShotAndHowLongTheyTook) {
  StatusSnapshot status;
  status.one_shot.max_bytes = 8192;
  status.one_shot.times = {{8192, 6.5, 14}, {16384, 21, 15}};
  const std::string text = MetricsText({}, status, {.model_name = "ia/m"}, {}, {});
  for (const char* line :
       {"rempart_worker_one_shot_max_bytes{model=\"ia/m\"} 8192",
        "rempart_worker_gpu_sum_seconds{model=\"ia/m\",bytes=\"8192\",way=\"one_shot\"} 6.5e-06",
        "rempart_worker_gpu_sum_seconds{model=\"ia/m\",bytes=\"16384\",way=\"library\"} 1.5e-05"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
}

TEST(HealthServer, IsAskedByProbe) {
  int code = 503;
  auto server =
      HealthServer::Start("127.0.0.1:0", {.live =
                                              [] {
                                                return HealthReply{200, "{}"};
                                              },
                                          .ready =
                                              [&] {
                                                return HealthReply{code, "{\"phase\":\"loading\"}"};
                                              },
                                          .metrics = [] { return std::string(); }});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = absl::StrCat("127.0.0.1:", (*server)->port());
  const absl::Duration timeout = absl::Seconds(10);
  EXPECT_TRUE(Probe(address, "live", timeout).ok());
  EXPECT_THAT(std::string(Probe(address, "ready", timeout).message()),
              HasSubstr("answers 503: {\"phase\":\"loading\"}"));
  code = 200;
  EXPECT_TRUE(Probe(address, "ready", timeout).ok());
  EXPECT_EQ(Probe(address, "dead", timeout).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Probe("here", "live", timeout).message()),
              HasSubstr("--address is \"here\": it must be an address such as 127.0.0.1:9090"));
  EXPECT_EQ(Probe("[::1]:1", "live", timeout).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(HealthServer::Start(address, {}).status().code(), absl::StatusCode::kUnavailable);
  server->reset();
  EXPECT_EQ(Probe(address, "live", timeout).code(), absl::StatusCode::kUnavailable);
}

TEST(HealthServer, SaysWhatAnAddressLooksLike) {
  EXPECT_THAT(std::string(HealthServer::Start("9090", {}).status().message()),
              HasSubstr("127.0.0.1:9090"));
}

}  // namespace
}  // namespace rempart::worker
