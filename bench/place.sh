#!/bin/sh
# A place to measure in: epmd of its own, and for "veth" two network namespaces with a pair of interfaces between them.
#
#   sh bench/place.sh loopback EPMD_PORT
#   sh bench/place.sh veth EPMD_PORT
#
# Says what it made, a fact a line, then "ready", and takes everything away at the next line of its standard input or
# the end of it: that also comes when the bench is killed, which can then no longer clean up itself.
set -eu

place=$1
epmd_port=$2
ns_a=macula-bench-$$-a
ns_b=macula-bench-$$-b
epmds=

# Ctrl-C reaches every process of the terminal; this one still has work to do then.
trap '' INT HUP
trap 'exit 1' TERM

remove() {
    # shellcheck disable=SC2086 # one argument per process
    [ -z "$epmds" ] || kill $epmds 2>/dev/null || true
    [ "$place" = veth ] || return 0
    # Processes that have not ended yet keep a namespace alive, but not the interfaces in it.
    ip -n "$ns_a" link delete macula0 2>/dev/null || true
    ip netns delete "$ns_a" 2>/dev/null || true
    ip netns delete "$ns_b" 2>/dev/null || true
}

# epmd COMMAND...: the command puts it into its namespace.
start_epmd() {
    "$@" epmd -port "$epmd_port" </dev/null >/dev/null 2>&1 &
    epmds="$epmds $!"
}

set_up_side() {
    ip -n "$1" link set lo up
    ip -n "$1" address add "$2/24" dev macula0
    ip -n "$1" link set macula0 mtu 1500 up
}

set_up_veth() {
    ip netns add "$ns_a"
    ip netns add "$ns_b"
    ip -n "$ns_a" link add macula0 type veth peer name macula0 netns "$ns_b"
    set_up_side "$ns_a" 192.0.2.1
    set_up_side "$ns_b" 192.0.2.2
}

trap remove EXIT
case $place in
loopback)
    start_epmd env ERL_EPMD_ADDRESS=127.0.0.1
    echo "mtu $(cat /sys/class/net/lo/mtu)"
    ;;
veth)
    set_up_veth
    start_epmd ip netns exec "$ns_a"
    start_epmd ip netns exec "$ns_b"
    echo "namespace_a $ns_a"
    echo "namespace_b $ns_b"
    echo "mtu $(ip netns exec "$ns_b" cat /sys/class/net/macula0/mtu)"
    ;;
esac
echo ready
read -r _ || true
