#!/bin/sh
# Runs what docs/guides/clustering.md says, its files and its commands: hosts are network namespaces, and containers
# are too, since that is all of them that matters here.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"
guide=$root/docs/guides/clustering.md

if [ "$(uname)" != Linux ] || [ "$(id -u)" -ne 0 ]; then
    echo "clustering guide: SKIPPED, hosts of their own need root on Linux"
    exit 0
fi

# The guide's names for macula's sources, and nothing of this user's.
copy_fixture "$root/test/clustering_guide" clustering_guide
ln -s "$root" macula
own_home

# --- hosts on one switch ---------------------------------------------------------------------------------------------

lan=mcg$$
hosts="1 2 3"

remove_lan() {
    stop_all
    for host in $hosts switch; do
        for leftover in $(ip netns pids "$lan-$host" 2>/dev/null); do kill -9 "$leftover" 2>/dev/null || true; done
        ip netns delete "$lan-$host" 2>/dev/null || true
    done
}
trap remove_lan EXIT

ip netns add "$lan-switch"
ip -n "$lan-switch" link add bridge type bridge mcast_snooping 0
ip -n "$lan-switch" link set bridge up
for host in $hosts; do
    ip netns add "$lan-$host"
    ip link add eth0 netns "$lan-$host" type veth peer name "port$host" netns "$lan-switch"
    ip -n "$lan-switch" link set "port$host" master bridge up
    ip -n "$lan-$host" address add "198.18.7.$host/24" dev eth0
    ip -n "$lan-$host" link set lo up
    ip -n "$lan-$host" link set eth0 up
done

# on HOST LOG COMMAND...: in the background, on a host of that name; /opt holds the image, if there is one.
on() {
    host=$1
    log=$2
    shift 2
    # shellcheck disable=SC2016 # the inner shell expands it
    start "$log" ip netns exec "$lan-$host" unshare --mount --uts sh -c '
        hostname "host-$1"
        if [ -n "$2" ]; then mount -t tmpfs none /opt && cp -R "$2" /opt/shop; fi
        shift 2
        exec "$@"' sh "$host" "${image:-}" "$@"
}

# Every host says of every other that it came.
await_cluster() {
    for host in $hosts; do
        for other in $hosts; do
            [ "$host" = "$other" ] || wait_for "$1.$host.log" "shop: nodeup $(quoted "$2" "shop@host-$other")" 60 "$(pid_of "$host")"
        done
    done
}

# As Erlang prints an atom, or as Elixir prints it.
quoted() {
    if [ "$1" = erlang ]; then echo "'$2'"; else echo "$2"; fi
}

pid_of() {
    eval "echo \$pid_$1"
}

stop_hosts() {
    for host in $hosts; do stop "$(pid_of "$host")" 30 "$1.$host.log"; done
}

# --- the Erlang release ----------------------------------------------------------------------------------------------

cd "$work/erlang"
files erlang
block build erlang >build.sh
sh -eu build.sh
SHOP_COOKIE=$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')
export SHOP_COOKIE
command=$(block start erlang)
image=
for host in $hosts; do
    mkdir -p "out.$host"
    on "$host" "release.$host.log" env RELX_OUT_FILE_PATH="$PWD/out.$host" sh -c "exec $command"
    eval "pid_$host=$pid"
done
await_cluster release erlang
stop_hosts release
echo "clustering guide: the Erlang release forms a cluster on three hosts"

# --- docker-compose --------------------------------------------------------------------------------------------------

# value KEY: what follows it in the one service of the compose file.
value() {
    sed -n "s/^ *$1: *//p" docker-compose.yml
}

CLUSTER_SECRET=$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')
export CLUSTER_SECRET
# What Docker's COPY puts into the image.
image=$PWD/$(sed -n 's|^COPY \(.*\) /opt/shop$|\1|p' Dockerfile)
[ -x "$image/bin/shop" ] || fail "no image, or not where this test puts it" Dockerfile
replicas=$(value replicas)
[ "$replicas" -eq 3 ] || fail "this test has three hosts" docker-compose.yml
command=$(value command)
# The variables of the environment, with those of the caller filled in as compose does.
environment=$(sed -n '/environment:/,/deploy:/s/^ *\([A-Z_]*\): \(.*\)$/\1=\2/p' docker-compose.yml)
for host in $hosts; do
    eval "set -- $environment"
    # shellcheck disable=SC2086 # a command of several words
    on "$host" "compose.$host.log" env "$@" $command
    eval "pid_$host=$pid"
done
await_cluster compose erlang
stop_hosts compose
echo "clustering guide: the services of docker-compose.yml form a cluster"

# --- Phoenix ---------------------------------------------------------------------------------------------------------

unset CLUSTER_SECRET
cd "$work/phoenix"
files phoenix
block build phoenix >build.sh
export MIX_HOME="$work/mix-home"
sh -eu build.sh </dev/null
command=$(block start phoenix)
image=
for host in $hosts; do
    on "$host" "phoenix.$host.log" env RELEASE_TMP="$PWD/tmp.$host" sh -c "exec $command"
    eval "pid_$host=$pid"
done
await_cluster phoenix elixir
stop_hosts phoenix
echo "clustering guide: the Mix release forms a cluster on three hosts"
