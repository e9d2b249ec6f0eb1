#!/bin/sh
# A Mix project with macula as a dependency, built by Mix and by rebar3: two nodes, one pings the other.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"

# MIX_HOME: as on a machine where nobody ever installed Hex, which must not be asked for.
export MACULA_PATH="$root" MIX_ENV=prod MIX_REBAR3="${MIX_REBAR3:-$(command -v rebar3)}"

# node LOG NAME EXPRESSION: the distribution starts before Elixir has read its own -pa, hence Erlang's.
node() {
    start "$1" env ERL_CRASH_DUMP_SECONDS=0 elixir -pa '_build/prod/lib/*/ebin' \
        --erl "-pa _build/prod/lib/macula/ebin -proto_dist macula -no_epmd -start_epmd false" --sname "$2" --cookie "$cookie" -e "$3"
}

for manager in mix rebar3; do
    copy_fixture "$root/test/consumers/elixir" "consumer-elixir-$manager"
    export MACULA_MANAGER="$manager" MIX_HOME="$work/mix-home"
    mix compile </dev/null

    node b.log "$node_b" 'Consumer.serve()'
    pid_b=$pid
    wait_for b.log 'is up' 30 "$pid_b"
    node a.log "$node_a" "Consumer.ping(:\"$node_b\")"
    wait "$pid" || fail "the node that pings failed" a.log
    grep -F 'consumer: pong from' a.log || fail "no pong" a.log
    MACULA_COOKIE=$cookie _build/prod/lib/macula/priv/macula_call ping "$node_b" >out || fail "no pong for macula_call" out
    stop "$pid_b" 20 b.log
    echo "elixir: built by $manager, ping pong"
done
