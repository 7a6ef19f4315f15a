// SPDX-License-Identifier: Apache-2.0
#include "worker/config/worker_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

namespace rempart::worker {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::string Message(const std::string& json) {
  return std::string(ParseWorkerSettings(json).status().message());
}

constexpr char kMinimal[] =
    R"("modelName":"ia/tiny","modelPath":"/m.gguf","listenAddress":"unix:/tmp/w.sock")";

TEST(WorkerConfig, FillsInDefaults) {
  const auto settings = ParseWorkerSettings(std::string("{") + kMinimal + "}");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->engine.max_sequences, 32);
  EXPECT_EQ(settings->engine.max_step_tokens, 512);
  EXPECT_EQ(settings->served_names, std::vector<std::string>{"ia/tiny"});
}

TEST(WorkerConfig, NamesTheUnknownField) {
  EXPECT_THAT(Message(std::string("{") + kMinimal + R"(,"modelPaht":"x"})"),
              HasSubstr("modelPaht"));
}

TEST(WorkerConfig, ReportsAllProblemsAtOnce) {
  const std::string message =
      Message(R"({"engine":{"threads":-1,"arithmetic":"wrong","contextLength":-1,
                  "kvCacheMib":-1,"maxStepMilliseconds":-1},"healthAddress":"0.0.0.0:9090"})");
  for (const char* part :
       {"engine.threads is -1", "engine.contextLength is -1", "engine.kvCacheMib is -1",
        "engine.maxStepMilliseconds is -1", "engine.arithmetic is \"wrong\"",
        "model_name is missing", "model_path is missing", "listen_address is missing",
        "health_address is 0.0.0.0:9090"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
}

TEST(WorkerConfig, ADigestIsSha256InLowerCase) {
  const std::string digits(64, 'a');
  const auto with = [](const std::string& digest) {
    return std::string("{") + kMinimal + ",\"modelDigest\":\"" + digest + "\"}";
  };
  const auto settings = ParseWorkerSettings(with("sha256:" + digits));
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->model_digest, "sha256:" + digits);
  for (const std::string& wrong :
       {digits, "sha256:" + digits.substr(1), "sha256:A" + digits.substr(1)}) {
    EXPECT_THAT(Message(with(wrong)), HasSubstr("model_digest is \"" + wrong + "\""));
  }
}

TEST(WorkerConfig, APodHoldsRanksOfOneStage) {
  const auto with = [](const std::string& shape) {
    return std::string("{") + kMinimal +
           R"(,"groupName":"ia/g-0","dataAddress":"127.0.0.1:0","controlAddress":"unix:/c",)" +
           shape + "}";
  };
  auto settings = ParseWorkerSettings(with(R"("pipelineParallel":3)"));
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->pod_count, 3);
  settings =
      ParseWorkerSettings(with(R"("pipelineParallel":3,"tensorParallel":4,"ranksPerPod":2)"));
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->pod_count, 6);
  EXPECT_EQ(settings->tensor_parallel, 4);
  EXPECT_EQ(settings->pipeline_parallel, 3);
  EXPECT_THAT(Message(with(R"("pipelineParallel":4,"ranksPerPod":2)")),
              HasSubstr("ranks_per_pod is 2: it must divide tensor_parallel, 1"));
  EXPECT_THAT(Message(with(R"("pipelineParallel":33,"tensorParallel":2)")),
              HasSubstr("tensor_parallel is 2 and pipeline_parallel 33: a group has at most 64"));
}

TEST(WorkerConfig, ComputesOnTheCpuUnlessToldOtherwise) {
  const auto with = [](const std::string& more) {
    return ParseWorkerSettings(std::string("{") + kMinimal + more + "}");
  };
  EXPECT_EQ(with("")->device, DeviceKind::kCpu);
  EXPECT_EQ(with(R"(,"device":"cpu")")->device, DeviceKind::kCpu);
  const auto gpu = with(R"(,"device":"gpu","firstGpu":3,"engine":{"kvCacheType":"fp8"})");
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  EXPECT_EQ(gpu->device, DeviceKind::kGpu);
  EXPECT_EQ(gpu->first_gpu, 3);
  EXPECT_THAT(std::string(with(R"(,"device":"tpu")").status().message()),
              HasSubstr("device is \"tpu\": it must be one of"));
}

