#!/bin/sh
# Tries the README's commands on machines that have nothing: minimal root file systems of Debian 12
# and 13, made by debootstrap. Run it before a release; as root.
#
#   scripts/fresh.sh [bookworm] [trixie]
#
# FRESH_TARGETS   what is made there (`demo`; `demo test` takes longer)
# FRESH_DIR       where the root file systems are made (`target/fresh`); about 6 GB for each, one at a
#                 time, removed when all went well
#
# What is committed is cloned. From this machine come the package sources' host (of `apt-get`), names
# and certificates of the network, and, where this user has one, the Rust toolchain: everything else
# is installed by the commands under test.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
targets=${FRESH_TARGETS:-demo}
folder=${FRESH_DIR:-$here/target/fresh}
[ $# -gt 0 ] || set -- bookworm trixie

# What the README says that a minimal Debian lacks.
first='apt-get install -y --no-install-recommends git make'
grep -qF "$first" "$here/README.md" || {
    echo "fresh: README.md does not have the line that is tried here: $first" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || { echo "fresh: only root can make a root file system: sudo make fresh" >&2; exit 1; }
command -v debootstrap > /dev/null || {
    echo "fresh: debootstrap is missing: apt-get install debootstrap" >&2
    exit 1
}
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2> /dev/null |
    grep -v security | head -n 1)
: "${mirror:=http://deb.debian.org/debian}"

# In a mount and process namespace of its own, so that nothing stays mounted or running.
try() {
    release=$1
    root=$folder/$release
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    # All of Debian's releases are made alike; an older debootstrap has no name for a newer one.
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    echo "== $release: a minimal root file system from $mirror"
    debootstrap --variant=minbase "$release" "$root" "$mirror" "$script" > "$root.log" 2>&1 || {
        tail -n 20 "$root.log" >&2
        return 1
    }
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp /etc/hosts "$root/etc/hosts"
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -R /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    echo "== $release: $first"
    git clone -q --bare "$here" "$root/source.git"
    unshare --mount --pid --fork --propagation private sh -eu -c "$INSIDE" \
        fresh "$root" "$first" "$targets"
    echo "== $release: all went well"
    rm -rf --one-file-system "$root"
}

# The arguments: the root file system, the line of the README, the targets.
INSIDE='
root=$1 first=$2 targets=$3
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
for part in .rustup .cargo/bin; do
    [ -d "$HOME/$part" ] || continue
    mkdir -p "$root/root/$part"
    mount --bind -o ro "$HOME/$part" "$root/root/$part"
done
if [ -e "$HOME/.cargo/config.toml" ]; then
    cp "$HOME/.cargo/config.toml" "$root/root/.cargo/"
fi
exec chroot "$root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive FIRST="$first" TARGETS="$targets" sh -eu -c "
        apt-get update -q
        \$FIRST
        git clone -q /source.git /root/vrot
        cd /root/vrot
        for target in \$TARGETS; do
            echo \"== make \$target\"
            make \"\$target\"
        done"
'

for release in "$@"; do
    try "$release"
done
