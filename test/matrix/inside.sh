#!/bin/sh
# Runs a command in a tree, as the first process of namespaces that run.sh has made: there everything mounted here is
# gone, and everything started here is dead, when this ends.
#
#   inside.sh TREE COMMAND...
set -eu
tree=$1
shift

# The root of a mount, without which nothing in there can have mounts of its own.
mount --bind "$tree" "$tree"
mount --rbind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
mount -t sysfs sysfs "$tree/sys"
mount -t tmpfs tmpfs "$tree/run"
mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
for file in /etc/hosts /etc/resolv.conf; do
    touch "$tree$file"
    mount --bind "$file" "$tree$file"
done
# A network of its own begins without any.
ip link set lo up

# Not by exec: somebody must wait for the processes that lose their parent.
chroot "$tree" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    sh -c 'cd /root/macula && exec "$@"' sh "$@" && status=0 || status=$?
exit "$status"
