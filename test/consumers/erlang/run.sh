#!/bin/sh
# A rebar3 project with macula as a dependency: two nodes, one pings the other.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"

copy_fixture "$root/test/consumers/erlang" consumer-erlang
use_checkout
rebar3 compile

# node LOG NAME COMMAND...: the dependency may be built to lib or to checkouts, by rebar3's version.
node() {
    log=$1
    name=$2
    shift 2
    start "$log" env ERL_CRASH_DUMP_SECONDS=0 erl -noinput -pa _build/default/*/*/ebin \
        -proto_dist macula -no_epmd -start_epmd false -sname "$name" -setcookie "$cookie" "$@"
}

node b.log "$node_b" -run consumer serve
wait_for b.log 'is up' 30 "$pid"
node a.log "$node_a" -s consumer ping "$node_b"
wait "$pid" || fail "the node that pings failed" a.log
grep -F 'consumer: pong from' a.log || fail "no pong" a.log
for tool in _build/default/*/macula/priv/macula_call; do
    MACULA_COOKIE=$cookie "$tool" ping "$node_b" >out || fail "no pong for $tool" out
done
