# Sourced by run.sh: the relay as a service, by the commands of docs/guides/run-a-relay.md, typed into a machine with a
# systemd of its own (machine.sh), and nodes that attach to it there.
# shellcheck shell=sh disable=SC2034,SC2154 # used and set by run.sh

# can_boot: whether there is all that machine.sh needs; says what is not.
can_boot() {
    [ "$(id -u)" -eq 0 ] || { echo "not root" && return 1; }
    [ -x /lib/systemd/systemd ] || { echo "systemd is not installed" && return 1; }
    grep -q ' cgroup2 rw' /proc/self/mounts || { echo "no control groups of version 2 that can be written" && return 1; }
    # In memory, as machine.sh has it: where the root is an overlay itself, another one may be refused.
    # shellcheck disable=SC2016 # the inner shell expands it
    unshare --mount --pid --net --ipc --uts --cgroup --fork sh -c 'mount -t tmpfs tmpfs "$1" && mkdir "$1/u" "$1/w" "$1/r" &&
        mount -t overlay overlay -o "lowerdir=/,upperdir=$1/u,workdir=$1/w" "$1/r"' sh "$1" 2>/dev/null ||
        { echo "no namespaces, or no overlay of /" && return 1; }
}

boot_machine() {
    start machine.log sh "$root/test/relay_release/machine.sh" "$work/machine" "$root"
    machine=$pid
    eventually 100 "the machine does not boot" machine.log on_machine systemctl is-active --quiet macula-test.target
}

# The first process in there is the only child of the one that was started.
on_machine() {
    first=$(cat "/proc/$machine/task/$machine/children") 2>/dev/null || return 1
    nsenter --target "${first% }" --all "$@" 2>/dev/null
}

