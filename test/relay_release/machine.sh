#!/bin/sh
# Boots this machine's own systemd as the first process of namespaces, over this machine's files, which it sees and cannot
# change: what it writes is kept in memory and is gone with it. Of this machine's services none is started.
#
#   machine.sh FOLDER BINDS...
#
# FOLDER: an empty one, for its files; FOLDER.cgroup will name its control group, which is to be removed when it has ended.
# BINDS: folders that it shares with this machine. The process that is started here ends it, by SIGKILL.
set -eu

enter() {
    hierarchy=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
    group=$hierarchy$(sed -n 's/^0:://p' /proc/self/cgroup)/macula-relay-$$
    mkdir "$group"
    echo "$group" >"$1.cgroup"
    # Its systemd takes the group it is in for the root of all.
    echo $$ >"$group/cgroup.procs"
    exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child sh "$0" inside "$@"
}

# files FOLDER: $root is this machine's, with all changes below FOLDER, and without its services and its journal.
files() {
    root=$1/root
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/upper" "$1/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
    rm -rf "$root/etc/systemd/system" "$root/var/log/journal"
    mkdir "$root/etc/systemd/system"
    : >"$root/etc/fstab"
    # What an installation by hand may have left here.
    rm -rf "$root/opt/macula-relay" "$root/etc/macula-relay" "$root/etc/letsencrypt" \
        "$root/var/lib/macula-relay" "$root/var/lib/private/macula-relay"
    sed -i '/^macula-relay:/d' "$root/etc/passwd" "$root/etc/group" "$root/etc/shadow" "$root/etc/gshadow"
}

kernel_files() {
    mkdir -p "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/dev"
    mount -t proc proc "$root/proc"
    # Settings of the kernel are the whole machine's.
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
}

devices() {
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for number in 0 1 2; do
        ln -s "fd/$number" "$root/dev/$(echo stdin stdout stderr | cut -d ' ' -f $((number + 1)))"
    done
}

boot() {
    ip link set lo up
    hostname relay
    files "$1"
    kernel_files
    devices
    shift
    for shared; do
        mkdir -p "$root$shared"
        mount --bind "$shared" "$root$shared"
    done
    cat >"$root/etc/systemd/system/macula-test.target" <<'EOF'
[Unit]
Requires=basic.target
After=basic.target
EOF
    mkdir "$root/run/before"
    cd "$root"
    pivot_root . run/before
    umount -l /run/before
    exec env -i container=macula PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=macula-test.target
}

if [ "$1" = inside ]; then
    shift
    boot "$@"
else
    enter "$@"
fi
