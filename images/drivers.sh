#!/bin/sh
# Adds to a kernel modules of Linux that Debian's kernels leave out, built from Debian's own source
# package: the two drivers of a TPM behind virtio-i2c, with the ACPI table that says where the TPM is,
# and trusted keys. Nothing is installed on this machine.
#
#   images/drivers.sh DIR
#
# DIR is what `images/kernel.sh DIR linux-image-amd64` made. Into it come `modules/i2c-virtio.ko`,
# `modules/late/tpm_tis_i2c.ko`, `tpm-i2c.aml`, and `keys/asn1_encoder.ko` and `keys/trusted.ko`, which
# guests get that ask for them. Does nothing when they are there already and newer than the recipe.
set -eu

directory=${1:?usage: images/drivers.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
release=$(cat "$directory/release")
directory=$(cd "$directory" && pwd)
table=$directory/tpm-i2c.aml
driver=$directory/modules/late/tpm_tis_i2c.ko
keys=$directory/keys

scratch=$(mktemp -d "$directory/unpack.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

if [ ! -s "$table" ] || [ "$here/tpm-i2c.asl" -nt "$table" ]; then
    iasl -p "$scratch/tpm-i2c" "$here/tpm-i2c.asl" > "$scratch/iasl.log" 2>&1 || {
        cat "$scratch/iasl.log" >&2
        echo "images: tpm-i2c.asl cannot be compiled; iasl is in the package acpica-tools" >&2
        exit 1
    }
    mv "$scratch/tpm-i2c.aml" "$table"
fi
[ -s "$driver" ] && [ -s "$keys/trusted.ko" ] && exit 0

# A package, and those on which it depends whose names begin in the same way.
dependencies() {
    apt-cache depends "$1" 2>/dev/null | awk '/Depends: linux-(headers|kbuild)-/ { print $2 }'
}
headers=linux-headers-$release
sources=linux-source-$(echo "$release" | cut -d . -f 1,2)
packages="$headers $(dependencies "$headers" | tr '\n' ' ') $sources"
echo "images: fetching $packages (about 150 MB)"
# shellcheck disable=SC2086  # a list of words
(cd "$scratch" && apt-get -q -o APT::Sandbox::User=root download $packages) || {
    echo "images: the sources and headers of kernel $release are not to be had from this machine's" \
         "package sources any more: run \`apt-get update\`, remove $directory, and try again" >&2
    exit 1
}

tree=$scratch/tree
mkdir "$tree" "$scratch/drivers"
for package in "$scratch"/linux-headers-*.deb "$scratch"/linux-kbuild-*.deb; do
    dpkg-deb -x "$package" "$tree"
done
# The headers find their other half where they would be installed.
build=$tree/usr/src/$headers
sed -i "s|/usr/src/|$tree/usr/src/|" "$build/Makefile"

# Of the sources, these files: in one pass, for they are far apart.
dpkg-deb --fsys-tarfile "$scratch/$sources"_*.deb |
    tar -xO "./usr/src/$sources.tar.xz" |
    tar -xJ -C "$scratch/drivers" --strip-components 1 \
        "$sources/drivers/char/tpm/tpm.h" "$sources/drivers/char/tpm/tpm_tis_core.h" \
        "$sources/drivers/char/tpm/tpm_tis_i2c.c" "$sources/drivers/i2c/busses/i2c-virtio.c" \
        "$sources/include/linux/asn1.h" "$sources/include/linux/asn1_ber_bytecode.h" \
        "$sources/lib/asn1_encoder.c" "$sources/scripts/asn1_compiler.c" \
        "$sources/security/keys/trusted-keys"
work=$scratch/work
mkdir "$work"
(cd "$scratch/drivers" && mv drivers/char/tpm/* drivers/i2c/busses/* lib/* security/keys/trusted-keys/* "$work")
# The format of a sealed key is compiled by a program of the kernel's sources.
cc -I "$scratch/drivers/include" -o "$scratch/asn1_compiler" "$scratch/drivers/scripts/asn1_compiler.c"
(cd "$work" && "$scratch/asn1_compiler" tpm2key.asn1 tpm2key.asn1.c tpm2key.asn1.h)
cat > "$work/Makefile" << 'END'
obj-m := i2c-virtio.o tpm_tis_i2c.o asn1_encoder.o trusted.o
trusted-y := trusted_core.o trusted_tpm1.o trusted_tpm2.o tpm2key.asn1.o
ccflags-y := -DCONFIG_TRUSTED_KEYS_TPM=1
END
# Type information for BPF takes a program more, and the kernel's image.
make -C "$build" M="$work" CONFIG_DEBUG_INFO_BTF_MODULES= modules > "$scratch/make.log" 2>&1 || {
    cat "$scratch/make.log" >&2
    exit 1
}
strip --strip-debug "$work"/*.ko

# The second is loaded after the first has its device running. Loaded before, it would talk to the
# TPM from within the first one's start, and both would wait for ever.
mkdir -p "$directory/modules/late" "$keys"
mv "$work/asn1_encoder.ko" "$work/trusted.ko" "$keys"
mv "$work/i2c-virtio.ko" "$directory/modules/"
mv "$work/tpm_tis_i2c.ko" "$driver"
echo "images: drivers for kernel $release are ready"
