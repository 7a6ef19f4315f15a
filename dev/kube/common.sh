# SPDX-License-Identifier: Apache-2.0
# Words shared by the parts of dev/cluster: folders, messages with times, locks, retries.
# shellcheck shell=bash disable=SC2034
cache="${REMPART_CACHE:-$HOME/.cache/rempart}"
bin="$cache/bin"
state="${REMPART_CLUSTER_STATE:-/var/lib/rempart-cluster}"
kubeconfig="$state/admin.kubeconfig"

say() { echo "cluster: $*" >&2; }
die() { echo "cluster: $*" >&2; exit 1; }

# timed MESSAGE COMMAND...: says what is done, then how long it took. The command's output is shown only on failure.
timed() {
  local message=$1 started=$SECONDS log
  shift
  log=$(mktemp)
  echo -n "cluster: $message ..." >&2
  # The command runs with errexit off when it is tested by `if`, hence the subshell of its own.
  local status=0
  set +e
  (set -e; "$@") >"$log" 2>&1
  status=$?
  set -e
  if [ "$status" -ne 0 ]; then
    echo " failed after $((SECONDS - started)) s:" >&2
    tail -n 40 "$log" >&2
    rm -f "$log"
    exit "$status"
  fi
  rm -f "$log"
  echo " $((SECONDS - started)) s" >&2
}

# wait_until SECONDS WHAT COMMAND...: repeats the command until it succeeds.
wait_until() {
  local limit=$1 what=$2 deadline
  shift 2
  deadline=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { echo "$what: not after $limit s"; return 1; }
    sleep 0.3
  done
}

# One dev/cluster at a time touches the folder; waits for the other one and says so.
lock() {
  mkdir -p "$(dirname "$1")"
  exec {lock_fd}>"$1"
  flock -n "$lock_fd" || { say "waiting for another dev/cluster ($1)"; flock "$lock_fd"; }
}
