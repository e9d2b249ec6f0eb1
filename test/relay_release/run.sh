#!/bin/sh
# Builds the release of a relay and runs it as docs/guides/run-a-relay.md says: its configuration, its health answer, new
# certificates under attached nodes, the end that its nodes are told of, and one that they are not.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"
# shellcheck source=test/relay_release/service.sh
. "$root/test/relay_release/service.sh"
guide=$root/docs/guides/run-a-relay.md

copy_fixture "$root/test/relay_release" relay-release
(cd "$root" && rebar3 as relay release)
own_home
release=$root/_build/relay/rel/macula_relay
relay=$release/bin/relay
# Of a node, without anything that is installed.
ebin=$release/lib/macula-0.1.0/ebin
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
# Ports that no other run on this machine is likely to have.
port_1=$((20000 + $$ % 10000))
port_2=$((port_1 + 10000))
health_1=$((port_1 + 20000))
health_2=$((port_1 + 30000))
[ "$health_2" -lt 65536 ] || health_2=$((port_1 - 10000))

# expect STATUS PATTERN COMMAND...: of both streams together.
expect() {
    status=$1 pattern=$2
    shift 2
    timeout 60 "$@" >out 2>&1 </dev/null && got=0 || got=$?
    # shellcheck disable=SC2254 # it is a pattern
    case $(cat out) in
    $pattern) matches=yes ;;
    *) matches=no ;;
    esac
    printf '  %-32s  %s  %s\n' "$(echo "$*" | sed "s|.*/relay |relay |" | cut -c1-32)" "$got" "$(head -n 1 out | cut -c1-70)"
    if [ "$got" -ne "$status" ] || [ "$matches" = no ]; then
        fail "expected status $status and $pattern" out
    fi
}

# configuration N PORT HEALTH: the file of the relay number N.
configuration() {
    cat >"relay$1.config" <<EOF
#{port => $2, health => $3, realms => #{<<"shop">> => {tokens, [<<"$token">>]}},
  certfile => "$work/relay.pem", keyfile => "$work/relay.key"}.
EOF
}

# run_relay N: starts it, and sets $pid.
run_relay() {
    start "relay$1.log" env MACULA_RELAY_CONFIG="$work/relay$1.config" MACULA_HOME="$work/home/relay$1" "$relay" run
}

# certify CA: a new key for relays, with a certificate of a CA that is made for it; trusted are CA.pem.
certify() {
    erl -noinput -pa "$work" -eval "certify:files(\"$1\"), halt()."
}

# node NAME RELAYS FILE...: a node that joins them with the token, and says what changes.
node() {
    # shellcheck disable=SC2086 # it is a command, if anything
    start "$1.log" ${on_network:-} erl -noinput -pa "$ebin" -pa "$work" -proto_dist macula -no_epmd -start_epmd false -name "$1" \
        -setcookie "$cookie" -kernel net_ticktime 60 -s talker start "$2" "$token" "$3" "${4:-none}"
}

is_well() {
    [ "$(env MACULA_RELAY_CONFIG="$work/relay$1.config" "$relay" health 2>/dev/null | cut -c1-14)" = '{"status":"ok"' ]
}

# eventually FIFTHS TEXT LOG COMMAND...: waits until the command succeeds, for as many fifths of a second.
eventually() {
    left=$1 text=$2 log=$3
    shift 3
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "$text" "$log"
        sleep 0.2
    done
}

has_nodes() {
    env MACULA_RELAY_CONFIG="$work/relay$1.config" "$relay" health 2>/dev/null | grep -q "\"nodes\":$2,"
}

has_answered() {
    [ "$(answers)" -ge "$1" ]
}

answers() {
    grep -c 'talker: answered' "$node_b.log"
}

# attached N COUNT: as many nodes are attached to the relay number N.
attached() {
    eventually 150 "not $2 nodes at relay $1" "relay$1.log" has_nodes "$1" "$2"
}

until_well() {
    eventually 100 "relay $1 does not get well" "relay$1.log" is_well "$1"
}

# talks_on FIFTHS COUNT: there come to be as many answers.
talks_on() {
    eventually "$1" "the talk does not go on" "$node_b.log" has_answered "$2"
}

erlc certify.erl talker.erl "$root/test/macula_test_ca.erl"
certify first
configuration 1 "$port_1" "$health_1"
configuration 2 "$port_2" "$health_2"

