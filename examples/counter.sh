#!/usr/bin/env bash
# Two loops that add to a number in a file, each addition under the lock: a script to try under faults.
#
# `cluster/chaos --for 60s --lease 2s -- examples/counter.sh FILE`, with `quorlock` on PATH. By hand:
# `eval "$(cluster/up)"`, then `examples/counter.sh FILE`; it ends with Ctrl-C.
set -euo pipefail
file=${1:?usage: counter.sh FILE}

# shellcheck disable=SC2016  # The inner shell expands it.
ADD='read -r n <"$1"; sleep 0.05; echo $((n + 1)) >"$1"; echo "$((n + 1)) with token $QUORLOCK_TOKEN"'

work() {
  while :; do
    # It fails when no majority answers in time, and when the lease is lost: then the command has been ended.
    quorlock run --lease 2s --wait 30s counter -- bash -c "$ADD" add "$file" || sleep 0.2
  done
}

# Background jobs of a script ignore Ctrl-C, and so do the commands that they start.
trap 'trap - TERM; kill -TERM 0' INT TERM

echo 0 >"$file"
work &
work &
wait
