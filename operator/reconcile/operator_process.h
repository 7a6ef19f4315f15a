// SPDX-License-Identifier: Apache-2.0
// One operator process from start to exit. Threads: one per informer, one that writes events, one
// that publishes the topology, four that reconcile and two that reconcile edits (only on the
// leader), gRPC's own.
//
// Every replica watches and answers Topology streams; the holder of the lease answers Join streams
// and acts, the others tell workers where it is. Nothing is kept but in the cluster: a restart at
// any moment loses nothing.
#pragma once

#include <stop_token>
#include <string>

#include "common/clock.h"
#include "common/exit_code.h"
#include "operator/kube/transport.h"
#include "operator/kube/work_queue.h"
#include "operator/plan/observed.h"

namespace rempart::op {

struct OperatorOptions {
  Settings settings;
  // Namespace of the lease and of the workers' certificate.
  std::string own_namespace = "rempart";
  std::string identity = "rempart-operator";
  // Join and Topology. "host:port" or "unix:/path"; outside loopback, tls_dir is required.
  std::string listen_address = "127.0.0.1:7080";
  // The same, as workers reach this very replica: told to those that come to another one. Empty:
  // they find it by trying.
  std::string own_address;
  // Folder with ca.crt, tls.crt and tls.key; empty: no TLS.
  std::string tls_dir;
  // /healthz, /readyz and /metrics; empty: nowhere.
  std::string health_address;
  // Copy the Secret rempart-worker-tls of own_namespace beside the workers.
  bool copy_worker_tls = true;
  absl::Duration lease_retry = absl::Seconds(2);
  // The first pause after a failed list or watch.
  absl::Duration informer_pause = absl::Milliseconds(200);
};

// Runs until a stop and returns the process's exit status; what went wrong has been logged.
// `on_serving` is called once, with the port of the health server (0: none).
int RunOperator(const OperatorOptions& options, Transport* transport, const Clock* clock,
                std::stop_token stop, const std::function<void(int health_port)>& on_serving = {});

}  // namespace rempart::op