remove_machine() {
    stop_all
    [ -s machine.cgroup ] || return 0
    group=$(cat machine.cgroup)
    left=50
    # Until the last of its processes is gone.
    until [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 0
        sleep 0.1
    done
}

# follow NAME [SED]: types the commands of the guide; its realm is that of our nodes.
follow() {
    { echo 'set -eu' && echo "cd '$root'" && block run "$1"; } | sed "s|io\.example|shop|; ${2:-}" >"guide.$1.sh"
    on_machine sh "$work/guide.$1.sh" >out 2>&1 || fail "the guide's commands '$1' fail" out
}

# has_renewed: as the client of Let's Encrypt does, which keeps its files to root.
has_renewed() {
    on_machine sh -euc "umask 077; mkdir -p $lineage; cp '$work/relay.key' $lineage/privkey.pem; cp '$work/relay.pem' $lineage/fullchain.pem"
}

service() {
    on_machine systemctl "$@" macula-relay
}

journal() {
    on_machine journalctl --no-pager -o cat -u macula-relay >journal || true
}

service_is_well() {
    [ "$(on_machine env MACULA_RELAY_PORT=443 /opt/macula-relay/bin/relay health | cut -c1-14)" = '{"status":"ok"' ]
}

service_has_nodes() {
    on_machine /opt/macula-relay/bin/relay health | grep -q "\"nodes\":$1,"
}

until_service_is_well() {
    eventually 100 "the service does not get well" journal service_is_well
    journal
}

# confined SHELL_COMMAND: what must fail for the service's processes, and does not for root.
confined() {
    on_machine sh -c "$1" >/dev/null || fail "root itself cannot do: $1" machine.log
    echo "$1" >>forbidden
}

# The unit once more, with other commands than the relay.
probe() {
    on_machine sh -c "sed '/^Environment/d; /^ExecStartPre=/d; /^Restart/d; /^StateDirectory/d;
        s|^ExecStart=.*|Type=oneshot\nExecStart=/bin/sh -x /etc/macula-relay/probe.sh|' /etc/systemd/system/macula-relay.service \
        >/etc/systemd/system/probe.service; systemctl daemon-reload"
    {
        echo 'cat /etc/macula-relay/tls/privkey.pem >/dev/null || exit 1'
        while read -r command; do echo "! ( $command ) || exit 1"; done <forbidden
    } >probe.sh
    # Its /tmp is another one than ours.
    on_machine install -m 644 "$work/probe.sh" /etc/macula-relay/probe.sh
    on_machine systemctl start probe || {
        on_machine journalctl --no-pager -o cat -u probe >journal
        fail "the unit lets its processes do what it should not" journal
    }
}

as_service() {
    trap remove_machine EXIT
    boot_machine
    lineage=/etc/letsencrypt/live/relay.example.org
    certify first
    cp relay.pem relay.key kept/
    follow copy
    follow configure
    grep -q '^a relay at port 4433, realms: shop (1 token(s)), peers: none$' out || fail "not what the guide sets up" out
    has_renewed
    follow certificates
    block file certificates >certificates.config
    on_machine sed -i "/port =>/r $work/certificates.config" /etc/macula-relay/relay.config
    # A port that needs the unit's one capability, and that no node takes.
    on_machine sh -c 'echo MACULA_RELAY_PORT=443 >/etc/macula-relay/environment'
    follow service
    until_service_is_well
    grep -q '^a relay at port 443,' journal || fail "the journal does not say what it is" journal
    echo "relay's release: the guide's commands make it a service, which is well"

    main=$(service show -P MainPID)
    on_machine cat "/proc/$main/status" >out
    for line in 'Uid:.[1-9]' 'NoNewPrivs:.1' 'CapEff:.0*400$' 'Seccomp:.2'; do
        grep -q "^$line" out || fail "the service's process has no $line" out
    done
    : >forbidden
    confined 'grep -q "^[^ ]* / [^ ]* rw" /proc/self/mounts'
    confined 'test -r /home'
    on_machine touch /tmp/of_others
    confined 'test -e /tmp/of_others'
    confined 'test -e /proc/1/status'
    confined "cat $lineage/privkey.pem"
    confined 'unshare --user true'
    confined 'setarch --addr-no-randomize true'
    probe
    echo "relay's release: as a service it has port 443, reads its files, and does none of $(wc -l <forbidden) things that it should not"

    token=$(on_machine sed -n 's/.*{tokens, \[<<"\(.*\)">>\].*/\1/p' /etc/macula-relay/relay.config)
    node_a=d$$@localhost
    node_b=e$$@localhost
    on_network="nsenter --target ${first% } --net"
    relays=https://localhost:443
    node "$node_a" "$relays" first.pem
    pid_a=$pid
    node "$node_b" "$relays" first.pem "$node_a"
    wait_for "$node_b.log" 'talker: answered' 60 "$pid"
    certify second
    has_renewed
    on_machine env RENEWED_LINEAGE="$lineage" /etc/letsencrypt/renewal-hooks/deploy/macula-relay
    node "f$$@localhost" "$relays" second.pem
    wait_for "f$$@localhost.log" 'talker: attached' 60 "$pid"
    kill -9 "$pid"
    ! grep -q 'talker: down' "$node_a.log" || fail "a node lost its attachment" "$node_a.log"
    echo "relay's release: nodes reach each other through the service, which takes new certificates from the guide's hook"

    # The two trust the first CA alone.
    cp kept/relay.key kept/relay.pem .
    has_renewed
    on_machine env RENEWED_LINEAGE="$lineage" /etc/letsencrypt/renewal-hooks/deploy/macula-relay
    service restart || fail "it does not restart" machine.log
    wait_for "$node_a.log" "talker: draining $relays" 10 "$pid_a"
    until_service_is_well
    outlived
    service kill --signal=KILL --kill-who=main
    eventually 50 "systemd does not start it again" machine.log has_restarted
    until_service_is_well
    outlived
    echo "relay's release: systemd restarts it, also when it is killed, and the link outlives that"

    service stop
    journal
    [ "$(service show -P Result)/$(service show -P ExecMainStatus)" = success/0 ] || fail "it does not end as it should" journal
    on_machine chmod 600 /etc/macula-relay/relay.config
    ! service start || fail "it starts with a file that it cannot read" journal
    journal
    grep -q '^/etc/macula-relay/relay.config: permission denied$' journal || fail "the journal does not name the file" journal
    service stop
    echo "relay's release: it ends with status 0, and its journal says what is wrong with a file"
}

has_restarted() {
    [ "$(service show -P NRestarts)" -ge 1 ]
}

outlived() {
    answers=$(answers)
    talks_on 150 $((answers + 20))
    ! grep -q 'talker: nodedown' "$node_b.log" || fail "the nodes lost each other" "$node_b.log"
}
