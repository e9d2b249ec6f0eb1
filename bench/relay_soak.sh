#!/bin/sh
# A relay for as long as nodes come and go, as a table: _build/bench/soak.md. `relay_soak.sh FOLDER SECONDS': where the release
# of a relay is.
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=bench/relay_bench.sh
. bench/relay_bench.sh
run_release "$1"
# shellcheck disable=SC2086 # options with a value each
table "pairs of nodes come, talk, go and come again" soak --seconds "$2" $at
page _build/bench/soak.md
