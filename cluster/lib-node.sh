# shellcheck shell=bash
# One node: a process, its port, its record. Part of lib.sh.

proc() { # PID: sets PSTATE, PARENT and PSTART (fields 3, 4 and 22 of its stat); fails when it is gone
  local stat fields
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }" # the name before may hold spaces
  PSTATE=${fields[0]-} PARENT=${fields[1]-} PSTART=${fields[19]-}
  [[ $PSTATE != [ZXx] ]]
}

is_child() { # PID
  proc "$1" && ((PARENT == $$))
}

# Is the process there that a file of the node names ("PID STARTTIME"), and is it the node's? Sets PID, PSTATE, PSTART. A
# pid that now belongs to another process has another start time, and the processes of a node work in its folder.
is_process() { # I FILE
  local node=$DIR/node-$1 pid='' start=''
  PID=''
  if [[ -f $node/$2 ]]; then { read -r pid start <"$node/$2"; } 2>/dev/null || true; fi
  [[ $pid =~ ^[1-9][0-9]{0,9}$ && $start =~ ^[0-9]+$ ]] || return 1
  PID=$pid
  proc "$PID" && [[ $PSTART == "$start" && -O /proc/$PID ]] || return 1
  [[ /proc/$PID/cwd -ef $node/data || /proc/$PID/cwd -ef $node ]] ||
    [[ $(readlink -- "/proc/$PID/cwd") == "$node"/* ]] # which was removed by hand
}

read_port() { # FILE: sets PORT
  PORT=''
  if [[ -f $1 ]]; then { read -r PORT <"$1"; } 2>/dev/null || true; fi
  if [[ $PORT =~ ^[1-9][0-9]{3,4}$ ]] && ((PORT < 65536)); then return; fi
  PORT=''
  return 1
}

# Sets PORT, PID and STATE (up, paused, down). Asks /proc, never the node: a
# paused one would not answer.
look() { # I
  local node=$DIR/node-$1
  STATE=down
  read_port "$node/port" || true
  if is_process "$1" pid; then
    STATE=up
    if [[ $PSTATE == [Tt] ]]; then STATE=paused; fi
  fi
}

is_answering() { # I: sets PORT, PID, STATE; says why when it is not
  look "$1"
  case $STATE in
    up) return ;;
    paused) say "node $1 is paused and does not answer. Let it go on: cluster/resume $1" ;;
    down) say "node $1 is down. Start it: cluster/start $1" ;;
  esac
  return 1
}

is_master() { # I: as is_answering
  is_answering "$1" || return 1
  if [[ $(info role replication) == master ]]; then return; fi
  say "node $1 is a replica, which takes no commands but its master's. Make it a master: cluster/promote $1"
  return 1
}

# Sends the arguments as a command, or the lines of stdin as commands, to the node that look or is_answering has found.
ask() { # [ARGUMENT...]
  REDISCLI_AUTH=$PASSWORD timeout --foreground 5 "$CLI" -h 127.0.0.1 -p "$PORT" "$@" 2>/dev/null
}

info() { # FIELD [SECTION]: prints what INFO says of it
  ask INFO "${2-default}" | sed -n "s/^$1:\\([^\r]*\\).*/\\1/p"
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

line() { # I WHAT: one line about a node, for people; call look before
  tell 'node %-2s  127.0.0.1:%s  pid %-7s  %s\n' "$1" "${PORT:-?}" "$PID" "$2"
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

# In a child that is about to become a process of node I: goes to its folder, writes down who it is, and keeps no pipe of
# the caller open. The cluster's lock is kept until that is written, even if the caller ends.
leave_all() { # I FILE
  local fd
  cd -- "$DIR/node-$1" && proc "$BASHPID" && replace "$2" "$BASHPID $PSTART" || exit
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    if ((fd > 2)); then exec {fd}>&-; fi
  done
}

# Is it the process PID that answers on PORT, with its data read? Writes down its run id.
greet() { # I: sets RUN_ID
  local info
  info=$(ask INFO) || true
  info=$'\n'${info//$'\r'/}$'\n'
  [[ $info == *$'\n'process_id:$PID$'\n'* && $info == *$'\n'loading:0$'\n'* ]] || return 1
  info=${info#*$'\n'run_id:}
  RUN_ID=${info%%$'\n'*}
  replace "$DIR/node-$1/run_id" "$RUN_ID"
}

# Starts node I on the port and waits until the process that answers there is the
# one started. 1: it ended (port taken?). 2: it is silent, and was killed. 3: a file
# cannot be written.
launch() { # I PORT
  local i=$1 port=$2 node=$DIR/node-$1 pid end
  mkdir -p -- "$node/data" || return 3
  no_links "$node" "$node/data" "$node/redis.log"
  rm -f -- "$node/pid" "$node/run_id" "$node/redis.conf"
  replace "$node/port" "$port"
  # Every write is on disk before it is answered: a node that forgets a vote in
  # a crash could give it a second time, and two holders would have a majority.
  cat >"$node/redis.conf" <<CONF || return 3
bind 127.0.0.1
port $port
requirepass $PASSWORD
masterauth $PASSWORD
daemonize no
dir ./data
save ""
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
repl-diskless-sync-delay 0
CONF
  (
    leave_all "$i" pid
    # The loader takes a space or a colon for the end of a path, and $DIR may have one.
    if is_lab; then export LD_PRELOAD=../clock.so QUORLOCK_CLOCK=$node/clock; fi
    exec setsid "$SERVER" ./redis.conf
  ) </dev/null >>"$node/redis.log" 2>&1 &
  pid=$!
  disown
  for ((end = SECONDS + 15; SECONDS < end; )); do
    proc "$pid" || return 1
    PID=$pid PORT=$port
    if greet "$i"; then return; fi
    sleep 0.05
  done
  signal KILL "$i" down
  return 2
}

# Of what is written in place no more than the name is ours to choose: behind a link would be a file of another user.
no_links() { # FILE...
  local file
  for file; do
    [[ ! -L $file ]] || die 69 "$file is a symbolic link, which cluster/up has not made. Remove it: rm '$file'"
  done
}

start_node() { # I: on the port it had, or on a free one when it has not been in use yet
  local i=$1 node=$DIR/node-$1 code=1 tries
  look "$i"
  if [[ $STATE == up ]]; then
    declare_node "$i"
    line "$i" "is up already"
    return
  elif [[ $STATE == paused ]]; then
    line "$i" "is paused; to let it go on: cluster/resume $i"
    return
  elif [[ $PORT && -e $node/declared ]]; then
    launch "$i" "$PORT" && code=0 || code=$?
    ((code == 0)) || die 69 "node $i did not start again on port $PORT: $(why "$node/redis.log" "$code")" \
      "If another program has the port, stop that program, or begin anew: cluster/down, cluster/up"
  else
    for ((tries = 0; tries < 20 && code == 1; tries++)); do
      # Below the range the kernel gives to outgoing connections (32768 up).
      launch "$i" "${PORT:-$((20000 + RANDOM % 12001))}" && code=0 || code=$?
      if ((code)); then PORT=''; fi
    done
    if ((code)); then
      rm -f -- "$node/port"
      die 69 "node $i did not start: $(why "$node/redis.log" "$code")" \
        "When that is mended run cluster/up again. cluster/down removes the cluster"
    fi
  fi
  declare_node "$i"
  look "$i"
  line "$i" started
}

random_word() { # prints 16 hexadecimal digits
  od -An -N8 -tx1 /dev/urandom | tr -d ' \n'
}

cluster_word() { # prints it; makes it when there is none
  local word=''
  if [[ -f $DIR/cluster ]]; then { read -r word <"$DIR/cluster"; } 2>/dev/null || true; fi
  if ! [[ $word =~ ^[0-9a-f]{16}$ ]]; then
    word=$(random_word)
    replace "$DIR/cluster" "$word"
  fi
  printf '%s\n' "$word"
}

# A node that starts for the first time has no earlier votes to forget, so clients need not wait until every lease that it
# may have voted for is over. That is what its record says: a word of its own, the longest lease of 10 s, no quarantine,
# ballots kept by a window of 300 s, the cluster's word, that it keeps every write, and for which process all this is so.
# NX: what a client has written in the meantime stays. A node that is not empty, or was declared before, is not new.
declare_node() { # I; call look before
  local i=$1 node=$DIR/node-$1 tries keys record list=quorlock:list:quorlock:lock:
  if [[ -e $node/declared && -s $node/run_id ]]; then return; fi
  for ((tries = 0; tries < 100; tries++)); do
    if greet "$i"; then break; fi
    sleep 0.05
  done
  ((tries < 100)) || die 69 "node $i (pid $PID) does not answer on port $PORT (log: $node/redis.log)." \
    "To start it anew: cluster/kill $i, cluster/start $i"
  if [[ -e $node/declared ]]; then return; fi
  keys=$(ask DBSIZE) || true
  [[ $keys =~ ^[0-9]+$ ]] ||
    die 69 "node $i does not say how many keys it has (log: $node/redis.log). Run cluster/up again"
  if [[ $keys == 0 ]]; then
    record="$(random_word) 10000 0 0 300000 $(cluster_word) 1 ${RUN_ID::16}"
    printf 'MULTI\nSET quorlock:node "%s" NX\nSET %s %s NX\nEXEC\n' "$record" "$list" "$SIZE" | ask >/dev/null || true
    [[ $(ask EXISTS quorlock:node) == 1 ]] ||
      die 69 "node $i has not taken its record (log: $node/redis.log). Run cluster/up again"
  fi
  replace "$node/declared" yes
}

# What has forgotten is not new, also when it had not been declared yet.
not_new() { # I
  replace "$DIR/node-$1/declared" yes
}

start_empty() { # I: another process, which knows nothing
  not_new "$1"
  kill_node "$1"
  rm -rf -- "$DIR/node-$1/data"
  start_node "$1"
}

why() { # LOG CODE
  if (($2 == 3)); then
    printf 'its files cannot be written (a full disk?)'
  elif (($2 == 2)); then
    printf 'it ran but did not answer for 15 s'
  else
    printf 'it ended at once, last words: "%s"' "$(tail -n 1 -- "$1")"
  fi
  printf ' (log: %s).' "$1"
}

# ---- the end ----

NODE_FILES=(pid run_id redis.conf redis.log declared link link-pid link-port link.log clock port)

is_empty() { # FOLDER
  [[ ! -L $1 && ! $(ls -A -- "$1" 2>&1) ]]
}

is_node_folder() { # FOLDER: may it be removed, all of it?
  local file
  [[ -d $1 && ! -L $1 ]] || return 1
  for file in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    [[ -e $file || -L $file ]] || continue
    file=${file##*/}
    if [[ $file == data ]]; then
      [[ -e $1/port ]] || is_empty "$1/data" || return 1
    elif [[ " ${NODE_FILES[*]} " != *" ${file%.draft} "* ]]; then
      return 1
    fi
  done
}

# The caller may have been interrupted before it, or the child, has written down the child's pid.
last_child() { # sets LAST: the child that was started last; '' if it has ended
  set +u
  LAST=$!
  set -u
  if [[ $LAST ]] && ! is_child "$LAST"; then LAST=''; fi
}

kill_last() { # [PID...]: kills the child that was started last, unless it is one of these
  local others=" $* "
  last_child
  if [[ $LAST && $others != *" $LAST "* ]]; then kill -KILL "$LAST" || true; fi
}

# Stops all processes and removes all files of the cluster, but not its folder. When it is interrupted the next cluster/up or
# cluster/down does the rest.
take_down() {
  local node file i
  (replace "$DIR/size" 0) 2>/dev/null || rm -f -- "$DIR/size" # The disk may be full.
  # Not as many as `size` has said: that may have been damaged.
  for node in "$DIR"/node-[1-9] "$DIR"/node-[1-9][0-9]; do
    [[ -d $node && ! -L $node ]] || continue
    i=${node##*/node-}
    kill_node "$i"
    stop_link "$i"
    rm -rf -- "$node/data"
    for file in "${NODE_FILES[@]}"; do rm -f -- "$node/$file" "$node/$file.draft"; done
    rmdir -- "$node" 2>/dev/null || say "$node is kept: it holds files that are not the cluster's"
  done
  rm -f -- "$DIR"/{cluster,password,clock.so,size}{.draft,}
}
