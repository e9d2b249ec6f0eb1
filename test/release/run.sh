#!/bin/sh
# Builds the releases of docs/guides/releases.md with relx and with Mix, and asks them everything that a start script is
# asked, of a node that runs and of one that does not: output and status of each command are compared with what the
# guide says. `run.sh relx' or `run.sh mix' does one of them.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=test/fixture.sh
. "$root/test/fixture.sh"
guide=$root/docs/guides/releases.md
# What a shell on the node takes for one.
export TERM=xterm
home=${HOME:-/root}

# A node in the background has no parent that could end it with us; only its path tells it apart.
end_daemons() {
    for leftover in $(pgrep -f "^$work/.*beam|-root $work/" || true); do kill -9 "$leftover" 2>/dev/null || true; done
    stop_all
}
trap end_daemons EXIT

# row STATUS OUTPUT COMMAND...: a line of the table that this test prints.
row() {
    got=$1 shown=$2
    shift 2
    printf '  %-7s  %-52s  %s  %s\n' "$state" "$(echo "$*" | sed "s|$rel/||g")" "$got" "$shown"
}

# expect STATUS STREAM PATTERN COMMAND...: PATTERN is one of the shell's, for all that STREAM (out, err) says.
expect() {
    status=$1 stream=$2 pattern=$3
    shift 3
    timeout 120 "$@" >out 2>err </dev/null && got=0 || got=$?
    said=$(cat "$stream")
    # shellcheck disable=SC2254 # it is a pattern
    case $said in
    $pattern) matches=yes ;;
    *) matches=no ;;
    esac
    row "$got" "$(head -n 1 "$stream" | cut -c1-60)" "$@"
    if [ "$got" -ne "$status" ] || [ "$matches" = no ]; then
        echo "expected status $status and, on $stream: $pattern" >&2
        cat out err >all
        fail "$* ended with $got" all
    fi
}

# shell_on PROMPT INPUT ANSWER COMMAND...: types INPUT at the prompt of a shell on the node, then leaves it, as a user
# does who does not want to stop the node.
shell_on() {
    prompt=$1 input=$2 answer=$3
    shift 3
    command -v script >/dev/null || { echo "  SKIPPED, there is no script(1): $*"; return; }
    rm -f keyboard
    mkfifo keyboard
    : >terminal
    # Open for reading as well, so that nothing waits for the other end.
    exec 3<>keyboard
    script -qefc "$*" /dev/null >terminal 2>&1 <&3 3>&- &
    shell=$!
    started="$started $shell"
    wait_for terminal "$prompt" 60 "$shell"
    printf '%s\n' "$input" >&3
    wait_for terminal "$answer" 60 "$shell"
    printf '\007' >&3
    wait_for terminal '-->' 60 "$shell"
    printf 'q\n' >&3
    wait "$shell" || true
    exec 3>&-
    row - "$input -> $answer" "$@"
}

# until_done WHAT LOG COMMAND: waits for it to succeed.
until_done() {
    left=300
    until "$3"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "waited in vain until $1" "$2"
        sleep 0.1
    done
}

has_ended() {
    ! kill -0 "$(cat os_pid)" 2>/dev/null
}

# without_erlang COMMANDS: calls this function with what has to stand before a command for it to find no Erlang on this
# machine but the release's own.
without_erlang() {
    printf '#!/bin/sh\nmount -t tmpfs none "%s" && exec "$@"\n' \
        "$(erl -noinput -eval 'io:put_chars(code:root_dir()), halt().')" >hidden
    if ! unshare --mount sh hidden true >err 2>&1; then
        echo "  SKIPPED, the Erlang installed here cannot be hidden ($(head -n 1 err)): commands without it"
        return
    fi
    expect 127 err '*' unshare --mount sh hidden erl -noinput -s init stop
    "$1" unshare --mount sh hidden
}

# Where OTP's log goes to before the VM has anything that prints for it.
case $(erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().') in
25) boot_log=err ;;
*) boot_log=out ;;
esac

is_number='[1-9]*[0-9]'

