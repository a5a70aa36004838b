# shellcheck shell=bash
# Shared by the verbs of this folder; not run by itself.
#
# State folder ($DIR):
#   size             number of nodes; its presence marks the folder as ours
#   node-I/          port, pid ("PID STARTTIME"), run_id, redis.conf, redis.log, data/

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

# Sets PORT, PID and STATE (up, paused, down). Asks /proc, never the node: a
# paused one would not answer. A pid that now belongs to another process (its
# start time differs) is a node that is down.
look() { # I
  local node=$DIR/node-$1 start=
  PORT='' PID='' STATE=down
  { read -r PORT <"$node/port"; read -r PID start <"$node/pid"; } 2>/dev/null || true
  if [[ $PID ]] && proc "$PID" && [[ $PSTART == "$start" ]]; then
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

# Starts node I on PORT and waits until the process that answers there is the
# one started. 1: it ended (port taken?). 2: it is silent, and was killed.
launch() { # I PORT
  local i=$1 port=$2 node=$DIR/node-$1 pid fd info end
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
    proc "$BASHPID"
    printf '%s %s\n' "$BASHPID" "$PSTART" >pid
    for fd in /proc/self/fd/*; do # keep no pipe or lock of the caller open
      fd=${fd##*/}
      if ((fd > 2)); then exec {fd}>&-; fi
    done
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
    urls+=,redis://127.0.0.1:$PORT
  done
  printf '%s\n' "${urls#,}"
}
