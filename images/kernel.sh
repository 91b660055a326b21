#!/bin/sh
# Fetches a kernel of Debian and unpacks it; nothing is installed on this machine.
#
#   images/kernel.sh DIR [PACKAGE]
#
# PACKAGE  linux-image-cloud-amd64, unless said; or linux-image-amd64, which has I2C
#
# leaves in DIR: `vmlinuz`, `modules/*.ko` (the few that the guest loads, uncompressed) and
# `release` (the kernel's version). Does nothing when they are there already.
set -eu

directory=${1:?usage: images/kernel.sh DIR [PACKAGE]}
newest=${2:-linux-image-cloud-amd64}

# The virtio network card and what it depends on. Modules that a kernel has built in are simply
# not found and not needed.
modules="virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net"

[ -s "$directory/release" ] && [ -s "$directory/vmlinuz" ] && exit 0

mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

package_name() {
    apt-cache depends "$newest" 2>/dev/null |
        awk '/Depends: linux-image-[0-9]/ { print $2; exit }'
}

package=$(package_name)
if [ -z "$package" ]; then
    echo "images: no package lists yet, fetching them"
    if [ "$(id -u)" = 0 ]; then apt-get update -q; else sudo apt-get update -q; fi
    package=$(package_name)
fi
if [ -z "$package" ]; then
    echo "images: the package $newest is not to be had from this machine's" \
         "package sources; the guest image needs Debian 12 or 13 (amd64)" >&2
    exit 1
fi

echo "images: fetching the kernel package $package (about 30 MB)"
# The lists may be older than the archive: then the file is gone, and one update helps.
fetch() { (cd "$scratch" && apt-get -q -o APT::Sandbox::User=root download "$package"); }
if ! fetch; then
    if [ "$(id -u)" = 0 ]; then apt-get update -q; else sudo apt-get update -q; fi
    package=$(package_name)
    fetch
fi

mkdir "$scratch/tree"
dpkg-deb -x "$scratch/$package"_*.deb "$scratch/tree"
release=${package#linux-image-}
tree=$scratch/tree

# Since Debian 13 modules may lie below /usr/lib and are compressed.
root=$tree/lib/modules/$release
[ -d "$root" ] || root=$tree/usr/lib/modules/$release
mkdir -p "$directory/modules"
for module in $modules; do
    file=$(find "$root/kernel" -name "$module.ko*" -print -quit)
    [ -n "$file" ] || continue
    case $file in
        *.xz)  xz -dc "$file" > "$directory/modules/$module.ko" ;;
        *.zst) zstd -dcq "$file" > "$directory/modules/$module.ko" ;;
        *)     cp "$file" "$directory/modules/$module.ko" ;;
    esac
done

cp "$tree/boot/vmlinuz-$release" "$directory/vmlinuz"
echo "$release" > "$directory/release"
echo "images: kernel $release is ready"
