#!/bin/sh
# A relx release with macula as its distribution, in embedded mode: two nodes of it, one pings the other.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"

copy_fixture "$root/test/release" release
use_checkout
rebar3 release

# node NAME PEER: a node of the release with a place of its own for the files the start script generates.
node() {
    mkdir -p "run/$1"
    start "run/$1.log" env RELX_REPLACE_OS_VARS=true RELX_OUT_FILE_PATH="$work/run/$1" \
        ERL_CRASH_DUMP_SECONDS=0 PINGER_NODE="$1" PINGER_COOKIE="$cookie" ${2:+PINGER_PEER="$2"} \
        _build/default/rel/pinger/bin/pinger foreground
}

node "$node_b"
pid_b=$pid
wait_for "run/$node_b.log" 'is up, code loading is embedded' 30 "$pid_b"
node "$node_a" "$node_b"
pid_a=$pid
wait_for "run/$node_a.log" 'pinger: ping pong' 30 "$pid_a"
wait_for "run/$node_a.log" 'pinger: call embedded' 30 "$pid_a"
stop "$pid_a" 20 "run/$node_a.log"
stop "$pid_b" 20 "run/$node_b.log"
echo "release: two nodes in embedded mode, ping pong, both stopped on SIGTERM"
