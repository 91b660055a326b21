#!/bin/sh
# Installs, upgrades, removes and purges the Debian packages in a fresh root of each release, and
# checks what is there after each step. As root; needs debootstrap and a mirror.
#
#   scripts/package-roots.sh [RELEASE…]      by default bookworm trixie
#
# debian-roots.sh says how roots and packages are made. systemd does not run in them: what the packages say
# to it (systemctl) is not carried out here, but by scripts/package-boots.sh.
set -eu
umask 022
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

# shellcheck source=scripts/debian-roots.sh
. "$(dirname "$0")/debian-roots.sh"
[ $# -gt 0 ] || set -- bookworm trixie

# is WHAT PATH MODE OWNER GROUP
is() {
    found=$(within stat -c '%a %U %G' "$2" 2>&1) || fail "$release, $1: $2 is missing"
    [ "$found" = "$3 $4 $5" ] || fail "$release, $1: $2 is $found, not $3 $4 $5"
}

absent() {
    [ ! -e "$scratch/root$2" ] || fail "$release, $1: $2 is there"
}

contains() {
    grep -qF "$3" "$scratch/root$2" || fail "$release, $1: $2 has no line \"$3\""
}

operator_alone() {
    install_packages /packages/vrot-operator.deb
    within dpkg-query -W -f '${Package}\n' > "$scratch/installed"
    ! grep -E '^(libtss2|libtpms|systemd$)' "$scratch/installed" ||
        fail "$release: vrot-operator brought the packages above along"
    within vtpmctl --version > /dev/null || fail "$release: vtpmctl does not start"
    within vtpmctl host policy keygen --out /root/operator.pem > /dev/null ||
        fail "$release: vtpmctl makes no key"
    is "operator alone" /root/operator.pem 600 root root
    within apt-get purge -q -y vrot-operator > /dev/null
    absent "vrot-operator purged" /usr/bin/vtpmctl
    rm "$scratch/root/root/operator.pem" "$scratch/root/root/operator.pem.pub"
}

first_installation() {
    install_packages /packages/vrot-host.deb /packages/vrot-operator.deb /packages/vrot-guest.deb \
        /packages/vrot-device.deb /packages/vrot-tenant.deb /packages/vrot-confirm.deb
    for program in vtpm-managerd vtpm-backend vtpmctl vrot-service vrot-device vrot-tenant \
        vrot-confirm; do
        within "$program" --version > /dev/null || fail "$release: $program does not start"
    done
    is "installed" /etc/vtpm-manager/config.toml 644 root root
    is "installed" /usr/lib/systemd/system/vtpm-managerd.service 644 root root
    is "installed" /usr/lib/systemd/system/vrot-service.service 644 root root
    is "installed" /var/lib/vtpm-manager 700 vtpm-manager vrot
    contains "installed" /etc/passwd "vtpm-manager:"
    contains "installed" /etc/group "vrot:"
    is "installed" /etc/default/vrot-confirm 644 root root
    is "installed" /var/lib/vrot-confirm 700 vrot-confirm vrot-confirm
    within id -nG vrot-confirm | grep -qw tss ||
        fail "$release: vrot-confirm may not use the TPM"
    for name in vtpm-manager vrot-confirm; do
        user=$(within getent passwd "$name")
        case $user in
            *:/usr/sbin/nologin) ;;
            *) fail "$release: a daemon's user can log in: $user" ;;
        esac
    done
    ! within find /etc/systemd -name 'vtpm-managerd*' -o -name 'vrot-service*' \
        -o -name 'vrot-confirm*' | grep . ||
        fail "$release: a service is enabled by its installation"
}

upgrades() {
    config=/etc/vtpm-manager/config.toml
    # Nobody changed it: the new one takes its place.
    CHANGED=yes newer 1 host operator
    install_packages /newer/vrot-host.deb /newer/vrot-operator.deb
    contains "upgraded" $config "# A line that the next version ships."
    # The administrator changed it, and a version comes that ships the same as before.
    echo '# A line of the administrator.' >> "$scratch/root$config"
    CHANGED=yes newer 2 host operator
    install_packages /newer/vrot-host.deb /newer/vrot-operator.deb
    contains "upgraded again" $config "# A line of the administrator."
    # Both changed it: the administrator's stays, and the other lies beside it.
    newer 3 host operator
    install_packages -o Dpkg::Options::=--force-confold /newer/vrot-host.deb \
        /newer/vrot-operator.deb
    contains "upgraded with another configuration" $config "# A line of the administrator."
    [ -e "$scratch/root$config.dpkg-dist" ] ||
        fail "$release: the shipped configuration is not beside the administrator's"
    rm "$scratch/root$config.dpkg-dist"
    is "upgraded" /var/lib/vtpm-manager 700 vtpm-manager vrot
}

# is_ours PROGRAM: whether the one that is found is ours.
is_ours() {
    cmp -s "$scratch/root/usr/bin/$1" "$scratch/ours/usr/bin/$1"
}

