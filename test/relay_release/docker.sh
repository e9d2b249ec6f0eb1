#!/bin/sh
# Builds the image of a relay and runs it as docs/guides/run-a-relay.md says, with nodes that attach to it. By hand, with a
# Docker daemon on this machine; no part of ./dev test, which does without one.
#
#   docker.sh [ARGUMENT...]     further arguments of `docker build'
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"

copy_fixture "$root/test/relay_release" relay-docker
(cd "$root" && rebar3 compile)
own_home
name=macula-relay-$$
port=$((20000 + $$ % 10000))
health=$((port + 10000))
url=https://localhost:$port

remove_container() {
    stop_all
    docker rm --force "$name" >/dev/null 2>&1 || true
    docker volume rm "$name" >/dev/null 2>&1 || true
    docker rmi "$name" >/dev/null 2>&1 || true
}
trap remove_container EXIT

# eventually SECONDS TEXT COMMAND...
eventually() {
    left=$1 text=$2
    shift 2
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || container_failed "$text"
        sleep 1
    done
}

container_failed() {
    docker logs "$name" >container.log 2>&1 || true
    fail "$1" container.log
}

state() {
    docker inspect --format "{{.State.$1}}" "$name"
}

is_healthy() {
    [ "$(state Health.Status)" = healthy ]
}

node() {
    start "$1.log" erl -noinput -pa "$root/_build/default/lib/macula/ebin" -pa "$work" -proto_dist macula -no_epmd \
        -start_epmd false -name "$1" -setcookie "$cookie" -kernel net_ticktime 60 -s talker start "$url" token ca.pem "${2:-none}"
}

answers() {
    grep -c 'talker: answered' "$node_b.log"
}

has_answered() {
    [ "$(answers)" -ge "$1" ]
}

docker build "$@" --tag "$name" --file "$root/release/relay/Dockerfile" "$root"
echo "relay's image: it is built, $(docker image inspect --format '{{.Size}}' "$name") bytes"

erlc certify.erl talker.erl "$root/test/macula_test_ca.erl"
erl -noinput -pa "$work" -eval 'certify:files("ca"), halt().'
mkdir etc
cp relay.pem relay.key etc/
cat >etc/relay.config <<EOF
#{port => $port, health => $health, realms => #{<<"shop">> => {tokens, [<<"token">>]}},
  certfile => "/etc/macula-relay/relay.pem", keyfile => "/etc/macula-relay/relay.key"}.
EOF
# Nobody else's, as the guide has it.
chmod 640 etc/*
docker run --rm --volume "$work/etc:/etc/macula-relay:ro" "$name" check && fail "it reads files that it may not" etc/relay.config
docker run --rm --volume "$work/etc:/etc/macula-relay:ro" --group-add "$(id -g)" "$name" check
docker run --detach --name "$name" --restart always --network host --volume "$name:/var/lib/macula-relay" \
    --volume "$work/etc:/etc/macula-relay:ro" --group-add "$(id -g)" "$name" >/dev/null
eventually 90 "it does not get healthy" is_healthy
[ "$(docker exec "$name" id -u)" -ne 0 ] || container_failed "it runs as root"
echo "relay's image: it reads its files by their group, is healthy and runs without privileges"

node "$node_a"
pid_a=$pid
node "$node_b" "$node_a"
wait_for "$node_b.log" 'talker: answered' 60 "$pid"
docker restart "$name" >/dev/null
wait_for "$node_a.log" "talker: draining $url" 10 "$pid_a"
eventually 60 "the talk does not go on" has_answered $(($(answers) + 20))
! grep -q 'talker: nodedown' "$node_b.log" || fail "the nodes lost each other" "$node_b.log"
echo "relay's image: two nodes reach each other through it, are told of its restart, and their link outlives that"

docker stop "$name" >/dev/null
[ "$(state ExitCode)" -eq 0 ] || container_failed "status $(state ExitCode) after docker stop"
echo "relay's image: docker stop ends it with status 0"
