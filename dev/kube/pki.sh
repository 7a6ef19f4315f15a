# SPDX-License-Identifier: Apache-2.0
# Keys, certificates and kubeconfigs of the cluster, made once and kept in $state/pki. One authority signs all.
# shellcheck shell=bash
# shellcheck source=dev/kube/common.sh disable=SC2154

issue() {  # issue NAME SUBJECT [SUBJECT_ALT_NAMES]: a key and a certificate for a client or a server.
  local name=$1 subject=$2 names=${3:-}
  [ ! -f "$state/pki/$name.crt" ] || return 0
  openssl req -new -newkey rsa:2048 -nodes -subj "$subject" -keyout "$state/pki/$name.key" -out "$state/pki/$name.csr"
  {
    echo "extendedKeyUsage=clientAuth,serverAuth"
    [ -z "$names" ] || echo "subjectAltName=$names"
  } >"$state/pki/$name.ext"
  openssl x509 -req -in "$state/pki/$name.csr" -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" -CAcreateserial \
    -days 3650 -extfile "$state/pki/$name.ext" -out "$state/pki/$name.crt.new"
  mv "$state/pki/$name.crt.new" "$state/pki/$name.crt"
}

write_kubeconfig() {  # write_kubeconfig FILE NAME: credentials inline, so that the file can be copied.
  local file=$1 name=$2
  [ ! -f "$file" ] || return 0
  cat >"$file.new" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
- name: rempart-dev
  cluster:
    server: https://$node_address:6443
    certificate-authority-data: $(base64 -w0 "$state/pki/ca.crt")
users:
- name: $name
  user:
    client-certificate-data: $(base64 -w0 "$state/pki/$name.crt")
    client-key-data: $(base64 -w0 "$state/pki/$name.key")
contexts:
- name: rempart-dev
  context: {cluster: rempart-dev, user: $name}
current-context: rempart-dev
KUBECONFIG
  mv "$file.new" "$file"
}

make_pki() {
  umask 077
  mkdir -p "$state/pki"
  if [ ! -f "$state/pki/ca.crt" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=rempart-dev-ca -days 3650 \
      -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$state/pki/ca.key" -out "$state/pki/ca.crt.new"
    mv "$state/pki/ca.crt.new" "$state/pki/ca.crt"
  fi
  [ -f "$state/pki/service-accounts.key" ] || openssl genrsa -out "$state/pki/service-accounts.key" 2048
  local names="DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
  names+=",DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$api_service_address,IP:$node_address"
  issue apiserver /CN=kube-apiserver "$names"
  issue apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  issue admin /O=system:masters/CN=admin
  issue controller-manager /CN=system:kube-controller-manager
  issue scheduler /CN=system:kube-scheduler
  issue proxy /CN=system:kube-proxy
  write_kubeconfig "$kubeconfig" admin
  write_kubeconfig "$state/controller-manager.kubeconfig" controller-manager
  write_kubeconfig "$state/scheduler.kubeconfig" scheduler
  write_kubeconfig "$state/proxy.kubeconfig" proxy
}

make_node_pki() {  # make_node_pki NODE ADDRESS
  umask 077
  issue "$1" "/O=system:nodes/CN=system:node:$1" "DNS:$1,IP:$2"
  write_kubeconfig "$state/$1.kubeconfig" "$1"
}
