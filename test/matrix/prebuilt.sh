#!/bin/sh
# Builds, for machines without cargo: the library as users get it, the one that measures its calls, and the tests' own
# programs.
#
#   prebuilt.sh FOLDER
set -eu
cd "$(dirname "$0")/../.."
folder=$1

PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
unset MACULA_NIF_PATH MACULA_NIF_FEATURES
rm -rf "$folder"
REBAR_BARE_COMPILER_OUTPUT_DIR=$folder/plain sh native/build.sh
MACULA_NIF_FEATURES=measure REBAR_BARE_COMPILER_OUTPUT_DIR=$folder/measure sh native/build.sh

cargo build --locked --target-dir target -p macula_net --examples
cargo build --locked --release --target-dir target/netlab --manifest-path test/netlab/link/Cargo.toml
mkdir -p "$folder/tools"
for source in native/macula_net/examples/*; do
    cp "target/debug/examples/$(basename "$source")" "$folder/tools/"
done
cp target/netlab/release/netlab_link "$folder/tools/"
