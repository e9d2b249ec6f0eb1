# Sourced by the run.sh of each fixture, a small project that uses macula as a user would.
# It is built in a copy below _build, so that nothing of it is ever found by macula's own build.
# shellcheck shell=sh disable=SC2034,SC2154 # used and set by those who source it

# Names that no other run on this machine has.
node_a=a$$@localhost
node_b=b$$@localhost
cookie=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
started=

# copy_fixture DIR NAME: leaves us in a fresh copy of it, and sets $work.
copy_fixture() {
    work=$root/_build/fixtures/$2
    rm -rf "$work"
    mkdir -p "$work"
    cp -R "$1/." "$work/"
    cd "$work" || exit 1
}

# Found by rebar3 before any registry is asked.
use_checkout() {
    mkdir -p _checkouts
    ln -s "$root" _checkouts/macula
}

# own_home: from here on nothing of this user's is seen, nor changed.
own_home() {
    # Where cargo and rustup are was looked up by the home that was.
    export CARGO_HOME="${CARGO_HOME:-${HOME:-/root}/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-${HOME:-/root}/.rustup}"
    PATH=$PATH:$CARGO_HOME/bin
    export HOME="$work/home" XDG_RUNTIME_DIR="$work/run" MACULA_HOME="$work/home/macula" MIX_HOME="$work/mix-home"
    export ERL_CRASH_DUMP_SECONDS=0
    mkdir -p "$HOME" "$XDG_RUNTIME_DIR" "$MACULA_HOME"
    chmod 700 "$XDG_RUNTIME_DIR"
}

# block KIND NAME: the code in $guide after the line <!-- KIND: NAME -->
block() {
    awk -v mark="<!-- $1: $2 -->" '
        $0 == mark { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }' "$guide"
}

# files PREFIX: every file of $guide below PREFIX, into the folder we are in.
files() {
    sed -n "s/^<!-- file: $1\\/\\(.*\\) -->$/\\1/p" "$guide" | while read -r name; do
        mkdir -p "$(dirname "$name")"
        block file "$1/$name" >"$name"
    done
}

# start LOG COMMAND...: runs it in the background until the fixture ends, and sets $pid.
start() {
    out=$1
    shift
    # There at once for who looks into it.
    : >"$out"
    "$@" >"$out" 2>&1 </dev/null &
    pid=$!
    started="$started $pid"
}

# wait_for LOG TEXT SECONDS PID: until the text is in the log.
wait_for() {
    left=$(($3 * 10))
    until grep -qF -- "$2" "$1"; do
        kill -0 "$4" 2>/dev/null || fail "ended without saying '$2'" "$1"
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "did not say '$2' within $3 s" "$1"
        sleep 0.1
    done
}

# stop PID SECONDS LOG: as an init system does, with SIGTERM; it must end by itself.
stop() {
    kill -TERM "$1"
    left=$(($2 * 10))
    while kill -0 "$1" 2>/dev/null; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "still runs $2 s after SIGTERM" "$3"
        sleep 0.1
    done
}

fail() {
    echo "FAILED: $1; $work/$2 says:" >&2
    tail -n 40 "$2" >&2
    exit 1
}

stop_all() {
    for leftover in $started; do
        kill -9 "$leftover" 2>/dev/null || true
    done
}
trap stop_all EXIT
trap 'exit 1' INT TERM HUP
