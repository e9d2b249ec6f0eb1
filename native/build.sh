#!/bin/sh
# Builds the native library and installs it as priv/macula_nif.so. rebar3 and Mix both come here.
#
#   sh native/build.sh          build and install
#   sh native/build.sh check    only say whether the tools for it are here
#
#   MACULA_NIF_FEATURES   cargo features, separated by commas
#   MACULA_NIF_PROFILE    the profile of cargo's, of Cargo.toml; release when it is not set
#   MACULA_NIF_PATH       a prebuilt library to install instead; must be listed in native/prebuilt.sha256
set -eu
cd "$(dirname "$0")/.."

rust_min=1.91

die() {
    echo "macula: $*" >&2
    exit 1
}

# rustup puts cargo here, and editors and init systems often have a PATH without it.
find_cargo() {
    command -v cargo >/dev/null 2>&1 || PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin
    command -v cargo >/dev/null 2>&1 || die "cargo was not found. The native part is written in Rust $rust_min or newer:
  install it with  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
  or set MACULA_NIF_PATH to a prebuilt library listed in native/prebuilt.sha256."
}

check_tools() {
    find_cargo
    command -v rustc >/dev/null 2>&1 || die "rustc was not found, although cargo was: install Rust $rust_min or newer."
    have=$(rustc --version | cut -d' ' -f2)
    echo "$have" | awk -F. -v min="$rust_min" '{ split(min, m, "."); exit !($1 > m[1] || ($1 == m[1] && $2 >= m[2])) }' ||
        die "Rust $have is too old, $rust_min or newer is needed: rustup update stable"
    command -v "${CC:-cc}" >/dev/null 2>&1 ||
        die "the C compiler ${CC:-cc} was not found; Rust links with it (Debian, Ubuntu: build-essential; macOS: xcode-select --install)."
}

sha256() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1"
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 <"$1"
    else
        die "neither sha256sum nor shasum was found, so $1 cannot be checked."
    fi | cut -d' ' -f1
}

check_prebuilt() {
    [ -f "$1" ] || die "MACULA_NIF_PATH=$1: no such file."
    [ -f native/prebuilt.sha256 ] || die "native/prebuilt.sha256 is missing, so MACULA_NIF_PATH=$1 cannot be checked."
    sum=$(sha256 "$1")
    [ "${#sum}" -eq 64 ] || die "no SHA-256 of $1 could be computed."
    awk -v sum="$sum" '$1 == sum { found = 1 } END { exit !found }' native/prebuilt.sha256 ||
        die "MACULA_NIF_PATH=$1 is refused: its SHA-256 $sum is not listed in native/prebuilt.sha256."
}

# Always asks cargo, which knows better than any time stamp whether something changed.
cargo_build() {
    target=${CARGO_TARGET_DIR:-target}
    features=${MACULA_NIF_FEATURES:-}
    profile=${MACULA_NIF_PROFILE:-release}
    if [ -n "$features" ]; then
        # A directory per set of features: the library has one file name, and would be rebuilt at each change of mind.
        target=$target/nif-$(printf %s "$features" | tr -c 'A-Za-z0-9_' -)
        set -- --features "$features"
    else
        set --
    fi
    CARGO_TARGET_DIR=$target cargo build --profile "$profile" --locked -p macula_nif "$@" >&2 ||
        die "cargo build failed, see above."
    for built in "$target/$profile/libmacula_nif.so" "$target/$profile/libmacula_nif.dylib"; do
        [ -f "$built" ] && return
    done
    die "cargo built no libmacula_nif.so or .dylib in $target/$profile."
}

# A running VM has the old file mapped: it must be replaced by another file, never written into.
install_nif() {
    priv=${REBAR_BARE_COMPILER_OUTPUT_DIR:-.}/priv
    mkdir -p "$priv" || die "$priv cannot be created."
    cmp -s "$1" "$priv/macula_nif.so" && return
    new=$priv/.macula_nif.so.$$
    trap 'rm -f "$new"' EXIT
    cp "$1" "$new"
    chmod 755 "$new"
    rm -f "$priv/macula_nif.so"
    mv -f "$new" "$priv/macula_nif.so"
}

case ${1:-} in
check)
    if [ -n "${MACULA_NIF_PATH:-}" ]; then check_prebuilt "$MACULA_NIF_PATH"; else check_tools; fi
    ;;
'')
    if [ -n "${MACULA_NIF_PATH:-}" ]; then
        check_prebuilt "$MACULA_NIF_PATH"
        install_nif "$MACULA_NIF_PATH"
    else
        check_tools
        cargo_build
        install_nif "$built"
    fi
    ;;
*)
    die "usage: sh native/build.sh [check]"
    ;;
esac
