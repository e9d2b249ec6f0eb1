#!/bin/sh
# The figures of a relay under load, as tables: _build/bench/load.md. `relay_load.sh FOLDER': where the release of a relay is.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=bench/relay_bench.sh
. bench/relay_bench.sh
run_release "$1"
# shellcheck disable=SC2086 # options with a value each
{
    table "1000 nodes attach in one burst, and rest" attach --nodes 1000 --idle 10 $at
    table "datagrams of 4 lines at once, as fast as they go" forward --pairs 4 --seconds 5 $at
    table "round trips of a link, 100 a second" latency --seconds 5 $at
    if command -v turnserver >/dev/null; then
        for megabytes in 10 50; do
            table "CPU of the relay and of coturn, at $megabytes MB/s" turn --rate ${megabytes}000000 --seconds 4 $at
        done
    else
        echo "bench: SKIPPED coturn: there is no turnserver here (apt-get install coturn)" >&2
        printf '\nNot measured: CPU beside coturn, which was not there.\n' >>"$work/page"
    fi
}
table "2000 nodes, each of an address of its own, after the relay was killed" restart --nodes 2000
table "2000 nodes behind one address, after the relay was killed" restart --nodes 2000 --one-address yes
table "a quiet pair, and a node that sends 5 times what it may" abuse flood --number 50000000 --bytes 10000000
table "a quiet pair, and 100 nodes that read nothing" abuse slow-reader --number 100
table "a quiet pair, and 10 nodes that attach and detach" abuse loop --number 10
table "a quiet pair, and 10 000 half-open handshakes" abuse half-open --number 10000
table "a quiet pair, and 500 connections that say nothing" abuse mute --number 500
page _build/bench/load.md
