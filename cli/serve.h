// SPDX-License-Identifier: Apache-2.0
// `rempart serve`: the operator's plan carried out by child processes on one machine. Workers and
// the router meet on unix sockets in a folder that only the user may enter.
#pragma once

#include <csignal>
#include <string>

#include "common/exit_code.h"

namespace rempart::cli {

struct ServeOptions {
  std::string manifest_path;
  std::string host = "127.0.0.1";
  int port = 8000;
  // Serve without API keys; the router refuses that outside loopback.
  bool dev = false;
  // Key file of the router; empty without `dev`: a key is drawn and shown once.
  std::string api_keys_file;
  // Where workers keep repacked weights for the next start; empty: nowhere.
  std::string cache_folder;
  // The folder was asked for: without it nothing is served.
  bool cache_is_named = false;
  // Forces the workers' kernels; empty: the best of this machine.
  std::string kernel_tier;
  // Port of 127.0.0.1 for the router's /metrics; those of the workers follow it. 0: none.
  int metrics_port = 0;
  // Folder of rempart-worker and rempart-router.
  std::string binaries;
};

// Says to the main thread that a worker has told something new.
inline constexpr int kNewsSignal = SIGUSR1;

// Runs until SIGINT or SIGTERM; called by the main thread while there is no other. Returns the exit
// status: kExitOk, or that of the child that cannot be started at all.
int Serve(const ServeOptions& options);

}  // namespace rempart::cli
