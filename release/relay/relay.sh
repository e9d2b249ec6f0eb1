#!/bin/sh
# The relay's only command:
#
#   relay run       runs it, in the foreground, until SIGTERM
#   relay health    says how it is; status 0: well
#   relay check     says what is wrong with its configuration, if anything; status 0: nothing
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# The line has no end, which is one for read.
read -r erts release <"$root/releases/start_erl.data" || [ -n "$release" ]

# The file is read when it is there; who names another one wants that to be there.
file=/etc/macula-relay/relay.config
if [ -z "${MACULA_RELAY_CONFIG:-}" ] && [ -f "$file" ]; then
    export MACULA_RELAY_CONFIG="$file"
fi
export ROOTDIR="$root" BINDIR="$root/erts-$erts/bin" EMU=beam PROGNAME=relay
# A crash says why in the log; a dump would hold tokens.
export ERL_CRASH_DUMP_SECONDS=0

# quietly MODULE: a VM without the relay, which that module ends.
quietly() {
    exec "$BINDIR/erlexec" -noinput -boot "$root/releases/$release/start_clean" -boot_var RELEASE_DIR "$root" \
        -config "$root/releases/$release/sys.config" -kernel logger_level none -pa "$root"/lib/macula-*/ebin -run "$@"
}

case ${1:-} in
run)
    exec "$BINDIR/erlexec" -boot "$root/releases/$release/start" -mode embedded -boot_var RELEASE_DIR "$root" \
        -boot_var SYSTEM_LIB_DIR "$root/lib" -config "$root/releases/$release/sys.config" \
        -args_file "$root/releases/$release/vm.args"
    ;;
health) quietly macula_relay_command health ;;
check) quietly macula_relay_command check ;;
*)
    echo "usage: relay run | health | check" >&2
    exit 2
    ;;
esac
