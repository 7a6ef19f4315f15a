# SPDX-License-Identifier: Apache-2.0
# Background processes of the cluster: started once, known by pid file, ended by pid only.
# shellcheck shell=bash
# shellcheck source=dev/kube/common.sh disable=SC2154

# A pid file names our process only while that process was started by this program file: pids are reused.
is_running() {
  local pid
  pid=$(cat "$state/run/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ -d "/proc/$pid" ] && grep -qaF "$(cat "$state/run/$1.program")" "/proc/$pid/cmdline" 2>/dev/null
}

start() {  # start NODE NAME PROGRAM ARGUMENTS...: in the node's network namespace, in the background, log in $state/log.
  local node=$1 name=$2 program=$3 pid
  shift 3
  ! is_running "$name" || return 0
  mkdir -p "$state/run" "$state/log"
  echo "$program" >"$state/run/$name.program"
  # The lock of this script must not be inherited, or the next dev/cluster would wait for as long as the cluster lives.
  if [ "$node" = node-0 ]; then
    setsid "$program" "$@" </dev/null >>"$state/log/$name.log" 2>&1 {lock_fd}>&- &
  else
    setsid nsenter --net="/run/netns/rmp-$node" "$program" "$@" </dev/null >>"$state/log/$name.log" 2>&1 {lock_fd}>&- &
  fi
  pid=$!
  disown "$pid"
  echo "$pid" >"$state/run/$name.pid"
}

start_kept() {  # start_kept NODE NAME PROGRAM ARGUMENTS...: as start; runs again whenever it ends.
  local node=$1 name=$2
  shift 2
  start "$node" "$name" "$PWD/dev/kube/keep" "$@"
}

stop() {  # stop NAME...: asks, waits 10 s, then kills; all together.
  local name pids=() pid
  for name in "$@"; do
    if is_running "$name"; then
      pid=$(cat "$state/run/$name.pid")
      kill "$pid" 2>/dev/null || true
      pids+=("$pid")
    fi
    rm -f "$state/run/$name.pid"
  done
  for pid in "${pids[@]}"; do
    wait_until 10 "end of process $pid" sh -c "! [ -d /proc/$pid ] || grep -q '^State:.Z' /proc/$pid/status" ||
      kill -KILL "$pid" 2>/dev/null || true
  done
}

kill_all() {  # kill_all NAME...: at once.
  local name
  for name in "$@"; do
    ! is_running "$name" || kill -KILL "$(cat "$state/run/$name.pid")" 2>/dev/null || true
    rm -f "$state/run/$name.pid"
  done
}
