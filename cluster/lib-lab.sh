# shellcheck shell=bash
# The link and the clock of a node, with cluster/up --lab. Part of lib.sh.

is_link() { # I: does it run?
  is_process "$1" link-pid && [[ $PSTATE != [Tt] ]]
}

# A proxy in front of node I, which lives as long as the cluster.
start_link() { # I LAB
  local i=$1 lab=$2 node=$DIR/node-$1 port pid tries
  if is_link "$i" && read_port "$node/link-port"; then return; fi
  stop_link "$i" # It was stopped, or cluster/up was interrupted before it had written down the port.
  no_links "$node/link.log"
  [[ -s $node/link ]] || replace "$node/link" pass
  port=$((20000 + RANDOM % 12001))
  # shellcheck disable=SC2153 # read_port sets PORT
  if read_port "$node/link-port"; then port=$PORT; fi
  for ((tries = 0; tries < 20; tries++, port = 20000 + RANDOM % 12001)); do
    look "$i"
    (
      leave_all "$i" link-pid
      exec setsid "$lab" proxy --listen "127.0.0.1:$port" --to "127.0.0.1:$PORT" --state "$node/link"
    ) </dev/null >>"$node/link.log" 2>&1 &
    pid=$!
    disown
    if listens "$i" "$port" "$pid"; then
      replace "$node/link-port" "$port"
      return
    fi
    kill -KILL "$pid" 2>/dev/null || true # Also one that has not written down its pid.
    stop_link "$i"
  done
  die 69 "the link of node $i did not start (log: $node/link.log). Run cluster/up --lab again"
}

listens() { # I PORT PID: waits until the link does, or is gone
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    if (: <>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then is_process "$1" link-pid && [[ $PID == "$3" ]] && return; fi
    sleep 0.05
    proc "$3" || return 1
  done
  return 1
}

stop_link() { # I
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    is_process "$1" link-pid || return 0
    kill -KILL "$PID" 2>/dev/null || true
    sleep 0.02
  done
  die 1 "the link of node $1 (pid $PID) is still there 4 s after SIGKILL; look at it with: ps -p $PID"
}

set_links() { # STATE, of the links of all NODES
  local i code=0
  for i in "${NODES[@]}"; do replace "$DIR/node-$i/link" "$1"; done
  sleep 0.2 # A link reads its state every 100 ms.
  for i in "${NODES[@]}"; do
    if is_link "$i"; then
      tell 'node %-2s  link: %s\n' "$i" "$1"
    else
      say "the link of node $i does not run, so nothing passes. Start it, in the state '$1': cluster/up"
      code=1
    fi
  done
  return "$code"
}

read_clock() { # I: sets OFFSET (µs), PPM, SINCE (µs since 1970)
  OFFSET=0 PPM=0 SINCE=0
  local offset='' ppm='' since=''
  if [[ -f $DIR/node-$1/clock ]]; then { read -r offset ppm since <"$DIR/node-$1/clock"; } 2>/dev/null || true; fi
  if [[ $offset =~ ^-?[0-9]{1,18}$ && $ppm =~ ^-?[0-9]{1,7}$ && $since =~ ^[0-9]{1,18}$ ]]; then
    OFFSET=$((10#${offset#-})) PPM=$((10#${ppm#-})) SINCE=$((10#$since))
    if [[ $offset == -* ]]; then OFFSET=-$OFFSET; fi
    if [[ $ppm == -* ]]; then PPM=-$PPM; fi
  fi
}

# The node's own TIME must show it, where the node answers.
set_clock() { # I OFFSET PPM SINCE
  local time tries now
  replace "$DIR/node-$1/clock" "$2 $3 $4"
  show_clock "$1"
  look "$1"
  if [[ $STATE == up ]]; then
    for ((tries = 0; ; tries++)); do
      sleep 0.02
      time=$(ask TIME) || true
      time=${time%%[!0-9]*}
      now=$((${EPOCHREALTIME/[.,]/} + $2 + (${EPOCHREALTIME/[.,]/} - $4) * $3 / 1000000))
      if [[ $time ]] && ((time - now / 1000000 >= -1 && time - now / 1000000 <= 1)); then break; fi
      ((tries < 20)) || die 1 "node $1 goes on by another time than was set: the library of wrong clocks is not in it." \
        "Start other nodes: cluster/down, cluster/up --lab"
    done
  fi
  tell 'node %-2s  clock: %s\n' "$1" "$CLOCK"
}

show_clock() { # I: sets CLOCK
  read_clock "$1"
  local now=${EPOCHREALTIME/[.,]/} ms
  ms=$(((OFFSET + (now - SINCE) * PPM / 1000000) / 1000))
  CLOCK=right
  if ((ms || PPM)); then printf -v CLOCK '%+d ms' "$ms"; fi
  if ((PPM)); then printf -v CLOCK '%s, rate %d.%06d' "$CLOCK" $(((1000000 + PPM) / 1000000)) $(((1000000 + PPM) % 1000000)); fi
}
