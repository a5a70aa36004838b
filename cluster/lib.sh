# shellcheck shell=bash
# Shared by the verbs of this folder; not run by itself.
#
# State folder ($DIR):
#   size             number of nodes; its presence marks the folder as ours
#   node-I/          port, pid ("PID STARTTIME"), run_id, redis.conf, redis.log, data/
#   clock.so         the library for wrong clocks; its presence marks a cluster of cluster/up --lab
#   node-I/          there also: link-port, link-pid (as pid), link (its state, one line), link.log, clock

ROOT=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
DIR=$(realpath -m -- "${QUORLOCK_CLUSTER_DIR:-$ROOT/target/cluster}")
ME=cluster/$(basename -- "$0")

say() { printf '%s: %s\n' "$ME" "$*" >&2; }
die() { # CODE MESSAGE...
  local code=$1
  shift
  say "$@"
  exit "$code"
}

# Exit codes, from sysexits.h: 64 wrong use, 69 something needed is not there.
usage() { # [MESSAGE...]: what is wrong, then the verb's $USAGE
  if (($#)); then say "$@"; fi
  printf 'usage: %s\n' "$USAGE" >&2
  exit 64
}

help_or_go() { # "$@": print the usage when it is asked for
  case ${1-} in -h | --help) printf 'usage: %s\n' "$USAGE"; exit 0 ;; esac
}

no_args() { # "$@": for verbs that take none
  help_or_go "$@"
  if (($#)); then usage "unexpected argument '$1'"; fi
}

[[ -r /proc/self/stat ]] || die 69 "needs Linux: /proc is not there"

# ---- the server program ----

find_redis() { # sets SERVER and CLI
  local name
  for name in redis valkey; do
    SERVER=$(type -P "$name-server") && CLI=$(type -P "$name-cli") && return
  done
  return 1
}

need_redis() {
  find_redis || die 69 "no redis-server with redis-cli (or valkey-server with valkey-cli) on PATH." \
    "Install it (Debian, Ubuntu: apt-get install redis-server), then run this again."
}

install_redis() { # only when it is missing, only with apt
  if find_redis; then return; fi
  local root=()
  type -P apt-get >/dev/null || need_redis
  if ((EUID != 0)); then
    root=(sudo -n)
    "${root[@]}" true 2>/dev/null ||
      die 69 "redis-server is missing and this user cannot use sudo without a password." \
        "Run: sudo apt-get install redis-server   then run this again."
  fi
  say "redis-server is missing: installing the package redis-server with apt-get"
  apt_install "${root[@]}" >&2 ||
    die 69 "apt-get could not install redis-server (see above)." \
      "Install it by hand (apt-get install redis-server), then run this again."
  need_redis
}

# The package brings a service on port 6379. Nothing here uses it, so it is
# neither started (policy-rc.d) nor enabled at boot.
apt_install() ( # [sudo -n]
  as_root=(env DEBIAN_FRONTEND=noninteractive)
  if (($#)); then as_root=("$@" "${as_root[@]}"); fi
  policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null &&
      "${as_root[@]}" chmod 755 "$policy" || exit 1
  fi
  "${as_root[@]}" apt-get update || say "apt-get update failed; trying with the lists at hand"
  "${as_root[@]}" apt-get install -y --no-install-recommends redis-server || exit 1
  if type -P systemctl >/dev/null; then
    "${as_root[@]}" systemctl disable redis-server || true
  fi
)

# ---- what cluster/up --lab and cluster/chaos need beside the server ----

build_lab() { # sets QUORLOCK
  type -P cargo >/dev/null ||
    die 69 "cargo is not on PATH. Install Rust from https://rustup.rs (or add ~/.cargo/bin to PATH), then run this again"
  say "building quorlock with its feature lab (the first time takes minutes)"
  local built
  built=$(cd -- "$ROOT" &&
    cargo build --quiet --release --locked --features lab --bin quorlock --message-format json-render-diagnostics) ||
    die 1 "quorlock was not built (see above)"
  QUORLOCK=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$built")
  [[ -x $QUORLOCK ]] || die 1 "cargo did not say where it put quorlock"
}

# ---- the cluster ----

is_cluster() { [[ -s $DIR/size ]]; }

need_cluster() { # sets SIZE
  { read -r SIZE <"$DIR/size"; } 2>/dev/null || die 69 "no cluster is up in $DIR. Start one: cluster/up"
}

# One verb at a time works on a cluster. The lock is on the folder itself, so
# that nothing is left behind.
lock_cluster() {
  { exec 9<"$DIR"; } 2>/dev/null || die 69 "cannot open $DIR; run this again"
  flock -w 60 9 || die 69 "another command has been at work on $DIR for 60 s; let it end, then run this again"
  [[ $DIR -ef /proc/self/fd/9 ]] || die 69 "the cluster was taken down meanwhile; run this again"
}

is_lab() { [[ -e $DIR/clock.so ]]; }

lab_node_args() { # "$@" = I...: as node_args, on a cluster with links and clocks
  help_or_go "$@"
  need_cluster
  is_lab || die 69 "the nodes in $DIR have neither links nor clocks that can be broken." \
    "Start others: cluster/down, cluster/up --lab"
  node_args "$@"
}

node_args() { # "$@" = I...: checks them all before anything is done; sets NODES, SIZE
  help_or_go "$@"
  (($#)) || usage "which node?"
  need_cluster
  local i
  for i; do
    if ! [[ $i =~ ^[1-9][0-9]?$ ]] || ((i > SIZE)); then
      usage "no node '$i': this cluster has nodes 1 to $SIZE"
    fi
  done
  # shellcheck disable=SC2034 # the verbs use it
  NODES=("$@")
  lock_cluster
}

# ---- one node ----

proc() { # PID: sets PSTATE and PSTART (fields 3 and 22 of its stat); fails when it is gone
  local stat fields
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }" # the name before may hold spaces
  PSTATE=${fields[0]-} PSTART=${fields[19]-}
  [[ $PSTATE != [ZXx] ]]
}

is_process() { # FILE: is the process there that it names ("PID STARTTIME")? Sets PID, PSTATE, PSTART
  local start=''
  PID=''
  { read -r PID start <"$1"; } 2>/dev/null || true
  [[ $PID ]] && proc "$PID" && [[ $PSTART == "$start" ]]
}

# Sets PORT, PID and STATE (up, paused, down). Asks /proc, never the node: a
# paused one would not answer. A pid that now belongs to another process (its
# start time differs) is a node that is down.
look() { # I
  local node=$DIR/node-$1
  PORT='' PID='' STATE=down
  { read -r PORT <"$node/port"; } 2>/dev/null || true
  if is_process "$node/pid"; then
    STATE=up
    if [[ $PSTATE == [Tt] ]]; then STATE=paused; fi
  fi
}

signal() { # NAME I STATE...: signal node I, wait until it is in one of the states
  local name=$1 i=$2 tries
  shift 2
  look "$i"
  [[ $STATE == down ]] || kill -s "$name" "$PID" || true # it may just have ended
  for ((tries = 0; tries < 200; tries++)); do
    look "$i"
    if [[ " $* " == *" $STATE "* ]]; then return; fi
    sleep 0.05
  done
  die 1 "node $i (pid $PID) is still $STATE 10 s after SIG$name; look at it with: ps -p $PID"
}

line() { # I WHAT: one line about a node; call look before
  printf 'node %-2s  127.0.0.1:%s  pid %-7s  %s\n' "$1" "${PORT:-?}" "$PID" "$2"
}

kill_node() { # I
  look "$1"
  if [[ $STATE == down ]]; then
    line "$1" "is down already"
  else
    signal KILL "$1" down
    line "$1" killed
  fi
}

# In a child that is about to become a process of the cluster: writes down who it is, and keeps no pipe or lock of the
# caller open.
leave_all() { # FILE
  local fd
  proc "$BASHPID"
  printf '%s %s\n' "$BASHPID" "$PSTART" >"$1"
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    if ((fd > 2)); then exec {fd}>&-; fi
  done
}

# Starts node I on PORT and waits until the process that answers there is the
# one started. 1: it ended (port taken?). 2: it is silent, and was killed.
launch() { # I PORT
  local i=$1 port=$2 node=$DIR/node-$1 pid info end
  mkdir -p "$node/data"
  rm -f -- "$node/pid" "$node/run_id"
  printf '%s\n' "$port" >"$node/port"
  # Every write is on disk before it is answered: a node that forgets a vote in
  # a crash could give it a second time, and two holders would have a majority.
  cat >"$node/redis.conf" <<CONF
bind 127.0.0.1
port $port
daemonize no
dir ./data
save ""
appendonly yes
appendfsync always
CONF
  (
    cd -- "$node" || exit
    leave_all pid
    if is_lab; then export LD_PRELOAD=$DIR/clock.so QUORLOCK_CLOCK=$node/clock; fi
    exec setsid "$SERVER" ./redis.conf
  ) </dev/null >>"$node/redis.log" 2>&1 &
  pid=$!
  disown
  for ((end = SECONDS + 15; SECONDS < end; )); do
    proc "$pid" || return 1
    info=$(timeout 2 "$CLI" -h 127.0.0.1 -p "$port" INFO 2>/dev/null) || true
    info=$'\n'${info//$'\r'/}$'\n'
    if [[ $info == *$'\n'process_id:$pid$'\n'* && $info == *$'\n'loading:0$'\n'* ]]; then
      info=${info#*$'\n'run_id:}
      printf '%s\n' "${info%%$'\n'*}" >"$node/run_id"
      return 0
    fi
    sleep 0.05
  done
  signal KILL "$i" down
  return 2
}

start_node() { # I: on the port it had, or on a free one when it never ran
  local i=$1 log=$DIR/node-$1/redis.log code=1 tries
  look "$i"
  if [[ $STATE == up ]]; then
    line "$i" "is up already"
    return
  elif [[ $STATE == paused ]]; then
    line "$i" "is paused; to let it go on: cluster/resume $i"
    return
  elif [[ $PORT ]]; then
    launch "$i" "$PORT" && code=0 || code=$?
    ((code == 0)) || die 69 "node $i did not start again on port $PORT: $(why "$log" "$code")" \
      "If another program has the port, stop that program, or begin anew: cluster/down, cluster/up"
  else
    for ((tries = 0; tries < 20 && code == 1; tries++)); do
      # Below the range the kernel gives to outgoing connections (32768 up).
      launch "$i" $((20000 + RANDOM % 12001)) && code=0 || code=$?
    done
    if ((code)); then
      rm -f -- "$DIR/node-$i/port"
      die 69 "node $i did not start: $(why "$log" "$code")" \
        "When that is mended run cluster/up again, or cluster/down to give up"
    fi
    declare_new "$i"
  fi
  look "$i"
  line "$i" started
}

# This very process has no earlier votes to forget, so clients need not wait until
# every lease that it may have voted for is over. A restart has another run id.
declare_new() { # I: a node that has just started for the first time
  timeout 2 "$CLI" -h 127.0.0.1 -p "$(<"$DIR/node-$1/port")" \
    SET quorlock:new "$(<"$DIR/node-$1/run_id")" EX 3600 >/dev/null
}

# ---- its link and its clock, with cluster/up --lab ----

# A proxy in front of node I, which lives as long as the cluster.
start_link() { # I QUORLOCK
  local i=$1 quorlock=$2 node=$DIR/node-$1 port tries
  look "$i"
  if is_process "$node/link-pid"; then return; fi
  [[ -s $node/link ]] || replace "$node/link" pass
  { read -r port <"$node/link-port"; } 2>/dev/null || port=$((20000 + RANDOM % 12001))
  for ((tries = 0; tries < 20; tries++, port = 20000 + RANDOM % 12001)); do
    look "$i"
    (
      leave_all "$node/link-pid"
      exec setsid "$quorlock" proxy --listen "127.0.0.1:$port" --to "127.0.0.1:$PORT" --state "$node/link"
    ) </dev/null >>"$node/link.log" 2>&1 &
    disown
    if listens "$node/link-pid" "$port"; then
      printf '%s\n' "$port" >"$node/link-port"
      return
    fi
  done
  die 69 "the link of node $i did not start (log: $node/link.log). Run cluster/up --lab again"
}

listens() { # PIDFILE PORT: waits until it does, or is gone
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    if (: <>"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then is_process "$1" && return; fi
    sleep 0.05
    is_process "$1" || return 1
  done
  return 1
}

stop_link() { # I
  if is_process "$DIR/node-$1/link-pid"; then kill -KILL "$PID" 2>/dev/null || true; fi
}

replace() { # FILE LINE: as a whole, so nobody reads half of it
  printf '%s\n' "$2" >"$1.draft"
  mv -- "$1.draft" "$1"
}

set_link() { # I STATE
  replace "$DIR/node-$1/link" "$2"
  printf 'node %-2s  link: %s\n' "$1" "$2"
}

read_clock() { # I: sets OFFSET (µs), PPM, SINCE (µs since 1970)
  OFFSET=0 PPM=0 SINCE=0
  { read -r OFFSET PPM SINCE <"$DIR/node-$1/clock"; } 2>/dev/null || true
}

set_clock() { # I OFFSET PPM SINCE
  replace "$DIR/node-$1/clock" "$2 $3 $4"
  show_clock "$1"
  printf 'node %-2s  clock: %s\n' "$1" "$CLOCK"
}

show_clock() { # I: sets CLOCK
  read_clock "$1"
  local now=${EPOCHREALTIME/[.,]/} ms
  ms=$(((OFFSET + (now - SINCE) * PPM / 1000000) / 1000))
  CLOCK=right
  if ((ms || PPM)); then printf -v CLOCK '%+d ms' "$ms"; fi
  if ((PPM)); then printf -v CLOCK '%s, rate %d.%06d' "$CLOCK" $(((1000000 + PPM) / 1000000)) $(((1000000 + PPM) % 1000000)); fi
}

why() { # LOG CODE
  if (($2 == 2)); then
    printf 'it ran but did not answer for 15 s'
  else
    printf 'it ended at once, last words: "%s"' "$(tail -n 1 -- "$1")"
  fi
  printf ' (log: %s).' "$1"
}

print_nodes() { # call need_cluster before
  local i urls=
  for ((i = 1; i <= SIZE; i++)); do
    look "$i"
    [[ $PORT ]] || die 69 "node $i has never started (an interrupted cluster/up?). Run: cluster/up"
    if is_lab; then
      { read -r PORT <"$DIR/node-$i/link-port"; } 2>/dev/null || die 69 "node $i has no link. Run: cluster/up --lab"
    fi
    urls+=,redis://127.0.0.1:$PORT
  done
  printf '%s\n' "${urls#,}"
}
