# SPDX-License-Identifier: Apache-2.0
# One node: containerd with the CNI bridge plugin, kubelet, kube-proxy. node-0 shares the machine's network namespace.
# shellcheck shell=bash
# shellcheck source=dev/kube/network.sh disable=SC2154
pause_image=rempart.dev/pause:1

containerd_socket() { echo "/run/rempart-cluster/$1/containerd.sock"; }
node_ctr() { local node=$1; shift; ctr --address "$(containerd_socket "$node")" --namespace k8s.io "$@"; }

snapshotter() {  # overlayfs where the file system below allows it (not on another overlay).
  local trial="$state/overlay-trial"
  mkdir -p "$trial"/{lower,upper,work,merged}
  if mount -t overlay overlay -o "lowerdir=$trial/lower,upperdir=$trial/upper,workdir=$trial/work" "$trial/merged" 2>/dev/null; then
    umount "$trial/merged"
    echo overlayfs
  else
    echo native
  fi
  rm -rf "$trial"
}

write_containerd_config() {
  local node=$1 folder="$state/$1"
  mkdir -p "$folder/cni" "/run/rempart-cluster/$node"
  cat >"$folder/containerd.toml" <<TOML
version = 2
root = "$folder/containerd"
state = "/run/rempart-cluster/$node/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "$(containerd_socket "$node")"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$pause_image"
  # Without CAP_SYS_RESOURCE runc cannot lower oom_score_adj and dies.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "$folder/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "$(snapshotter)"
TOML
  cat >"$folder/cni/10-bridge.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "rempart", "plugins": [
  {"type": "bridge", "bridge": "rmp-pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$folder/ipam",
            "ranges": [[{"subnet": "$(pods_of "$node")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

write_kubelet_config() {
  local node=$1 folder="$state/$1"
  # Containers get no outside name server from us: names are the cluster's own.
  : >"$folder/resolv.conf"
  cat >"$folder/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$(containerd_socket "$node")
address: $(address_of "$node")
healthzPort: 0
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $state/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $state/pki/$node.crt
tlsPrivateKeyFile: $state/pki/$node.key
clusterDNS: [$dns_address]
clusterDomain: cluster.local
resolvConf: $folder/resolv.conf
cgroupDriver: cgroupfs
cgroupRoot: /rempart-$node
$(is_cgroup_v2 || echo "failCgroupV1: false")
failSwapOn: false
podCIDR: $(pods_of "$node")
# A full disk of a shared machine must not evict pods.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
evictionPressureTransitionPeriod: 10s
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
volumePluginDir: $folder/volume-plugins
# Of its own: a kubelet removes the logs of pods that it does not know.
podLogsDir: $folder/pod-logs
syncFrequency: 10s
fileCheckFrequency: 20s
shutdownGracePeriod: 0s
YAML
  cat >"$folder/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $state/proxy.kubeconfig}
mode: nftables
clusterCIDR: $pod_range
hostnameOverride: $node
healthzBindAddress: $(address_of "$node"):10256
metricsBindAddress: 127.0.0.1:10249
# Shared kernel settings are left as they are.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}

# With REMPART_NODE_DISK_MIB set, a further node gets a disk of its own, so that a test can fill it.
make_disk() {
  local node=$1 image="$state/disks/$1.ext4"
  [ "${REMPART_NODE_DISK_MIB:-0}" -gt 0 ] && [ "$node" != node-0 ] && [ ! -d "$state/$node" ] || return 0
  mkdir -p "$state/disks" "$state/$node"
  truncate -s "${REMPART_NODE_DISK_MIB}M" "$image"
  mkfs.ext4 -q -F -m 0 "$image"
  mount -o loop "$image" "$state/$node"
}

remove_disk() {
  ! mountpoint -q "$state/$1" || umount -l "$state/$1"
  rm -f "$state/disks/$1.ext4"
}

start_node() {
  local node=$1
  make_disk "$node"
  make_cgroup "$node"
  make_node_pki "$node" "$(address_of "$node")"
  umask 022
  make_namespace "$node"
  write_containerd_config "$node"
  write_kubelet_config "$node"
  start "$node" "$node-containerd" /usr/bin/containerd --config "$state/$node/containerd.toml" --log-level warn
  wait_until 30 "containerd of $node" node_ctr "$node" version
  import_image "$node" "$state/images/pause.tar"
  import_image "$node" "$state/images/coredns.tar"
  start "$node" "$node-kubelet" "$bin/kubelet" --config "$state/$node/kubelet.yaml" \
    --kubeconfig "$state/$node.kubeconfig" --hostname-override "$node" --node-ip "$(address_of "$node")" \
    --root-dir "$state/$node/kubelet" --cert-dir "$state/$node/pki"
  start "$node" "$node-kube-proxy" "$bin/kube-proxy" --config "$state/$node/proxy.yaml"
}

import_image() {  # import_image NODE ARCHIVE: unless the node holds exactly this image.
  local reference
  reference=$(image_name "$2")
  node_ctr "$1" images ls -q | grep -xF "$reference" >/dev/null || node_ctr "$1" images import --snapshotter "$(snapshotter)" "$2"
}

image_name() { tar -xOf "$1" manifest.json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["RepoTags"][0])'; }

stop_node() {  # Ends kubelet, proxy, all pods and containerd, and removes what they mounted.
  local node=$1 shim mounted
  stop "$node-kubelet" "$node-kube-proxy"
  for shim in $(pgrep -f "containerd-shim.*-address $(containerd_socket "$node")" || true); do
    kill -KILL "$shim" 2>/dev/null || true
  done
  remove_cgroup "$node"
  stop "$node-containerd"
  while read -r mounted; do umount -l "$mounted" 2>/dev/null || true; done \
    < <(awk -v a="$state/$node/" -v b="/run/rempart-cluster/$node/" 'index($2, a) == 1 || index($2, b) == 1 {print $2}' /proc/mounts | sort -r)
  remove_disk "$node"
}

remove_node() {
  local node=$1
  kubectl delete node "$node" --ignore-not-found
  # Its pods would otherwise wait for minutes for a kubelet that never answers again.
  kubectl delete pods -A --field-selector "spec.nodeName=$node" --force --grace-period=0
  stop_node "$node"
  ip route delete "$(pods_of "$node")" 2>/dev/null || true
  ip netns delete "rmp-$node" 2>/dev/null || true
  rm -rf "${state:?}/$node" "$state/$node.kubeconfig" "$state/pki/$node".* "$state/run/$node"-* "/run/rempart-cluster/$node"
}