new_release() {
    HOME=$home
    copy_fixture "$root/test/release/$1" "release-$1"
    own_home
    files "$1"
}

# relay: starts one, of the macula that the release holds, and has everything after it reach nodes in no other way.
relay() {
    # Ports that no other run on this machine is likely to have.
    relay_port=$((20000 + $$ % 20000))
    start relay.log erl -noinput -pa "$rel"/lib/macula-*/ebin \
        -eval "ok = macula:start_relay(#{port => $relay_port}), io:format(\"relay is up~n\")."
    pid_relay=$pid
    wait_for relay.log 'relay is up' 60 "$pid_relay"
    relay_url=https://localhost:$relay_port
    export MACULA_RELAYS="$relay_url" MACULA_DIST_MODE=relay
}

# readme_line NUMBER: one that README has typed at a shell, as it is typed here.
readme_line() {
    sed -n "s/^$1> //p" "$root/README.md" |
        sed "s| *%.*||; s|https://relay.example.org:4433|$relay_url|; s|othernode@otherhost|$node_b|"
}

# leave_relay: what comes next reaches nodes directly.
leave_relay() {
    unset MACULA_RELAYS MACULA_DIST_MODE
    stop "$pid_relay" 30 relay.log
}

# --- relx ------------------------------------------------------------------------------------------------------------

# node NAME PEER: in the foreground, with a place of its own for the files the start script generates.
relx_node() {
    mkdir -p "out.$1"
    start "$1.log" env RELX_OUT_FILE_PATH="$work/out.$1" SHOP_NODE="$1" ${2:+SHOP_PEER="$2"} "$rel/bin/shop" foreground
}

# relx_pair: node_b, and node_a, which calls it.
relx_pair() {
    relx_node "$node_b"
    pid_b=$pid
    wait_for "$node_b.log" 'is up, code loading is embedded' 60 "$pid_b"
    relx_node "$node_a" "$node_b"
    pid_a=$pid
    wait_for "$node_a.log" 'shop: ping pong' 60 "$pid_a"
}

# Two nodes that may reach others through relays only, and are told of one at their shells.
relx_joins() {
    pids=
    unset MACULA_RELAYS
    for node in "$node_b" "$node_a"; do
        relx_node "$node"
        wait_for "$node.log" 'is up, code loading is embedded' 60 "$pid"
        pids="$pids $pid"
    done
    # The commands themselves may go straight to the node beside them.
    unset MACULA_DIST_MODE
    expect 0 out pang "$rel/bin/shop" rpc net_adm ping "['$node_b']"
    for SHOP_NODE in "$node_b" "$node_a"; do
        shell_on "($SHOP_NODE)1>" "$(readme_line 1)" "($SHOP_NODE)2>" "$rel/bin/shop" remote_console
    done
    shell_on "($node_a)1>" "$(readme_line 2)" pong "$rel/bin/shop" remote_console
    expect 0 out '*path => relay*' "$rel/bin/macula_call" "$node_a" macula links
    for pid in $pids; do stop "$pid" 30 "$node_a.log"; done
}

# relx_tool: what the start script calls a node with. Newer ones take nodetool wherever vm.args names a carrier.
relx_tool() {
    if grep -A 1 '^if .*PROTO_DIST' "$rel/bin/shop" | grep -q 'ERL_RPC=relx_nodetool'; then
        echo nodetool
    else
        echo erl_call
    fi
}

relx_results_by_erl_call() {
    expect 1 err '*exception error: x*' "$rel/bin/shop" rpc erlang error '[x]'
    expect 0 out '{ok,3}' "$rel/bin/shop" eval '1 + 2.'
    expect 1 err '*evaluating an arithmetic expression*' "$rel/bin/shop" eval '1 + a.'
}

relx_results_by_nodetool() {
    expect 1 out "RPC to $SHOP_NODE failed: {'EXIT',*{x,*" "$rel/bin/shop" rpc erlang error '[x]'
    expect 0 out 3 "$rel/bin/shop" eval '1 + 2.'
    expect 1 out "RPC to $SHOP_NODE failed: {'EXIT',*{badarith,*" "$rel/bin/shop" eval '1 + a.'
}

