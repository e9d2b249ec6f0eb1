#!/bin/sh
# OTP's own test suites over macula, compared with a committed run of them over inet_tcp.
#
#   run.sh [SUITE...]             all suites, or these
#   run.sh relay [SUITE...]       some, or these, with a relay between all nodes
#   run.sh baseline [SUITE...]    runs them over inet_tcp, and writes test/otp/baseline
#
# The suites come from Debian's source package of the Erlang that is installed; what is fetched stays
# below _build. See docs/testing.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

die() {
    echo "otp suites: $*" >&2
    exit 1
}

release=$(erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().')
work=$root/_build/otp-suites/OTP$release
source=$work/source

# A sources list and a state of our own: the system's stay as they are.
apt() {
    APT_CONFIG=$work/apt/apt.conf apt-get -q "$@"
}

configure_apt() {
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:?}")
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    cat >"$work/apt/sources.list" <<EOF
deb-src http://deb.debian.org/debian $codename main
deb-src http://deb.debian.org/debian $codename-updates main
deb-src http://deb.debian.org/debian-security $codename-security main
EOF
    cat >"$work/apt/apt.conf" <<EOF
Dir::Etc::SourceList "$work/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
APT::Sandbox::User "";
EOF
}

fetch() {
    version=$(dpkg-query -W -f '${source:Version}' erlang-base 2>/dev/null) ||
        die "the suites come from Debian's source package, and this Erlang is not Debian's."
    rm -rf "$work"
    configure_apt
    # Not every list has to be there: a release in preparation has no security updates.
    apt update || true
    (cd "$work/apt" && apt source --download-only "erlang=$version") ||
        die "Debian's source package erlang $version could not be fetched."
    unpack "$work"/apt/erlang_*.orig.tar.*
    rm -rf "$work/apt"
}

# Twice: as it is, and to be changed for macula.
unpack() {
    mkdir -p "$work/unpacked/inet_tcp"
    tar -xf "$1" -C "$work/unpacked/inet_tcp" --strip-components=1 --wildcards \
        '*/lib/kernel/test' '*/lib/kernel/examples' '*/lib/stdlib/test' '*/erts/emulator/test' \
        '*/lib/common_test/test_server'
    cp -R "$work/unpacked/inet_tcp" "$work/unpacked/macula"
    # The name says that it is whole.
    mv "$work/unpacked" "$source"
}

# What has not changed keeps its time stamp, and is not compiled again.
change_suites() {
    for script in "$here"/patches/*.sed; do
        original=$(find "$source/inet_tcp" -name "$(basename "$script" .sed).erl")
        [ -n "$original" ] || continue
        changed=$source/macula${original#"$source/inet_tcp"}
        sed -f "$script" "$original" >"$changed.new"
        if cmp -s "$changed.new" "$changed"; then rm "$changed.new"; else mv "$changed.new" "$changed"; fi
    done
}

# Copies, so that a build meanwhile does not change what is tested.
copy_macula() {
    rm -rf "$work/macula"
    mkdir -p "$work/macula/priv"
    cp -R "$root/_build/default/lib/macula/ebin" "$work/macula/"
    cp "$root/priv/macula_nif.so" "$work/macula/priv/"
}

[ -d "$source" ] || fetch
if [ "${1:-}" != baseline ]; then
    change_suites
    copy_macula
fi
mkdir -p "$work/tool"
erlc +warnings_as_errors -o "$work/tool" "$here"/*.erl
set -- erl +Bd -noinput -pa "$work/tool" -s otp_suites main -extra "$here" "$work" "$work/macula/ebin" "$@"
# In a network of their own, where no name server is: a node that is down is sought in DNS as well, and cases that call one a
# thousand times run out of time where a name server loses one question in fifty.
if unshare -n ip link set lo up 2>/dev/null; then
    # shellcheck disable=SC2016 # the inner shell expands it
    exec unshare -n sh -c 'ip link set lo up && exec "$@"' own_network "$@"
fi
exec "$@"
