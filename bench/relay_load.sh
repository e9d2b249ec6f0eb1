#!/bin/sh
# The figures of a relay under load, as tables: _build/bench/load.md. `relay_load.sh FOLDER': where the release of a relay is.
set -eu
cd "$(dirname "$0")/.."
release=$1
load=target/release/macula_load
page=_build/bench/load.md
work=$(mktemp -d)
relay=
end() {
    [ -z "$relay" ] || kill -TERM "$relay" 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT
trap 'exit 1' INT TERM HUP

# What no other run on this machine is likely to have.
port=$((20000 + $$ % 20000))
MACULA_HOME=$work/home MACULA_RELAY_PORT=$port MACULA_RELAY_HEALTH=$((port + 20000)) "$release/bin/relay" run >"$work/log" 2>&1 &
relay=$!
until MACULA_RELAY_HEALTH=$((port + 20000)) "$release/bin/relay" health >/dev/null 2>&1; do
    kill -0 "$relay" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.2
done

# table TITLE SCENARIO...: its figures, without those that only a reader of counters wants.
table() {
    echo "bench: $1" >&2
    printf '\n| %s | |\n|---|---:|\n' "$1" >>"$work/page"
    shift
    "$load" "$@" >"$work/out"
    sed -e '/^{/d' -e '/^relay: \|: relay: /d' -e 's/^\(.*[^ ]\)  \+\(.*\)$/| \1 | \2 |/' "$work/out" >>"$work/page"
}

: >"$work/page"
at="--relay 127.0.0.1:$port --pid $relay"
# shellcheck disable=SC2086 # two options with a value each
{
    table "1000 nodes attach in one burst, and rest" attach --nodes 1000 --idle 10 $at
    table "datagrams of 4 lines at once, as fast as they go" forward --pairs 4 --seconds 5 $at
    table "round trips of a link, 100 a second" latency --seconds 5 $at
}
table "2000 nodes, each of an address of its own, after the relay was killed" restart --nodes 2000
table "2000 nodes behind one address, after the relay was killed" restart --nodes 2000 --one-address yes
table "a quiet pair, and a node that sends 5 times what it may" abuse flood --number 50000000 --bytes 10000000
table "a quiet pair, and 100 nodes that read nothing" abuse slow-reader --number 100
table "a quiet pair, and 10 nodes that attach and detach" abuse loop --number 10
table "a quiet pair, and 10 000 half-open handshakes" abuse half-open --number 10000
table "a quiet pair, and 500 connections that say nothing" abuse mute --number 500
{
    printf 'Measured %s on %s processors; load average at the end %s.\n' "$(date -u +%F)" "$(nproc)" \
        "$(cut -d' ' -f1 /proc/loadavg)"
    cat "$work/page"
} >"$page"
echo "bench: the tables are in $page; ./dev bench docs puts them into docs/performance.md"