relx_commands_running() {
    expect 0 out pong "$rel/bin/shop" ping
    expect 0 out "$is_number" "$rel/bin/shop" pid
    expect 0 out 3 "$rel/bin/shop" rpc lists sum '[[1,2]]'
    expect 0 out embedded "$rel/bin/shop" rpc code get_mode
    "relx_results_by_$tool"
    expect 0 out pong "$rel/bin/macula_call" ping "$SHOP_NODE"
    expect 0 out 6 "$rel/bin/macula_call" "$SHOP_NODE" lists sum '[1,2,3]'
    expect 1 err '*exception error: x*' "$rel/bin/macula_call" "$SHOP_NODE" erlang error x
    shell_on "($SHOP_NODE)1>" 'lists:seq(7, 9).' '[7,8,9]' "$rel/bin/shop" remote_console
    expect 1 "$boot_log" '*another node of that name runs on this machine*' "$rel/bin/shop" foreground
    expect 0 out '' "$rel/bin/shop" restart
    # The second time; until then it may answer from before, or not at all.
    until_done "the application starts anew" log/erlang.log.1 is_up_twice
    expect 0 out embedded "$rel/bin/shop" rpc code get_mode
}

# The older start script, told to do as the newer ones.
relx_commands_by_nodetool() {
    export USE_NODETOOL=1
    expect 0 out pong "$rel/bin/shop" ping
    expect 0 out "$is_number" "$rel/bin/shop" pid
    expect 0 out 3 "$rel/bin/shop" rpc lists sum '[[1,2]]'
    relx_results_by_nodetool
    unset USE_NODETOOL
}

relx_commands_alone() {
    expect 0 out pong "$@" "$rel/bin/shop" ping
    expect 0 out pong "$@" env USE_NODETOOL=1 "$rel/bin/shop" ping
    expect 0 out 3 "$@" "$rel/bin/shop" rpc lists sum '[[1,2]]'
    expect 0 out 6 "$@" "$rel/bin/macula_call" "$SHOP_NODE" lists sum '[1,2,3]'
}

is_up_twice() {
    [ "$(grep -c 'is up, code loading' log/erlang.log.1)" -eq 2 ]
}

relx_commands_stopped() {
    expect 1 out 'Node is not running!' "$rel/bin/shop" ping
    case $tool in
    erl_call) expect 1 out '' "$rel/bin/shop" pid ;;
    nodetool) expect 1 out "*Node $SHOP_NODE not responding to pings." "$rel/bin/shop" pid ;;
    esac
    expect 1 out 'Node is not running!' "$rel/bin/shop" rpc lists sum '[[1,2]]'
    expect 1 out 'Node is not running!' "$rel/bin/shop" eval '1 + 2.'
    expect 1 out 'Node is not running!' "$rel/bin/shop" remote_console
    expect 1 out '' "$rel/bin/shop" restart
    expect 1 out '' "$rel/bin/shop" stop
    expect 3 out pang "$rel/bin/macula_call" ping "$SHOP_NODE"
    expect 3 err '*cannot be reached*' "$rel/bin/macula_call" "$SHOP_NODE" erlang node
}

