#!/bin/sh
# Runs what the systemd unit of a relay runs, as the unit has it run, without systemd: its user, its capabilities, its file
# systems and its environment are made with util-linux. As root: `unshare --mount --net sh as_unit.sh RELEASE'; nothing of it
# is seen outside. What only systemd can do is left out: system call filters, families of addresses, its own supervision.
set -eu
release=$1
unit=$release/etc/macula-relay.service
home=/var/lib/macula-relay
# Any of those that DynamicUser=yes may choose (systemd.exec(5)).
user=64999
# As an operator writes it into /etc/macula-relay/environment: a port that needs the unit's one capability.
port=443

# setting NAME: what the unit says.
setting() {
    sed -n "s/^$1=//p" "$unit"
}

ip link set lo up
mount -t tmpfs tmpfs /opt
mkdir /opt/macula-relay
mount --bind "$release" /opt/macula-relay
# StateDirectory=, ProtectHome=, PrivateTmp= and ProtectSystem=strict.
mount -t tmpfs tmpfs /var/lib
install -d -o "$user" -g "$user" -m 700 "$home"
mount -t tmpfs -o mode=000 tmpfs /home
mount -t tmpfs -o mode=000 tmpfs /root
mount -t tmpfs -o mode=1777 tmpfs /tmp
unit=/opt/macula-relay/etc/macula-relay.service
for folder in / /opt /opt/macula-relay; do
    mount -o remount,bind,ro "$folder"
done
cd /

# as_user COMMAND...: with what the unit grants, and nothing else.
as_user() {
    capabilities=$(setting AmbientCapabilities | tr '[:upper:]' '[:lower:]' | sed 's/cap_/+/g; s/ /,/g')
    # shellcheck disable=SC2046,SC2086 # the settings are words
    exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set "-all,$capabilities" \
        --inh-caps "-all,$capabilities" --ambient-caps "-all,$capabilities" \
        env -i PATH=/usr/bin:/bin $(setting Environment) MACULA_RELAY_PORT="$port" "$@"
}

# Unless whoever runs this may not.
prlimit --pid $$ --nofile="$(setting LimitNOFILE)" 2>/dev/null || true
# shellcheck disable=SC2046 # a command line
(as_user $(setting ExecStartPre))
# shellcheck disable=SC2046
(as_user $(setting ExecStart)) &
relay=$!
left=50
until health=$(as_user /opt/macula-relay/bin/relay health 2>&1); do
    left=$((left - 1))
    if [ "$left" -eq 0 ] || ! kill -0 "$relay" 2>/dev/null; then
        echo "the relay does not get well: $health" >&2
        kill -KILL "$relay" 2>/dev/null || true
        exit 1
    fi
    sleep 0.2
done
echo "$health"
grep -E '^(Uid|NoNewPrivs|CapEff):' "/proc/$relay/status"
ls -A "$home"
kill -TERM "$relay"
wait "$relay"
echo "ended with status $?"
