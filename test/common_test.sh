#!/bin/sh
# Runs the Common Test suites: where namespaces can be had in two lanes beside each other, since they mostly wait, and then
# those that measure or bear no neighbour. Each lane has a network of its own, because nodes of one network meet at its
# well-known port.
set -eu
cd "$(dirname "$0")/.."

logs=_build/test/logs
# Both lanes take about as long. The second one has all suites that are named nowhere here.
first="dist_naming diagnose dns mesh mesh_trust paths restart"
# What a flood costs is a ratio of two measurements; the lab's suite measures its links, and interrupts programs, which a
# lane in the background could not.
alone="macula_flood netlab"

if ! unshare -n ip link set lo up 2>/dev/null; then
    exec rebar3 ct
fi

# lane NAME SUITES: what a shell starts in the background ignores interrupts, and so would every node of the tests.
lane() {
    # shellcheck disable=SC2016 # the inner shell expands it
    env --default-signal=INT,QUIT unshare -n sh -c 'ip link set lo up && exec rebar3 ct --logdir "$1" --suite "$2"' lane "$logs/$1" "$2"
}

suites_of_first=
for name in $first; do
    suites_of_first=$suites_of_first,test/macula_${name}_SUITE
done
suites_alone=
for name in $alone; do
    suites_alone=$suites_alone,test/${name}_SUITE
done
suites_of_second=
for file in test/*_SUITE.erl; do
    suite=${file%.erl}
    case $suites_of_first$suites_alone, in
    *",$suite,"*) ;;
    *) suites_of_second=$suites_of_second,$suite ;;
    esac
done

mkdir -p "$logs"
lane second "${suites_of_second#,}" >"$logs/second.log" 2>&1 &
second=$!
trap 'kill "$second" 2>/dev/null || true' EXIT
# It compiles into the same place.
until grep -q 'Running Common Test' "$logs/second.log" || ! kill -0 "$second" 2>/dev/null; do
    sleep 1
done
status=0
lane first "${suites_of_first#,}" || status=1
wait "$second" || status=1
trap - EXIT
cat "$logs/second.log"
lane alone "${suites_alone#,}" || status=1
exit "$status"
