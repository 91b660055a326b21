# What the checks in the machines of scripts/package-boots.sh have in common.
# shellcheck shell=sh
set -eu

say() {
    echo "== $*"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# soon WHAT COMMAND…: holds within a minute.
soon() {
    what=$1
    shift
    left=120
    until "$@" > /tmp/soon 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || fail "$what: $(cat /tmp/soon)"
        sleep 0.5
    done
}

# property UNIT NAME
property() {
    systemctl show --property "$2" --value "$1"
}

# is UNIT STATE [NAME]
is() {
    [ "$(property "$1" "${3:-ActiveState}")" = "$2" ]
}

# logged UNIT TEXT: in this boot.
logged() {
    journalctl --boot --no-pager --output cat --unit "$1" | grep -qF -e "$2"
}

install_packages() {
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" > /tmp/apt 2>&1 || {
        cat /tmp/apt
        fail "apt does not install $*"
    }
}

units_of() {
    dpkg -L "$@" | grep -E '/systemd/system/.*\.(service|socket|timer)$'
}

nothing_runs_by_itself() {
    for unit in $(units_of "$@"); do
        name=$(basename "$unit")
        ! find /etc/systemd/system -name "$name" | grep . || fail "$name was enabled by its installation"
        case $name in *@*) continue ;; esac
        is "$name" inactive || fail "$name was started by its installation"
    done
}

# Also what systemd says of other units, which `systemd-analyze verify` reads along.
systemd_takes_units_of() {
    said=$(systemd-analyze verify --man=no $(units_of "$@") 2>&1) || fail "systemd-analyze verify: $said"
    ! echo "$said" | grep -E 'vrot|vtpm' || fail "systemd-analyze verify says something"
}

# confined UNIT: systemd's restrictions hold for its process.
confined() {
    process=/proc/$(property "$1" MainPID)
    grep -q '^NoNewPrivs:[[:space:]]*1$' "$process/status" || fail "$1 may get new rights"
    grep -q '^Seccomp:[[:space:]]*2$' "$process/status" || fail "$1 has all system calls"
    ! nsenter --target "${process#/proc/}" --mount touch /usr/probe 2> /tmp/probe || fail "$1 may write to /usr"
    grep -qi 'read-only' /tmp/probe || fail "$1: $(cat /tmp/probe)"
}

# no_secret TEXT…: not in the journal.
no_secret() {
    for secret in "$@"; do
        ! journalctl --no-pager --output cat | grep -qF -e "$secret" || fail "the journal has a secret"
    done
}

# Nothing that a unit needs is out of its reach: neither a system call nor a file nor a device.
nothing_was_out_of_reach() {
    ! journalctl --dmesg --no-pager --output cat | grep -E 'type=1326|apparmor="DENIED"' ||
        fail "the kernel refused something"
    for unit in $(units_of "$@"); do
        name=$(basename "$unit" | sed 's/@\./@*./')
        ! journalctl --no-pager --output cat --unit "$name" |
            grep -iE 'permission denied|not permitted|code=dumped|status=31/SYS|panicked' ||
            fail "$name is refused something"
    done
}

# Purged, with everything but users and groups.
gone() {
    left=$(find / /run -xdev \( -path /var/log -o -path /var/cache -o -path /packages -o -path /newer -o -path /checks \
        -o -path /root -o -path /tmp -o -path /usr/lib/modules \) -prune -o \( -name '*vrot*' -o -name '*vtpm*' \) -print)
    [ -z "$left" ] || fail "purging leaves $left"
    ! systemctl --no-pager --no-legend list-units --all 'v*' | grep -E 'vrot|vtpm' || fail "systemd still knows units"
    ! systemctl --no-pager --no-legend --failed | grep . || fail "units failed"
}