TEST(WorkerConfig, AStepHoldsATokenOfEachSequenceAndRoomForPrompts) {
  const auto with = [](const std::string& device, const std::string& engine) {
    return ParseWorkerSettings(std::string("{") + kMinimal + R"(,"device":")" + device +
                               R"(","engine":{)" + engine + "}}");
  };
  const auto tokens = [&](const std::string& device, const std::string& engine) {
    const auto settings = with(device, engine);
    EXPECT_TRUE(settings.ok()) << settings.status();
    return settings.ok() ? settings->engine.max_step_tokens : -1;
  };
  EXPECT_EQ(tokens("cpu", ""), 512);
  EXPECT_EQ(tokens("gpu", ""), 2048);
  EXPECT_EQ(tokens("cpu", R"("maxSequences":513)"), 1026);
  EXPECT_EQ(tokens("gpu", R"("maxSequences":513)"), 2048);
  // Whatever number of sequences a Model may have.
  EXPECT_EQ(tokens("cpu", R"("maxSequences":4096)"), 8192);
  EXPECT_EQ(tokens("gpu", R"("maxSequences":4096)"), 8192);
  EXPECT_EQ(tokens("gpu", R"("maxSequences":600,"maxStepTokens":600)"), 600);
  EXPECT_EQ(tokens("gpu", R"("maxStepTokens":65535)"), 65535);
  EXPECT_THAT(std::string(with("cpu", R"("maxStepTokens":16)").status().message()),
              HasSubstr("engine.maxStepTokens is 16: it must be from 32, engine.maxSequences, "
                        "to 65535"));
  EXPECT_THAT(std::string(with("gpu", R"("maxStepTokens":65536)").status().message()),
              HasSubstr("engine.maxStepTokens is 65536: it must be from 32"));
}

TEST(WorkerConfig, WhatADeviceCannotDoIsRefused) {
  const auto message = [](const std::string& more) {
    return Message(std::string("{") + kMinimal + more + "}");
  };
  EXPECT_THAT(message(R"(,"engine":{"kvCacheType":"fp8"})"), HasSubstr("engine.kvCacheType is"));
  EXPECT_THAT(message(R"(,"device":"gpu","engine":{"kvCacheType":"q8"})"),
              HasSubstr("engine.kvCacheType (on a GPU) is \"q8\""));
  EXPECT_THAT(message(R"(,"device":"gpu","engine":{"arithmetic":"exact"})"),
              HasSubstr("engine.arithmetic (on a GPU) is \"exact\""));
  EXPECT_THAT(message(R"(,"device":"gpu","engine":{"kernelTier":"avx2"})"),
              HasSubstr("engine.kernelTier is \"avx2\": a GPU has one"));
  EXPECT_THAT(message(R"(,"device":"gpu","pipelineParallel":2,"groupName":"ia/g-0",)"
                      R"("dataAddress":"127.0.0.1:0","controlAddress":"unix:/c")"),
              IsEmpty());
  EXPECT_THAT(message(R"(,"device":"gpu","tensorParallel":2,"ranksPerPod":2)"), IsEmpty());
}

TEST(WorkerConfig, TakesThoseOfNcclsVariablesThatAreOnTheList) {
  const auto with = [](const std::string& nccl) {
    return std::string("{") + kMinimal + R"(,"device":"gpu","nccl":)" + nccl + "}";
  };
  const auto settings =
      ParseWorkerSettings(with(R"({"NCCL_DEBUG":"WARN","NCCL_SOCKET_IFNAME":"eth1"})"));
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_EQ(settings->nccl, (std::map<std::string, std::string>{{"NCCL_DEBUG", "WARN"},
                                                                {"NCCL_SOCKET_IFNAME", "eth1"}}));
  const std::string refused =
      Message(with(R"({"NCCL_COMM_ID":"10.0.0.1:1","NCCL_TUNER_PLUGIN":"x","NCCL_DEBUG":""})"));
  for (const char* part : {"nccl: NCCL_COMM_ID is none of NCCL's variables that may be set: remove "
                           "it; these may be set: "
                           "NCCL_ALGO, ",
                           "nccl: NCCL_TUNER_PLUGIN would load code",
                           "nccl: the value of NCCL_DEBUG must have 1 to"}) {
    EXPECT_THAT(refused, HasSubstr(part));
  }
  EXPECT_THAT(refused, Not(HasSubstr("10.0.0.1"))) << "values may be secrets";
  EXPECT_THAT(Message(std::string("{") + kMinimal + R"(,"nccl":{"NCCL_DEBUG":"INFO"}})"),
              HasSubstr("nccl is set and device is not gpu: leave it out"));
}

TEST(WorkerConfig, RefusesPlainTextOutsideTheMachine) {
  EXPECT_THAT(Message(R"({"modelName":"m","modelPath":"/m","listenAddress":"0.0.0.0:7070"})"),
              HasSubstr("listen_address is 0.0.0.0:7070, which leaves this machine"));
}

TEST(WorkerConfig, AdvertisesThePodsAddressInsteadOfAllInterfaces) {
  EXPECT_EQ(AdvertisedAddress("0.0.0.0:7070", "10.1.2.3"), "10.1.2.3:7070");
  EXPECT_EQ(AdvertisedAddress("[::]:7070", "fd00::3"), "[fd00::3]:7070");
  EXPECT_EQ(AdvertisedAddress("0.0.0.0:7070", ""), "0.0.0.0:7070");
  EXPECT_EQ(AdvertisedAddress("unix:/run/w.sock", "10.1.2.3"), "unix:/run/w.sock");
}

TEST(WorkerConfig, SaysThatAFileIsMissing) {
  EXPECT_THAT(std::string(ReadWorkerSettings("/nowhere.json").status().message()),
              HasSubstr("/nowhere.json"));
}

}  // namespace
}  // namespace rempart::worker
