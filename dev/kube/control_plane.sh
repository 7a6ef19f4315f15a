# SPDX-License-Identifier: Apache-2.0
# etcd, API server, controller manager and scheduler, as processes of this machine that listen on the node bridge only.
# shellcheck shell=bash
# shellcheck source=dev/kube/network.sh disable=SC2154

start_control_plane() {
  # Data of a test cluster need not survive a power cut: without fsync everything starts faster on a slow disk.
  start node-0 etcd "$bin/etcd" --name rempart --data-dir "$state/etcd" --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:23790" --advertise-client-urls "http://127.0.0.1:23790" \
    --listen-peer-urls "http://127.0.0.1:23800" --initial-advertise-peer-urls "http://127.0.0.1:23800" \
    --initial-cluster "rempart=http://127.0.0.1:23800" --log-level warn
  start node-0 kube-apiserver "$bin/kube-apiserver" \
    --etcd-servers http://127.0.0.1:23790 --bind-address "$node_address" --secure-port 6443 \
    --advertise-address "$node_address" --service-cluster-ip-range "$service_range" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
    --client-ca-file "$state/pki/ca.crt" \
    --tls-cert-file "$state/pki/apiserver.crt" --tls-private-key-file "$state/pki/apiserver.key" \
    --kubelet-client-certificate "$state/pki/apiserver-kubelet-client.crt" \
    --kubelet-preferred-address-types InternalIP --kubelet-client-key "$state/pki/apiserver-kubelet-client.key" \
    --service-account-key-file "$state/pki/service-accounts.key" \
    --service-account-signing-key-file "$state/pki/service-accounts.key" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local
  wait_until 90 "API server ready" kubectl get --raw /readyz
  # They elect a leader, as everywhere: when the API server is away for longer than their lease they end, and what they do next they do
  # as if started anew. Without, they live on with what they remember, and call all nodes lost when it is back.
  start_kept node-0 kube-controller-manager "$bin/kube-controller-manager" \
    --kubeconfig "$state/controller-manager.kubeconfig" --bind-address 127.0.0.1 \
    --use-service-account-credentials --service-account-private-key-file "$state/pki/service-accounts.key" \
    --root-ca-file "$state/pki/ca.crt" --cluster-cidr "$pod_range" --service-cluster-ip-range "$service_range" \
    --allocate-node-cidrs=false
  start_kept node-0 kube-scheduler "$bin/kube-scheduler" \
    --kubeconfig "$state/scheduler.kubeconfig" --bind-address 127.0.0.1
}

kubectl() { "$bin/kubectl" --kubeconfig "$kubeconfig" "$@"; }
