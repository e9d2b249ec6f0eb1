#!/bin/sh
# The whole test suite on every supported OTP, with one native library that is built here.
#
#   run.sh [25|27|29]...    all of them, or these
#
# Each OTP is that of a Debian release, in a tree: a Debian system below a folder, made by debootstrap and `./dev setup`
# and kept for the next time. See docs/testing.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=test/matrix/counts.sh
. "$here/counts.sh"

work=$root/_build/matrix
trees=${MACULA_MATRIX_DIR:-$work}
logs=$work/logs
prebuilt=$work/prebuilt
table=$logs/table
supported="25 27 29"

die() {
    echo "matrix: $*" >&2
    exit 1
}

debian_with() {
    case $1 in
    25) echo bookworm ;;
    27) echo trixie ;;
    29) echo forky ;;
    *) die "there is no OTP $1 here; known are: $supported" ;;
    esac
}

check_tools() {
    [ "$(uname)" = Linux ] || die "Debian trees take Linux"
    [ "$(id -u)" -eq 0 ] || die "Debian trees and their namespaces take root"
    for tool in debootstrap unshare ip; do
        command -v "$tool" >/dev/null 2>&1 || die "$tool was not found (Debian, Ubuntu: ./dev setup)"
    done
}

# --- namespaces ------------------------------------------------------------------------------------------------------

# isolated NETWORK LOG COMMAND...: in namespaces of its own for mounts, processes and, unless it shares the host's, the
# network. All that it mounts and starts ends with it, or with us. Only the log's end is shown, and only of a failure.
isolated() {
    network=$1
    log=$logs/$2.log
    shift 2
    [ "$network" = own ] && set -- --net "$@"
    # What a shell starts in the background ignores interrupts, and so would every node of the tests.
    env --default-signal=INT,QUIT unshare --mount --pid --fork --kill-child "$@" >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running" && status=0 || status=$?
    running=
    [ "$status" -eq 0 ] && return
    echo "FAILED: the end of $log"
    tail -n 25 "$log"
    return 1
}

# The first process of a namespace takes all others with it.
running=
trap '[ -z "$running" ] || kill -9 "$running" 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- one OTP ---------------------------------------------------------------------------------------------------------

run_otp() {
    tree=$trees/$(debian_with "$1")
    echo "== OTP $1: the tree $tree"
    isolated shared "OTP$1-tree" sh "$here/tree.sh" "$tree" "$(debian_with "$1")"
    copy_checkout
    isolated shared "OTP$1-setup" sh "$here/inside.sh" "$tree" env MACULA_NIF_PATH="$(nif plain)" ./dev setup
    isolated own "OTP$1-versions" sh "$here/inside.sh" "$tree" sh test/matrix/versions.sh
    read -r found elixir <"$logs/OTP$1-versions.log"
    [ "$found" = "$1" ] || die "$tree holds OTP $found instead of $1"
    for part in unit dist release; do
        run_part "$1" "$part"
    done
}

# All of it anew: what a former run has left says nothing about this one.
copy_checkout() {
    rm -rf "$tree/root/macula" "$tree/root/prebuilt"
    mkdir -p "$tree/root/macula"
    tar --exclude-vcs --exclude=./_build --exclude=./target --exclude=./fuzz/target --exclude='./priv/*.so' \
        -C "$root" -cf - . | tar -C "$tree/root/macula" -xf -
    cp -R "$prebuilt" "$tree/root/prebuilt"
    (cd "$prebuilt" && sha256sum ./*/priv/macula_nif.so) >>"$tree/root/macula/native/prebuilt.sha256"
}

# nif plain|measure: where the library is in a tree.
nif() {
    echo "/root/prebuilt/$1/priv/macula_nif.so"
}

# run_part OTP PART: one row of the table.
run_part() {
    case $2 in
    release) library=plain ;;
    *) library=measure ;;
    esac
    echo "== OTP $1: ./dev test $2"
    began=$(date +%s)
    result=passed
    isolated own "OTP$1-$2" sh "$here/inside.sh" "$tree" env MACULA_NIF_PATH="$(nif "$library")" \
        MACULA_TEST_TOOLS=/root/prebuilt/tools ./dev test "$2" || result=FAILED
    [ "$result" = passed ] || failed=1
    # shellcheck disable=SC2046 # three numbers
    row "$1" "$elixir" "$2" "$result" $(count_cases "$2" "$logs/OTP$1-$2.log" "$tree/root/macula/_build") \
        "$(($(date +%s) - began))" >>"$table"
}

row() {
    printf '%-4s %-8s %-8s %-7s %6s %7s %8s %8s\n' "$@"
}

# ---------------------------------------------------------------------------------------------------------------------

# shellcheck disable=SC2086 # one argument each
[ $# -gt 0 ] || set -- $supported
for otp in "$@"; do
    debian_with "$otp" >/dev/null
done
check_tools
mkdir -p "$logs" "$trees"
row OTP Elixir part result ok failed skipped seconds >"$table"
failed=0
echo "== the native library and the tests' programs, built here"
isolated shared prebuilt sh "$here/prebuilt.sh" "$prebuilt"
for otp in "$@"; do
    run_otp "$otp"
done
echo
cat "$table"
exit "$failed"
