# shellcheck shell=sh
# What measurements of a relay's release share, for scripts that read this: `run_release FOLDER', `table', `page'.
load=target/release/macula_load
work=$(mktemp -d)
relay=
end() {
    [ -z "$relay" ] || kill -TERM "$relay" 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT
trap 'exit 1' INT TERM HUP
: >"$work/page"

# run_release FOLDER: until the script ends. $at are the options of macula_load for this relay.
run_release() {
    # What no other run on this machine is likely to have.
    port=$((20000 + $$ % 20000))
    health=$((port + 20000))
    MACULA_HOME=$work/home MACULA_RELAY_PORT=$port MACULA_RELAY_HEALTH=$health "$1/bin/relay" run >"$work/log" 2>&1 &
    relay=$!
    until MACULA_RELAY_HEALTH=$health "$1/bin/relay" health >/dev/null 2>&1; do
        kill -0 "$relay" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
        sleep 0.2
    done
    # shellcheck disable=SC2034 # for who reads this
    at="--relay 127.0.0.1:$port --pid $relay --health 127.0.0.1:$health"
}

# table TITLE SCENARIO...: its figures, without those that only a reader of counters wants.
table() {
    echo "bench: $1" >&2
    printf '\n| %s | |\n|---|---:|\n' "$1" >>"$work/page"
    shift
    "$load" "$@" >"$work/out"
    sed -e '/^{/d' -e '/^relay: \|: relay: /d' -e 's/^\(.*[^ ]\)  \+\(.*\)$/| \1 | \2 |/' "$work/out" >>"$work/page"
}

# page FILE: all tables so far, and on what they were measured.
page() {
    {
        printf 'Measured %s on %s processors; load average at the end %s.\n' "$(date -u +%F)" "$(nproc)" \
            "$(cut -d' ' -f1 /proc/loadavg)"
        cat "$work/page"
    } >"$1"
    echo "bench: the tables are in $1; ./dev bench docs puts them into docs/performance.md"
}
