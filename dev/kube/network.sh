# SPDX-License-Identifier: Apache-2.0
# Addresses, the bridge between nodes, network namespaces and cgroups of nodes.
#   node-0 lives in the machine's own network namespace; node-N in one of its own, joined by a veth pair to the bridge.
#   nodes 10.90.0.1+N on rmp-nodes; pods 10.91.N.0/24 on the node's bridge rmp-pods; services 10.92.0.0/16.
# shellcheck shell=bash disable=SC2034
# shellcheck source=dev/kube/common.sh disable=SC2154
node_bridge=rmp-nodes
node_address=10.90.0.1
pod_range=10.91.0.0/16
service_range=10.92.0.0/16
api_service_address=10.92.0.1
dns_address=10.92.0.10

address_of() { echo "10.90.0.$((1 + ${1#node-}))"; }
pods_of() { echo "10.91.${1#node-}.0/24"; }
in_node() {  # in_node NODE COMMAND...: nsenter and not `ip netns exec`, which would hide /sys/fs/cgroup.
  local node=$1
  shift
  if [ "$node" = node-0 ]; then "$@"; else nsenter --net="/run/netns/rmp-$node" "$@"; fi
}

setting() {  # setting NODE KEY VALUE: a network sysctl in the node's namespace, when the kernel has it.
  local file="/proc/sys/net/${2//.//}"
  in_node "$1" sh -c "[ ! -e $file ] || [ \"\$(cat $file)\" = $3 ] || echo $3 >$file"
}

