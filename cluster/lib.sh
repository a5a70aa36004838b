# shellcheck shell=bash
# Shared by the verbs of this folder; not run by itself. lib-node.sh has what is about one node, lib-lab.sh what is about
# links and clocks.
#
# State folder ($DIR):
#   size             number of nodes, 0 while cluster/down is at work; its presence marks the folder as ours
#   cluster          the word that all nodes of the cluster share
#   password         of all nodes, as other users of the machine reach their ports, too
#   node-I/          port, pid ("PID STARTTIME"), run_id, redis.conf, redis.log, data/
#   node-I/declared  the node is not new any more, also when its data are gone
#   clock.so         the library for wrong clocks; its presence marks a cluster of cluster/up --lab
#   node-I/          there also: link-port, link-pid (as pid), link (its state, one line), link.log, clock
#
# What is read from there is checked for its form before it is used.

unset CDPATH
ROOT=$(realpath -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/..")
DIR=$(realpath -m -- "${QUORLOCK_CLUSTER_DIR:-$ROOT/target/cluster}") DIR_VARIABLE=QUORLOCK_CLUSTER_DIR
ME=cluster/$(basename -- "$(realpath -- "$0")")

# A message that cannot be written does not stop a verb between two of its steps: nodes would be left running. Its SIGPIPE, when
# the reader of stderr has ended, is no interruption.
tell() { # FORMAT [ARGUMENT...]
  # shellcheck disable=SC2059
  (trap '' PIPE && printf "$@" >&2 2>/dev/null) || true
}
: >&2 || exec 2>/dev/null # It is closed. The next file that is opened would take its place.

# stdout has only what another program reads: the table of cluster/status, URLs, and the line of cluster/up for eval.
say() { tell '%s: %s\n' "$ME" "$*"; }
die() { # CODE MESSAGE...
  local code=$1
  shift
  say "$@"
  exit "$code"
}

print() { # FORMAT [ARGUMENT...]: to stdout
  # shellcheck disable=SC2059
  printf "$@" 2>/dev/null || die 74 "cannot write to stdout (is it closed, or the disk full?)"
}

# Exit codes, from sysexits.h: 64 wrong use, 69 something needed is not there, 74 the output cannot be written.
usage() { # [MESSAGE...]: what is wrong, then the verb's $USAGE
  if (($#)); then say "$@"; fi
  tell 'usage: %s\n' "$USAGE"
  exit 64
}

help_or_go() { # "$@": print the usage when it is asked for
  case ${1-} in -h | --help) print 'usage: %s\n' "$USAGE"; exit 0 ;; esac
}

no_args() { # "$@": for verbs that take none
  help_or_go "$@"
  if (($#)); then usage "unexpected argument '$1'"; fi
}

# ---- signals ----

# A signal ends a verb between two of its steps, and by the signal itself: a shell that has called it then ends, too. What is
# half done is undone, or is mended by the next cluster/up or cluster/down.
catch_signals() {
  local name
  # bash 5.2 may run a trap while it has read the "$(" of a command, and then wants a ")" to end what the trap says (a fault of
  # its parser). Otherwise the second line is never read, as the first one ends the process.
  for name in HUP INT QUIT PIPE TERM; do trap "interrupted $name"$'\n)' "$name"; done
}

undo() { :; } # what a verb does to that end, if anything

interrupted() { # SIGNAL
  trap '' HUP INT QUIT PIPE TERM
  if ((BASHPID == $$)); then (trap - EXIT && undo) || true; fi # else a child that has not become its program yet
  trap - EXIT "$1"
  kill -s "$1" "$BASHPID"
}

[[ -r /proc/self/stat ]] || die 69 "needs Linux: /proc is not there"

# ---- the server program ----

find_redis() { # sets SERVER and CLI
  local name
  for name in redis valkey; do
    if SERVER=$(type -P "$name-server") && CLI=$(type -P "$name-cli"); then
      # The programs of tests, chaos and bench start `redis-server`, unless the variable names another one.
      [[ $name == redis ]] || export QUORLOCK_TEST_SERVER=${QUORLOCK_TEST_SERVER:-$SERVER}
      return
    fi
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

# ---- what cluster/up --lab, cluster/chaos and cluster/bench need beside the server ----

build_lab() { # sets LAB
  type -P cargo >/dev/null ||
    die 69 "cargo is not on PATH. Install Rust from https://rustup.rs (or add ~/.cargo/bin to PATH), then run this again"
  say "building quorlock-lab (cargo build --release; the first time takes minutes)"
  local built
  built=$(cd -- "$ROOT" &&
    cargo build --quiet --release --locked -p quorlock-lab --bin quorlock-lab \
      --message-format json-render-diagnostics) ||
    die 1 "quorlock-lab was not built (see above)"
  LAB=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$built")
  [[ -x $LAB ]] || die 1 "cargo did not say where it put quorlock-lab"
}

# The program alone knows its arguments. Help, and arguments that it refuses, need no server.
run_lab() { # COMMAND [ARGUMENT...]
  local argument checked=()
  for argument; do
    case $argument in
      --) break ;;
      -h | --help) print 'usage: %s\n\n' "$USAGE"; build_lab; exec "$LAB" "$@" ;;
    esac
    checked+=("$argument")
  done
  build_lab
  "$LAB" "${checked[@]}" --help >/dev/null || exit
  install_redis
  exec "$LAB" "$@"
}

# ---- the cluster ----

is_cluster() { [[ -e $DIR/size ]]; }

# Another user could name processes of ours, or files of ours behind links, in the files there.
own_folder() { # [FILE DESCRIPTOR OF $DIR]
  local folder=${1-$DIR} mode
  [[ -O $folder ]] || die 69 "$DIR belongs to another user. Set $DIR_VARIABLE to a folder of your own"
  mode=$(stat -Lc %a -- "$folder")
  ((!(8#$mode & 022))) || die 69 "other users can write to $DIR. Take that right from them: chmod go-w $DIR"
}

need_cluster() { # sets SIZE
  local size=''
  is_cluster || die 69 "no cluster is up in $DIR. Start one: cluster/up"
  own_folder
  if [[ -f $DIR/size ]]; then { read -r size <"$DIR/size"; } 2>/dev/null || true; fi
  [[ $size != 0 ]] || die 69 "the cluster in $DIR is being taken down, or was in part. To finish that: cluster/down"
  [[ $size =~ ^([1-9]|[1-5][0-9]|6[0-3])$ ]] ||
    die 69 "$DIR/size is no number of nodes from 1 to 63. To begin anew: cluster/down, then cluster/up"
  SIZE=$size
}

read_password() { # sets PASSWORD
  PASSWORD=''
  if [[ -f $DIR/password ]]; then { read -r PASSWORD <"$DIR/password"; } 2>/dev/null || true; fi
  [[ $PASSWORD =~ ^[0-9a-f]{32}$ ]] ||
    die 69 "$DIR/password is not what cluster/up has written there. To begin anew: cluster/down, then cluster/up"
}

# A cluster that was begun or taken down only in part, or an empty folder: no number of nodes, and nothing that is not ours.
is_half_made() {
  local file size=''
  if [[ -f $DIR/size ]]; then { read -r size <"$DIR/size"; } 2>/dev/null || true; fi
  [[ ! $size || $size == 0 ]] || return 1
  for file in "$DIR"/* "$DIR"/.[!.]* "$DIR"/..?*; do
    [[ -e $file || -L $file ]] || continue
    case ${file##*/} in
      size | size.draft | cluster | cluster.draft | password | password.draft | clock.so | clock.so.draft) ;;
      node-[1-9] | node-[1-9][0-9]) is_node_folder "$file" || return 1 ;;
      *) return 1 ;;
    esac
  done
}

need_flock() {
  type -P flock >/dev/null || die 69 "flock is not on PATH. Install it (Debian, Ubuntu: apt-get install util-linux)"
}

# One verb at a time works on a cluster. The lock is on the folder itself, so
# that nothing is left behind. Fails when the folder is not there any more.
lock_folder() {
  local tries
  need_flock
  if ! { exec 9<"$DIR"; } 2>/dev/null; then
    [[ ! -d $DIR ]] || die 69 "cannot read the folder $DIR. Set $DIR_VARIABLE to one of your own"
    return 1
  fi
  own_folder /proc/self/fd/9
  [[ -w /proc/self/fd/9 && -x /proc/self/fd/9 ]] || die 69 "cannot write to $DIR. Give that right back: chmod u+rwx $DIR"
  for ((tries = 0; ; tries++)); do # A signal to this process alone ends it within a second.
    if flock -w 1 9; then break; fi
    ((tries < 60)) || die 69 "another command has been at work on $DIR for 60 s; let it end, then run this again"
  done
  [[ $DIR -ef /proc/self/fd/9 ]] || return 1
  umask 077 # What is written from here on is for this user alone.
  catch_signals
}

lock_cluster() {
  lock_folder || die 69 "the cluster in $DIR was taken down meanwhile. Start another: cluster/up"
}

replace() { # FILE LINE: as a whole, so that no reader finds half of it
  if [[ -e $1.draft || -L $1.draft ]]; then rm -f -- "$1.draft"; fi
  # Also where the caller's failures are looked at, and so -e has no effect.
  { printf '%s\n' "$2" >"$1.draft" && mv -fT -- "$1.draft" "$1"; } 2>/dev/null || die 69 "cannot write $1 (is the disk full?)"
}

is_lab() { [[ -e $DIR/clock.so ]]; }

lab_node_args() { # "$@" = I...: as node_args, on a cluster with links and clocks
  check_numbers "$@"
  need_cluster
  is_lab || die 69 "the nodes in $DIR have neither links nor clocks that can be broken." \
    "Start others: cluster/down, cluster/up --lab"
  node_args "$@"
}

check_numbers() { # "$@" = I...: are they, in any cluster?
  help_or_go "$@"
  (($#)) || usage "which node?"
  local i
  for i; do
    case $i in
      [1-9] | [1-9][0-9]) ;;
      --*) usage "unknown option '$i'" ;;
      *) usage "'$i' is no number of a node" ;;
    esac
  done
}

node_args() { # "$@" = I...: checks them all before anything is done; sets NODES, SIZE
  check_numbers "$@"
  need_cluster
  local i
  for i; do
    ((i <= SIZE)) || usage "no node '$i': this cluster has nodes 1 to $SIZE"
  done
  # shellcheck disable=SC2034 # the verbs use it
  NODES=("$@")
  lock_cluster
  for i; do
    [[ -d $DIR/node-$i ]] || die 69 "node $i has never started (an interrupted cluster/up?). Run: cluster/up"
  done
  read_password
}

print_nodes() { # call need_cluster before
  local i urls=
  read_password
  for ((i = 1; i <= SIZE; i++)); do
    look "$i"
    [[ $PORT ]] || die 69 "node $i has never started (an interrupted cluster/up?). Run: cluster/up"
    if is_lab; then
      read_port "$DIR/node-$i/link-port" || die 69 "node $i has no link. Run: cluster/up --lab"
    fi
    urls+=,redis://:$PASSWORD@127.0.0.1:$PORT
  done
  print '%s\n' "${urls#,}"
}

# shellcheck source=lib-node.sh
source "$ROOT/cluster/lib-node.sh"
# shellcheck source=lib-lab.sh
source "$ROOT/cluster/lib-lab.sh"