in_place_of_swtpm() {
    rm -rf "$scratch/ours"
    dpkg-deb -x "$scratch/root/packages/vrot-swtpm.deb" "$scratch/ours"
    # swtpm is here before, as on a host with libvirt, and is upgraded afterwards.
    install_packages swtpm swtpm-tools
    ! is_ours swtpm || fail "$release: swtpm is ours before vrot-swtpm is installed"
    install_packages /packages/vrot-swtpm.deb
    for program in swtpm swtpm_setup swtpm_ioctl; do
        is_ours "$program" || fail "$release: $program is not ours"
        within "$program.distrib" --help > "$scratch/help" 2>&1 || true
        grep -qi 'usage' "$scratch/help" ||
            fail "$release: swtpm's own $program does not start"
    done
    # A profile for swtpm's program would confine ours, and not let it reach the manager.
    ! within grep -rs '/swtpm\b.*{' /etc/apparmor.d ||
        fail "$release: an AppArmor profile is for /usr/bin/swtpm"
    is "installed" /etc/vtpm-manager/swtpm.toml 644 root root
    contains "installed" /etc/vtpm-manager/swtpm.toml 'mode = "plain"'
    makes_a_tpm "with ours"
    within apt-get install -q -y --reinstall swtpm swtpm-tools > /dev/null
    is_ours swtpm || fail "$release: an upgrade of swtpm takes the place of our program"
    sed -i 's/^mode = .*/mode = "anchored"/' "$scratch/root/etc/vtpm-manager/swtpm.toml"
    newer 1 swtpm
    install_packages /newer/vrot-swtpm.deb
    is_ours swtpm || fail "$release: after an upgrade, swtpm is not ours"
    contains "upgraded" /etc/vtpm-manager/swtpm.toml 'mode = "anchored"'
    within apt-get remove -q -y vrot-swtpm > "$scratch/removal" 2>&1
    grep -q 'have anchored TPMs' "$scratch/removal" ||
        fail "$release: the removal does not warn of anchored TPMs: $(cat "$scratch/removal")"
    contains "removed" /etc/vtpm-manager/swtpm.toml 'mode = "anchored"'
    ! is_ours swtpm || fail "$release: after the removal, swtpm is still ours"
    absent "removed" /usr/bin/swtpm.distrib
    makes_a_tpm "with swtpm's own"
    ! within dpkg-divert --list | grep vrot || fail "$release: a diversion is left"
    install_packages /packages/vrot-swtpm.deb
    is_ours swtpm || fail "$release: installed again, swtpm is not ours"
    within apt-get purge -q -y vrot-swtpm > /dev/null 2>&1
    absent "purged" /etc/vtpm-manager/swtpm.toml
    ! is_ours swtpm || fail "$release: after the purge, swtpm is still ours"
}

makes_a_tpm() {
    rm -rf "$scratch/root/tpm"
    mkdir "$scratch/root/tpm"
    within chmod 777 /tpm
    within swtpm_setup --tpm2 --tpm-state /tpm --createek > "$scratch/setup" 2>&1 ||
        fail "$release, $1: swtpm_setup: $(cat "$scratch/setup")"
    [ -s "$scratch/root/tpm/tpm2-00.permall" ] || fail "$release, $1: there is no TPM"
    rm -rf "$scratch/root/tpm"
}

removal_and_purge() {
    state=/var/lib/vtpm-manager/store.redb
    echo state > "$scratch/root$state"
    echo key > "$scratch/root/var/lib/vrot-confirm/key"
    within apt-get remove -q -y vrot-host vrot-operator vrot-guest vrot-device vrot-confirm \
        vrot-tenant > /dev/null
    contains "removed" /var/lib/vrot-confirm/key key
    contains "removed" /etc/vtpm-manager/config.toml "# A line of the administrator."
    contains "removed" $state state
    absent "removed" /usr/bin/vtpm-managerd
    absent "removed" /usr/lib/systemd/system/vtpm-managerd.service
    # The state is still somebody's.
    contains "removed" /etc/passwd "vtpm-manager:"

    # The others have neither configuration nor scripts for it: they are purged by their removal.
    within apt-get purge -q -y vrot-host vrot-guest vrot-device vrot-confirm > /dev/null
    # The user and the groups stay, as in Debian: their numbers would be given away otherwise.
    contains "purged" /etc/passwd "vtpm-manager:"
    rm -rf "$scratch/root/packages" "$scratch/root/newer"
    left=$(within find / -xdev \( -path /proc -o -path /var/log -o -path /var/cache \) -prune -o \
        \( -name '*vrot*' -o -name '*vtpm*' \) -print)
    [ -z "$left" ] || fail "$release: purging the packages leaves $left"
    known=$(within dpkg-query -W -f '${Package} ${db:Status-Status}\n' 'vrot-*' 2> /dev/null |
        grep -v 'not-installed' || true)
    [ -z "$known" ] || fail "$release: dpkg still knows $known"
}

for release in "$@"; do
    echo "== $release"
    base "$release"
    pack "$release"
    base "$release"
    bring_packages
    operator_alone
    in_place_of_swtpm
    first_installation
    upgrades
    removal_and_purge
    remove "$scratch/root"
    echo "== $release: installed, upgraded, removed and purged"
done