node_settings() {
  setting "$1" ipv4.ip_forward 1
  # Without it, an answer between two pods of one bridge skips the address translation of Services.
  [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || modprobe br_netfilter 2>/dev/null || true
  setting "$1" bridge.bridge-nf-call-iptables 1
}

make_bridge() {
  # Remembered for `down`.
  [ -f "$state/ip_forward" ] || cat /proc/sys/net/ipv4/ip_forward >"$state/ip_forward"
  # A bridge and not a dummy link: some kernels have no dummy type.
  ip link show "$node_bridge" >/dev/null 2>&1 || ip link add "$node_bridge" type bridge
  ip address replace "$node_address/24" dev "$node_bridge"
  ip link set "$node_bridge" up
  # The machine itself reaches Services with a source address that every node can answer to.
  ip route replace "$service_range" dev "$node_bridge" src "$node_address"
  node_settings node-0
  # A container engine on the same machine may have closed forwarding.
  if command -v iptables >/dev/null && iptables -S FORWARD 2>/dev/null | grep -q -- '-P FORWARD DROP'; then
    iptables -C FORWARD -i rmp+ -j ACCEPT 2>/dev/null || iptables -I FORWARD -i rmp+ -j ACCEPT
    iptables -C FORWARD -o rmp+ -j ACCEPT 2>/dev/null || iptables -I FORWARD -o rmp+ -j ACCEPT
  fi
}

make_namespace() {  # make_namespace NODE: namespace, veth into the bridge, routes between pod ranges.
  local node=$1 index=${1#node-} other
  [ "$node" != node-0 ] || return 0
  [ -e "/run/netns/rmp-$node" ] || ip netns add "rmp-$node"
  if ! in_node "$node" ip link show eth0 >/dev/null 2>&1; then
    ip link delete "rmp-veth$index" 2>/dev/null || true
    ip link add "rmp-veth$index" type veth peer name eth0 netns "rmp-$node"
  fi
  ip link set "rmp-veth$index" master "$node_bridge" up
  in_node "$node" ip link set lo up
  in_node "$node" ip address replace "$(address_of "$node")/24" dev eth0
  in_node "$node" ip link set eth0 up
  in_node "$node" ip route replace default via "$node_address"
  node_settings "$node"
  ip route replace "$(pods_of "$node")" via "$(address_of "$node")"
  for other in $(known_nodes); do
    [ "$other" != node-0 ] && [ "$other" != "$node" ] && [ -e "/run/netns/rmp-$other" ] || continue
    in_node "$other" ip route replace "$(pods_of "$node")" via "$(address_of "$node")"
    in_node "$node" ip route replace "$(pods_of "$other")" via "$(address_of "$other")"
  done
}

nodes_beyond() { local node; for node in $(known_nodes); do [ "${node#node-}" -lt "$1" ] || echo "$node"; done; }  # nodes_beyond COUNT

known_nodes() { for file in "$state"/node-*.kubeconfig; do [ ! -e "$file" ] || basename "$file" .kubeconfig; done; }

is_cgroup_v2() { [ -f /sys/fs/cgroup/cgroup.controllers ]; }

# Nodes stand for machines of their own: what else runs on this one must not starve their pods, so they weigh twenty times as much
# as a process.
make_cgroup() {  # make_cgroup NODE: /rempart-NODE, in each controller on v1, with controllers handed down on v2.
  local folder controller
  if is_cgroup_v2; then
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
      echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || leave_root_cgroup "$controller"
    done
    mkdir -p "/sys/fs/cgroup/rempart-$1"
    for controller in $(cat "/sys/fs/cgroup/rempart-$1/cgroup.controllers"); do
      echo "+$controller" >"/sys/fs/cgroup/rempart-$1/cgroup.subtree_control"
    done
    [ ! -f "/sys/fs/cgroup/rempart-$1/cpu.weight" ] || echo 2000 >"/sys/fs/cgroup/rempart-$1/cpu.weight"
    return 0
  fi
  for folder in /sys/fs/cgroup/*/; do
    [ -f "$folder/cgroup.procs" ] || continue
    mkdir -p "$folder/rempart-$1"
    [ ! -f "$folder/rempart-$1/cpu.shares" ] || echo 20480 >"$folder/rempart-$1/cpu.shares"
    if [ -f "$folder/rempart-$1/cpuset.cpus" ] && [ -z "$(cat "$folder/rempart-$1/cpuset.cpus")" ]; then
      cat "$folder/cpuset.cpus" >"$folder/rempart-$1/cpuset.cpus"
      cat "$folder/cpuset.mems" >"$folder/rempart-$1/cpuset.mems"
    fi
  done
}

# Inside a container the root of the cgroup tree holds processes, and v2 hands no controller to a child of such a node:
# move them into a leaf first.
leave_root_cgroup() {
  local process
  mkdir -p /sys/fs/cgroup/rempart-init
  while read -r process; do
    echo "$process" >/sys/fs/cgroup/rempart-init/cgroup.procs 2>/dev/null || true
  done </sys/fs/cgroup/cgroup.procs
  echo "+$1" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
}

remove_cgroup() {  # remove_cgroup NODE: ends what still runs in it, then removes it, deepest folders first.
  local root process
  for root in /sys/fs/cgroup/rempart-"$1" /sys/fs/cgroup/*/rempart-"$1"; do
    [ -d "$root" ] || continue
    while read -r process; do kill -KILL "$process" 2>/dev/null || true; done \
      < <(find "$root" -name cgroup.procs -exec cat {} + 2>/dev/null)
  done
  for root in /sys/fs/cgroup/rempart-"$1" /sys/fs/cgroup/*/rempart-"$1"; do
    [ -d "$root" ] || continue
    wait_until 10 "removing $root" sh -c "find $root -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d $root ]" || true
  done
}

remove_network() {
  local file
  for file in /run/netns/rmp-node-*; do [ ! -e "$file" ] || ip netns delete "$(basename "$file")"; done
  ip link delete "$node_bridge" 2>/dev/null || true
  ip link delete rmp-pods 2>/dev/null || true
  nft delete table ip kube-proxy 2>/dev/null || true
  nft delete table ip6 kube-proxy 2>/dev/null || true
  if command -v iptables >/dev/null; then
    iptables -D FORWARD -i rmp+ -j ACCEPT 2>/dev/null || true
    iptables -D FORWARD -o rmp+ -j ACCEPT 2>/dev/null || true
  fi
  [ ! -f "$state/ip_forward" ] || cat "$state/ip_forward" >/proc/sys/net/ipv4/ip_forward
}
