# shellcheck shell=bash
# The other lock clients that lab/tests/coexistence tests beside quorlock; not run by itself.

# A registry that does not answer ends the installation after so long.
INSTALL_LIMIT=300s

PEERS='' # their folder
undo() { [[ ! $PEERS ]] || rm -rf -- "$PEERS"; }

install_peers() { # sets QUORLOCK_PEERS for the test
  local from=$ROOT/lab/tests/coexistence program
  for program in node npm; do
    type -P "$program" >/dev/null ||
      die 69 "$program is not on PATH. Install it (Debian, Ubuntu: apt-get install nodejs npm), then run this again"
  done
  python3 -c 'import ensurepip, venv' 2>/dev/null ||
    die 69 "there is no python3 that can make a virtual environment." \
      "Install it (Debian, Ubuntu: apt-get install python3-venv), then run this again"

  catch_signals
  trap undo EXIT
  PEERS=$(mktemp -d)
  say "installing npm redlock, redlock-py and redis-py into $PEERS"
  cp -- "$from/package.json" "$PEERS"
  timeout --foreground "$INSTALL_LIMIT" npm install --prefix "$PEERS" --loglevel error --no-audit --no-fund --ignore-scripts >&2 ||
    die 69 "npm could not install the packages of $from/package.json (see above)"
  {
    python3 -m venv "$PEERS/python" &&
      timeout --foreground "$INSTALL_LIMIT" "$PEERS/python/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$from/requirements.txt"
  } >&2 ||
    die 69 "pip could not install the packages of $from/requirements.txt (see above)"
  export QUORLOCK_PEERS=$PEERS
}