relx() {
    new_release relx
    chmod +x config/erl config/*_call
    use_checkout
    rebar3 release
    rel=$work/_build/default/rel/shop
    tool=$(relx_tool)
    echo "release of relx: the start script calls a node by $tool"
    SHOP_COOKIE=$cookie SHOP_NODE=$node_a MACULA_COOKIE=$cookie PIPE_DIR="$work/pipes/" RUNNER_LOG_DIR="$work/log"
    export SHOP_COOKIE SHOP_NODE MACULA_COOKIE PIPE_DIR RUNNER_LOG_DIR

    relx_pair
    wait_for "$node_a.log" 'shop: call embedded' 60 "$pid_a"
    stop "$pid_a" 30 "$node_a.log"
    wait "$pid_a" || fail "status $? after SIGTERM" "$node_a.log"
    echo "release of relx: two nodes in embedded mode, ping pong, SIGTERM ends with status 0"

    state=stopped
    relx_commands_stopped
    expect 0 out '' "$rel/bin/shop" daemon
    state=running
    relx_commands_running
    relx_commands_by_nodetool
    without_erlang relx_commands_alone
    expect 0 out '' "$rel/bin/shop" stop
    state=stopped
    expect 1 out 'Node is not running!' "$rel/bin/shop" ping
    expect 0 out "'start' has been deprecated*" "$rel/bin/shop" start
    state=running
    expect 0 out pong "$rel/bin/shop" ping
    "$rel/bin/shop" pid >os_pid
    kill -TERM "$(cat os_pid)"
    until_done "the node ends" os_pid has_ended
    state=stopped
    expect 1 out 'Node is not running!' "$rel/bin/shop" ping
    stop "$pid_b" 30 "$node_b.log"
    echo "release of relx: every command as the guide says"

    relay
    state=relayed
    relx_pair
    expect 0 out '*path => relay*' "$rel/bin/macula_call" "$node_a" macula links
    expect 0 out 3 "$rel/bin/shop" rpc lists sum '[[1,2]]'
    shell_on "($SHOP_NODE)1>" 'lists:seq(7, 9).' '[7,8,9]' "$rel/bin/shop" remote_console
    stop "$pid_a" 30 "$node_a.log"
    stop "$pid_b" 30 "$node_b.log"
    relx_joins
    leave_relay
    echo "release of relx: two nodes, calls and a shell through a relay, and what README has typed"
}

# --- Mix -------------------------------------------------------------------------------------------------------------

# In the words of Elixir, and of whoever tries to have a shell on the node: IEx, later OTP for it.
case $(elixir --short-version) in
1.14.*)
    not_called='--rpc-eval : RPC failed with reason :nodedown'
    no_shell="Could not contact remote node $node_a"
    ;;
*)
    not_called='--rpc-eval : RPC failed with reason :noconnection'
    no_shell="Could not connect to \"$node_a\""
    ;;
esac

can_be_called() {
    "$rel/bin/macula_call" ping "$SHOP_NODE" >out 2>err
}

mix_commands_running() {
    expect 0 out "$is_number" "$rel/bin/shop" pid
    expect 0 out 3 "$rel/bin/shop" rpc 'IO.puts(1 + 2)'
    expect 0 out embedded "$rel/bin/shop" rpc 'IO.puts(:code.get_mode())'
    expect 1 err '*(RuntimeError) x*' "$rel/bin/shop" rpc 'raise "x"'
    expect 0 out 3 "$rel/bin/shop" eval 'IO.puts(1 + 2)'
    expect 0 out pong "$rel/bin/macula_call" ping "$SHOP_NODE"
    expect 0 out 3 "$rel/bin/macula_call" "$SHOP_NODE" Elixir.Enum sum '[1,2]'
    expect 0 out "{ok,{*,$port}}" "$rel/bin/macula_call" "$SHOP_NODE" macula_dist_endpoint address
    expect 1 "$boot_log" '*another node of that name runs on this machine*' "$rel/bin/shop" start
    shell_on "iex($SHOP_NODE)1>" 'Enum.to_list(7..9) |> List.to_tuple()' '{7, 8, 9}' "$rel/bin/shop" remote
}

# As relx_joins; README's lines in Elixir.
mix_joins() {
    pids=
    unset MACULA_RELAYS
    for node in "$node_b" "$node_a"; do
        start "$node.log" env SHOP_NODE="$node" "$rel/bin/shop" start
        wait_for "$node.log" "shop: $node is up, code loading is embedded" 60 "$pid"
        pids="$pids $pid"
    done
    unset MACULA_DIST_MODE
    until_done "the node can be called" err can_be_called
    expect 0 out pang "$rel/bin/shop" rpc "IO.puts(:net_adm.ping(:\"$node_b\"))"
    for SHOP_NODE in "$node_b" "$node_a"; do
        shell_on "iex($SHOP_NODE)1>" ":ok = :macula.join_mesh(%{relays: [\"$relay_url\"]})" "iex($SHOP_NODE)2>" \
            "$rel/bin/shop" remote
    done
    shell_on "iex($node_a)1>" ":net_adm.ping(:\"$node_b\")" :pong "$rel/bin/shop" remote
    expect 0 out '*path => relay*' "$rel/bin/macula_call" "$node_a" macula links
    for pid in $pids; do stop "$pid" 30 "$node_a.log"; done
}

mix_commands_alone() {
    expect 0 out 3 "$@" "$rel/bin/shop" rpc 'IO.puts(1 + 2)'
    expect 0 out 3 "$@" "$rel/bin/macula_call" "$SHOP_NODE" Elixir.Enum sum '[1,2]'
}

mix_commands_stopped() {
    expect 1 err "*$not_called*" "$rel/bin/shop" pid
    expect 1 err "*$not_called*" "$rel/bin/shop" rpc 'IO.puts(1 + 2)'
    expect 0 out 3 "$rel/bin/shop" eval 'IO.puts(1 + 2)'
    expect 1 out "*$no_shell*" script -qefc "$rel/bin/shop remote" /dev/null
    expect 1 err "*$not_called*" "$rel/bin/shop" stop
    expect 3 out pang "$rel/bin/macula_call" ping "$SHOP_NODE"
}

mix_() {
    new_release mix
    chmod +x rel/overlays/bin/macula_call
    ln -sfn "$root" "$work/../macula"
    MIX_ENV=prod mix release --quiet </dev/null
    rel=$work/_build/prod/rel/shop
    SHOP_NODE=$node_a RELEASE_COOKIE=$cookie RELEASE_TMP="$work/tmp"
    export SHOP_NODE RELEASE_COOKIE RELEASE_TMP

    state=stopped
    mix_commands_stopped
    # One that no other run on this machine is likely to have.
    port=$((40000 + $$ % 20000))
    start foreground.log env SHOP_PORT="$port" "$rel/bin/shop" start
    pid_a=$pid
    wait_for foreground.log "shop: $SHOP_NODE is up, code loading is embedded" 60 "$pid_a"
    state=running
    mix_commands_running
    without_erlang mix_commands_alone
    stop "$pid_a" 30 foreground.log
    wait "$pid_a" || fail "status $? after SIGTERM" foreground.log
    state=stopped
    expect 0 out '' "$rel/bin/shop" daemon
    # Mix does not wait for the node.
    until_done "the node can be called" err can_be_called
    state=running
    expect 0 out "$is_number" "$rel/bin/shop" pid
    cp out os_pid
    expect 0 out '' "$rel/bin/shop" stop
    until_done "the node ends" os_pid has_ended
    state=stopped
    expect 3 out pang "$rel/bin/macula_call" ping "$SHOP_NODE"
    echo "release of Mix: every command as the guide says"

    relay
    state=relayed
    start relayed.log "$rel/bin/shop" start
    pid_a=$pid
    wait_for relayed.log "shop: $SHOP_NODE is up, code loading is embedded" 60 "$pid_a"
    until_done "the node can be called" err can_be_called
    expect 0 out '*path => relay*' "$rel/bin/macula_call" "$SHOP_NODE" macula links
    expect 0 out 3 "$rel/bin/shop" rpc 'IO.puts(1 + 2)'
    shell_on "iex($SHOP_NODE)1>" 'Enum.to_list(7..9) |> List.to_tuple()' '{7, 8, 9}' "$rel/bin/shop" remote
    stop "$pid_a" 30 relayed.log
    mix_joins
    leave_relay
    echo "release of Mix: calls and a shell through a relay, and what README has typed"
}

case ${1:-all} in
relx) relx ;;
mix) mix_ ;;
all)
    relx
    mix_
    ;;
*)
    echo "usage: run.sh [relx | mix]" >&2
    exit 2
    ;;
esac