expect 0 'a relay at port 4433, realms: all, open to everybody, peers: none' "$relay" check
expect 0 "a relay at port $port_1, realms: shop (1 token(s)), peers: none" env MACULA_RELAY_CONFIG="$work/relay1.config" "$relay" check
expect 0 'a relay at port 443, realms: a (open), b (2 token(s)), *' env MACULA_RELAY_PORT=443 MACULA_RELAY_REALMS='b=x,a=open,b=y' "$relay" check
expect 1 '*missing.config: no such file or directory' env MACULA_RELAY_CONFIG=missing.config "$relay" check
expect 1 'MACULA_RELAY_PORT=https is no number' env MACULA_RELAY_PORT=https "$relay" check
echo '#{prot => 4433}.' >wrong.config
expect 1 '*prot*port*' env MACULA_RELAY_CONFIG=wrong.config "$relay" check
expect 1 '*prot*port*' env MACULA_RELAY_CONFIG=wrong.config "$relay" run
expect 1 'the relay does not answer: *' env MACULA_RELAY_HEALTH="$health_1" "$relay" health
expect 2 'usage: *' "$relay"
echo "relay's release: what is wrong with a configuration is named"

# What systemd says of the unit, and what the unit runs, as it has it run.
if command -v systemd-analyze >/dev/null; then
    sed "s|/opt/macula-relay/|$release/|" "$release/etc/macula-relay.service" >macula-relay.service
    systemd-analyze verify "$work/macula-relay.service" >out 2>&1 || fail "systemd does not take the unit" out
    [ ! -s out ] || fail "systemd has something to say of the unit" out
    echo "relay's release: systemd takes its unit"
else
    echo "relay's release: SKIPPED, systemd-analyze is not here: nobody looked at the unit"
fi
if [ "$(id -u)" -eq 0 ] && unshare --mount --net true 2>/dev/null; then
    timeout 120 unshare --mount --net sh "$root/test/relay_release/as_unit.sh" "$release" >out 2>&1 || fail "not as the unit" out
    grep -q '^{"status":"ok"' out || fail "it is not well as the unit has it run" out
    grep -q '^CapEff:.0*400$' out || fail "it may do more than have a low port, or not that" out
    grep -q '^ended with status 0$' out || fail "it does not end as it should" out
    echo "relay's release: as its unit has it run, it has port 443 and nothing else, and ends with SIGTERM"
else
    echo "relay's release: SKIPPED, not root or without namespaces: it was not run as its unit has it run"
fi

run_relay 1
pid_1=$pid
run_relay 2
pid_2=$pid
until_well 1
until_well 2
relays=https://localhost:$port_1,https://localhost:$port_2
node "$node_a" "$relays" first.pem
pid_a=$pid
node "$node_b" "$relays" first.pem "$node_a"
pid_b=$pid
wait_for "$node_b.log" 'talker: answered' 60 "$pid_b"
attached 1 2
attached 2 2
echo "relay's release: two nodes with its token, which trust its CA, reach each other through it"

mkdir -p kept
cp relay.pem relay.key kept/
certify second
# The files are looked at once in a while. Who comes now trusts the second CA alone.
node "c$$@localhost" "https://localhost:$port_1" second.pem
pid_c=$pid
wait_for "c$$@localhost.log" 'talker: attached' 90 "$pid_c"
attached 1 3
! grep -q 'talker: down' "$node_a.log" || fail "a node lost its attachment" "$node_a.log"
kill -9 "$pid_c"
echo "relay's release: a new certificate is shown, and nobody lost an attachment for it"

answers=$(answers)
stop "$pid_1" 30 relay1.log
wait "$pid_1" || fail "status $? after SIGTERM" relay1.log
wait_for "$node_a.log" "talker: draining https://localhost:$port_1" 10 "$pid_a"
talks_on 100 $((answers + 20))
echo "relay's release: SIGTERM ends it with status 0, and its nodes had turned to the other one"

kill -9 "$pid_2"
cp kept/relay.key kept/relay.pem .
run_relay 2
pid_2=$pid
until_well 2
attached 2 2
answers=$(answers)
talks_on 150 $((answers + 1))
! grep -q 'talker: nodedown' "$node_b.log" || fail "the nodes lost each other" "$node_b.log"
echo "relay's release: killed and started again, it has its nodes back, and their link outlived it"
stop "$pid_2" 30 relay2.log
kill -9 "$pid_a" "$pid_b"

mkdir -p machine
if why=$(can_boot "$work/machine"); then
    as_service
else
    echo "relay's release: SKIPPED, $why: it was not run as a service"
fi
