# Fresh roots of Debian's releases, and our packages for them; read by package-roots.sh and package-boots.sh,
# which say what is done with them.
#
# Libraries have other package names in each release. So the packages for a release are packed by
# scripts/deb.sh within a root of it, all of the same programs: those in the folder DEB_PROGRAMS, or
# those that scripts/deb.sh builds here. Programs that were built on an older Debian run on a newer
# one; where it is the other way round, the programs do not start. The packages are left in
# target/package-roots/RELEASE.
#
# Roots are made with the mirror and the settings of this machine's apt, and kept, without any of our
# packages, in target/package-roots for the next time.
# shellcheck shell=sh

project=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$project/target}
kept=$target/package-roots

fail() {
    echo "$(basename "$0" .sh): $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "only root can make roots: run this as root, or with sudo"
command -v debootstrap > /dev/null || fail "debootstrap is missing: apt-get install debootstrap"

programs=${DEB_PROGRAMS:-}
if [ -z "$programs" ]; then
    sh "$project/scripts/deb.sh" "$target/deb"
    programs=$target/deb/build/release
fi
programs=$(cd "$programs" && pwd)
toolchain=$(cd "$project" && rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
epoch=$(git -C "$project" log -1 --format=%ct 2> /dev/null ||
    stat -c %Y "$project/Cargo.lock")

scratch=$(mktemp -d)
# Folders of this machine are mounted into roots, read-only. Nothing is removed while one is.
remove() {
    sort -r -k 2,2 /proc/self/mounts | while read -r _ place _; do
        case $place in
            "$scratch"/*) umount "$place" ;;
        esac
    done
    ! grep -qF " $scratch/" /proc/self/mounts || fail "cannot unmount what is below $scratch"
    rm -rf --one-file-system "$1"
}
leave() {
    remove "$scratch"
}
trap leave EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$kept"

# The mirror that this machine's apt has Debian from.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' |
    grep -v security | sort | uniq -c | sort -rn | awk 'NR == 1 { print $2 }')
mirror=${mirror:-$(sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' /etc/apt/sources.list | head -n 1)}
[ -n "$mirror" ] || fail "this machine's apt has no mirror of Debian: run apt-get update"

# base RELEASE: a minimal root in $scratch/root, with what our packages need from Debian.
base() {
    archive=$kept/$1.tar
    if [ ! -e "$archive" ]; then
        rm -rf "$scratch/base"
        script=/usr/share/debootstrap/scripts/$1
        # A release that is younger than this debootstrap is made as sid is.
        [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
        debootstrap --variant=minbase "$1" "$scratch/base" "$mirror" "$script" \
            > "$scratch/debootstrap.log" 2>&1 ||
            fail "debootstrap made no root of $1: $(tail -n 3 "$scratch/debootstrap.log")"
        # Proxies and the like; the directories of this machine's apt are not those of the root.
        apt-config dump | grep '^Acquire::' | grep -v '"";$' \
            > "$scratch/base/etc/apt/apt.conf.d/99machine" || true
        # A root has no terminals.
        echo 'Dpkg::Use-Pty "0";' >> "$scratch/base/etc/apt/apt.conf.d/99machine"
        tar --numeric-owner -C "$scratch/base" -cf "$archive.new" .
        mv "$archive.new" "$archive"
        rm -rf "$scratch/base"
    fi
    mkdir "$scratch/root"
    tar --numeric-owner -C "$scratch/root" -xf "$archive"
    cp /etc/resolv.conf "$scratch/root/etc/resolv.conf"
    mount -t proc proc "$scratch/root/proc"
    within apt-get update -q > /dev/null
}

within() {
    chroot "$scratch/root" "$@"
}

# install OPTION… FILE…
install_packages() {
    within apt-get install -q -y --no-install-recommends "$@" > "$scratch/apt.log" 2>&1 || {
        cat "$scratch/apt.log" >&2
        fail "$release: apt does not install $*"
    }
}

# pack RELEASE: the packages, made in the present root, which is thrown away afterwards.
pack() {
    packages=$kept/$1
    rm -rf "$packages"
    mkdir "$packages"
    install_packages acpica-tools binutils dpkg-dev libtpms-dev libtss2-dev tpm-udev
    for folder in "$project" "$programs" "$toolchain" "$cargo_home"; do
        mkdir -p "$scratch/root$folder" 2> /dev/null || true
        mount --bind -o ro "$folder" "$scratch/root$folder"
    done
    within env CARGO="$toolchain/bin/cargo" RUSTC="$toolchain/bin/rustc" CARGO_HOME="$cargo_home" \
        CARGO_NET_OFFLINE=true DEB_PROGRAMS="$programs" SOURCE_DATE_EPOCH="$epoch" \
        DPKG_DEB_COMPRESSOR_TYPE=gzip DPKG_DEB_COMPRESSOR_LEVEL=1 \
        sh "$project/scripts/deb.sh" /packages > "$scratch/pack.log" 2>&1 || {
        cat "$scratch/pack.log" >&2
        fail "$1: the packages cannot be packed"
    }
    cp "$scratch"/root/packages/*.deb "$packages/"
    remove "$scratch/root"
}

# bring_packages: those of pack, into the present root.
bring_packages() {
    mkdir "$scratch/root/packages"
    for name in host operator swtpm guest device confirm tenant; do
        cp "$packages"/vrot-"$name"_*.deb "$scratch/root/packages/vrot-$name.deb"
    done
}

# newer NUMBER NAME…: the same packages in a higher version; CHANGED=yes also ships another configuration.
newer() {
    number=$1
    shift
    rm -rf "$scratch/root/newer"
    mkdir "$scratch/root/newer"
    for name in "$@"; do
        tree=$scratch/tree
        rm -rf "$tree"
        dpkg-deb -R "$(echo "$packages"/vrot-"$name"_*.deb)" "$tree"
        version=$(sed -n 's/^Version: //p' "$tree/DEBIAN/control")
        sed -i "s/^Version: .*/&+$1/; s/(= $version)/(= $version+$1)/" "$tree/DEBIAN/control"
        if [ "$name" = host ] && [ "${CHANGED:-}" = yes ]; then
            echo '# A line that the next version ships.' >> "$tree/etc/vtpm-manager/config.toml"
        fi
        dpkg-deb --root-owner-group -Zgzip -z1 --build "$tree" "$scratch/root/newer/vrot-$name.deb" \
            > /dev/null
    done
}
