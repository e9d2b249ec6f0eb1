#!/bin/sh
# Removes labs whose owner has gone, however it went.
#
#   sh keeper.sh sweep      removes what dead owners have left
#   sh keeper.sh keep LAB   sweeps, says "ready", and removes LAB at the next line of its standard input or the end of
#                           it: that also comes when the owner is killed, which can then no longer clean up itself
#
# A lab is called netlab-PID-START-NUMBER after the process that owns it and the time that one started. Everything of
# a lab bears its name: network namespaces, their files in /etc/netns, and a folder in /run/netlab.
set -eu

labs=/run/netlab

# remove LAB
remove() {
    for namespace in $(namespaces | grep "^$1-"); do
        # Other labs come and go at the same time, and what they do to /run/netns may be in the way for a moment.
        tries=50
        while [ -e "/run/netns/$namespace" ] && [ "$tries" -gt 0 ]; do
            # The stopped ones as well: nothing but SIGKILL ends those.
            ip netns pids "$namespace" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
            ip netns delete "$namespace" 2>/dev/null || sleep 0.1
            tries=$((tries - 1))
        done
        rm -rf "/etc/netns/$namespace"
    done
    rm -rf "${labs:?}/$1"
    # Other labs may have theirs there.
    rmdir /etc/netns "$labs" 2>/dev/null || true
}

# Not by `ip netns list`, which complains of namespaces that others are making at this moment.
namespaces() {
    ls /run/netns 2>/dev/null || true
}

# is_alive PID START
is_alive() {
    # The second field is the command's name, in brackets, and may hold anything.
    [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]
}

sweep() {
    { namespaces; ls "$labs" 2>/dev/null || true; } |
        sed -n 's/^netlab-\([0-9]*\)-\([0-9]*\)-\([0-9]*\).*/\1 \2 \3/p' | sort -u |
        while read -r pid start number; do
            is_alive "$pid" "$start" || remove "netlab-$pid-$start-$number"
        done
}

case $1 in
sweep)
    sweep
    ;;
keep)
    # Ctrl-C reaches every process of the terminal; this one still has work to do then.
    trap '' INT HUP TERM
    sweep
    echo ready
    read -r _ || true
    remove "$2"
    ;;
esac
