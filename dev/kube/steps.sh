# SPDX-License-Identifier: Apache-2.0
# Steps with progress: what is being done, the last line of its output while it lasts, how long it took.
# shellcheck shell=bash
note() { echo "quickstart: $*" >&2; }
die() { echo "quickstart: $*" >&2; exit 1; }

# step MESSAGE COMMAND...: output goes to a log, which is shown when the command fails. On a terminal the last line of the log is
# shown while it runs; elsewhere a line every 30 s.
step() {
  local message=$1 started=$SECONDS log pid status=0 said=0
  shift
  log=$(mktemp)
  ("$@") >"$log" 2>&1 &
  pid=$!
  # An interrupt reaches the command too; it must not go on alone.
  # shellcheck disable=SC2064
  trap "kill $pid 2>/dev/null; exit 130" INT TERM
  [ -t 2 ] || echo "quickstart: $message ..." >&2
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 2 ]; then
      printf '\r\033[Kquickstart: %s ... %d s  %.70s' "$message" $((SECONDS - started)) "$(tail -n 1 "$log" | tr -d '\r')" >&2
    elif [ $(((SECONDS - started) / 30)) -gt "$said" ]; then
      said=$(((SECONDS - started) / 30))
      echo "quickstart:   $((SECONDS - started)) s: $(tail -n 1 "$log")" >&2
    fi
    sleep 0.2
  done
  wait "$pid" || status=$?
  trap - INT TERM
  if [ "$status" -ne 0 ]; then
    [ ! -t 2 ] || echo >&2
    echo "quickstart: $message: failed after $((SECONDS - started)) s; the end of its output:" >&2
    tail -n 40 "$log" >&2
    rm -f "$log"
    exit "$status"
  fi
  [ ! -t 2 ] || printf '\r\033[K' >&2
  echo "quickstart: $message: $((SECONDS - started)) s" >&2
  rm -f "$log"
}
