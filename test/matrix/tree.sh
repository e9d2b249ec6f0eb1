#!/bin/sh
# Makes a tree that is not there yet: a Debian system below a folder.
#
#   tree.sh TREE DEBIAN_RELEASE
set -eu
tree=$1
release=$2
mirror=http://deb.debian.org/debian

if [ -d "$tree" ]; then
    echo "$tree is there"
    exit 0
fi
rm -rf "$tree.new"
# What makes the unstable release makes those, too, that this debootstrap is too old to know.
script=
[ -e "/usr/share/debootstrap/scripts/$release" ] || script=sid
# shellcheck disable=SC2086 # no argument where there is none
debootstrap --variant=minbase "$release" "$tree.new" "$mirror" $script
# Packages start no services there.
printf '#!/bin/sh\nexit 101\n' >"$tree.new/usr/sbin/policy-rc.d"
chmod 755 "$tree.new/usr/sbin/policy-rc.d"
# A mirror that is some days behind will do; what it has must be signed all the same.
echo 'Acquire::Check-Valid-Until "false";' >"$tree.new/etc/apt/apt.conf.d/99matrix"
# The name says that it is whole.
mv "$tree.new" "$tree"
