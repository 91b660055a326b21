#!/bin/sh
# Builds the Debian packages vrot-host, vrot-operator, vrot-swtpm, vrot-guest, vrot-device,
# vrot-confirm and vrot-tenant, for the release of Debian (or its like) and the architecture that this
# runs on.
#
#   scripts/deb.sh [FOLDER]
#
# They are written to FOLDER, by default target/deb. DEB_PROGRAMS names a folder with built
# programs; without it, release programs are built. DEB_MAINTAINER is who answers for the
# packages.
#
# The same sources and the same toolchain give the same bytes, wherever they lie: a vRoT's
# certificate carries the digests of manager and backend, and a verifier can tell them in advance.
set -eu
umask 022
export LC_ALL=C TZ=UTC

root=$(cd "$(dirname "$0")/.." && pwd)
packaging=$root/vtpm-manager/packaging
target=${CARGO_TARGET_DIR:-$root/target}
output=${1:-$target/deb}
maintainer=${DEB_MAINTAINER:-The vRoT maintainers <maintainers@vrot.invalid>}
cargo=${CARGO:-cargo}
cargo_home=${CARGO_HOME:-$HOME/.cargo}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
architecture=$(dpkg --print-architecture)

mkdir -p "$output"
output=$(cd "$output" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

programs=${DEB_PROGRAMS:-}
if [ -z "$programs" ]; then
    echo "== building release programs (several minutes the first time)"
    # A folder of their own: other flags than those of other builds.
    build=$target/deb/build
    flags="--remap-path-prefix=$root=/vrot --remap-path-prefix=$cargo_home=/cargo"
    (cd "$root" && RUSTFLAGS="${RUSTFLAGS:-} $flags" CARGO_TARGET_DIR="$build" \
        "$cargo" build --locked --release --bins \
        -p vtpm-manager -p vtpmctl -p vtpm-backend -p swtpm-drop-in -p vrot-device -p vrot-service \
        -p vrot-confirm -p vrot-tenant -p vrot-manual)
    programs=$build/release
fi

# The time of all files: that of the last change to the sources, where that is known. Not set
# earlier: C libraries would be built anew with every change.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$root" log -1 --format=%ct 2> /dev/null ||
        stat -c %Y "$root/Cargo.lock")
fi
export SOURCE_DATE_EPOCH

# put MODE FILE PACKAGE PATH
put() {
    install -D -m "$1" "$2" "$scratch/$3/$4"
}

# program NAME PACKAGE, with its manual pages and its completion for shells
program() {
    put 0755 "$programs/$1" "$2" "usr/bin/$1"
    strip --strip-unneeded --remove-section=.comment "$scratch/$2/usr/bin/$1"
    [ -d "$scratch/manual" ] || "$programs/vrot-manual" "$scratch/manual"
    (cd "$scratch/manual/$1" && find . -type f) | while read -r file; do
        put 0644 "$scratch/manual/$1/$file" "$2" "usr/share/$file"
    done
    find "$scratch/$2/usr/share/man" -name '*.1' -exec gzip -9n {} +
}

# Name, version and licence of all libraries in the programs of some crates, and each of their
# licence texts once.
third_party_licences() {
    : > "$scratch/tree"
    for crate in "$@"; do
        (cd "$root" && "$cargo" tree --locked --package "$crate" --edges normal --prefix none \
            --format '{p}|{l}') >> "$scratch/tree"
    done
    sed -n '/ (\//d; s/ (\*)$//; s/ v\([^ |]*\)[^|]*|/|\1|/p' "$scratch/tree" | sort -u \
        > "$scratch/crates"
    : > "$scratch/paths"
    while IFS='|' read -r name number _; do
        find "$cargo_home"/registry/src/*/"$name-$number" -maxdepth 1 -type f \
            \( -iname 'licen[cs]e*' -o -name 'COPY*' -o -name 'NOTICE*' -o -name 'UNLICENSE*' \) |
            sort >> "$scratch/paths"
    done < "$scratch/crates"
    xargs -d '\n' sha256sum < "$scratch/paths" > "$scratch/digests"
    # The digest is in the first 64 columns, the path begins in column 67.
    awk -F '|' '
        FILENAME == ARGV[1] {
            count = split(substr($0, 67), part, "/")
            texts[part[count - 1]] = texts[part[count - 1]] \
                sprintf("    %s: text %s\n", part[count], substr($0, 1, 16))
            next
        }
        { printf "%s %s: %s\n%s", $1, $2, $3, texts[$1 "-" $2] }
    ' "$scratch/digests" "$scratch/crates"
    sort -u -k 1,1 "$scratch/digests" | while read -r digest text; do
        printf '\n==== text %.16s ====\n\n' "$digest"
        cat "$text"
    done
}

# What the package's programs are linked with: the packages of this Debian that have it.
shared_libraries() {
    mkdir -p "$scratch/shlibs/debian"
    printf 'Source: vrot\n\nPackage: %s\nArchitecture: any\n' "$1" \
        > "$scratch/shlibs/debian/control"
    rm -f "$scratch/substvars"
    (cd "$scratch/shlibs" &&
        dpkg-shlibdeps --warnings=0 -T"$scratch/substvars" "$scratch/$1"/usr/bin/*)
    sed -n 's/^shlibs:Depends=//p' "$scratch/substvars"
}

# finish PACKAGE CRATE…
finish() {
    package=$1
    shift
    tree=$scratch/$package
    documents=usr/share/doc/$package
    # README.md leads to those in docs.
    for document in README.md SECURITY.md $(cd "$root" && echo docs/*.md); do
        put 0644 "$root/$document" "$package" "$documents/$document"
    done
    put 0644 "$packaging/copyright" "$package" "$documents/copyright"
    licences=$scratch/licences-$*
    [ -e "$licences" ] || third_party_licences "$@" > "$licences"
    gzip -9n < "$licences" > "$tree/$documents/third-party-licences.gz"
    {
        printf 'vrot (%s) unstable; urgency=medium\n\n  * See the history of the sources.\n\n' \
            "$version"
        printf ' -- %s  %s\n' "$maintainer" "$(date -R -d "@$SOURCE_DATE_EPOCH")"
    } | gzip -9n > "$tree/$documents/changelog.gz"

    control=$tree/DEBIAN
    mkdir "$control"
    for script in preinst postinst prerm postrm; do
        [ ! -e "$packaging/$package/$script" ] ||
            install -m 0755 "$packaging/$package/$script" "$control/$script"
    done
    (cd "$tree" && find etc -type f 2> /dev/null | sort | sed 's,^,/,') > "$control/conffiles"
    [ -s "$control/conffiles" ] || rm "$control/conffiles"
    (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) > "$control/md5sums"
    # Opened by name at run time, so no program is linked with it.
    tcti=$(dpkg-query -S '*/libtss2-tcti-device.so.0' | sed 's/[:,].*//; q')
    depends=$(shared_libraries "$package")
    size=$(cd "$tree" && find usr etc -type f -printf '%s\n' 2> /dev/null |
        awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
    sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" \
        -e "s/@MAINTAINER@/$maintainer/" -e "s/@SIZE@/$size/" -e "s/@TCTI@/$tcti/" \
        -e "s/@DEPENDS@/$depends/" \
        "$packaging/$package/control" > "$control/control"
    find "$tree" -type d -exec chmod 0755 {} +
    find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group --build "$tree" \
        "$output/${package}_${version}_${architecture}.deb"
}

for name in vtpm-managerd vtpm-backend; do
    program "$name" vrot-host
done
put 0644 "$packaging/vrot-host/config.toml" vrot-host etc/vtpm-manager/config.toml
put 0644 "$packaging/vrot-host/vtpm-managerd.service" vrot-host \
    usr/lib/systemd/system/vtpm-managerd.service
put 0644 "$packaging/vrot-host/vtpm-manager.sysusers" vrot-host \
    usr/lib/sysusers.d/vtpm-manager.conf
put 0644 "$packaging/vrot-host/vtpm-manager.tmpfiles" vrot-host \
    usr/lib/tmpfiles.d/vtpm-manager.conf
put 0644 "$packaging/vrot-host/libvirt.toml" vrot-host etc/vtpm-manager/libvirt.toml
put 0755 "$packaging/vrot-host/libvirt-hook" vrot-host etc/libvirt/hooks/qemu.d/vrot
put 0644 "$packaging/vrot-host/apparmor-libvirt-qemu" vrot-host \
    etc/apparmor.d/abstractions/libvirt-qemu.d/vrot
for unit in vrot-dashboard.service vrot-libvirt-sync.service vrot-libvirt-sync.timer \
    vtpm-managerd-tenants.socket; do
    put 0644 "$packaging/vrot-host/$unit" vrot-host "usr/lib/systemd/system/$unit"
done
iasl -p "$scratch/tpm-i2c" "$root/images/tpm-i2c.asl" > "$scratch/iasl.log" 2>&1 || {
    cat "$scratch/iasl.log" >&2
    echo "deb: images/tpm-i2c.asl cannot be compiled; iasl is in the package acpica-tools" >&2
    exit 1
}
put 0644 "$scratch/tpm-i2c.aml" vrot-host usr/share/vrot/tpm-i2c.aml
for file in prometheus-rules.yml grafana-dashboard.json; do
    put 0644 "$packaging/vrot-host/monitoring/$file" vrot-host "usr/share/vrot/$file"
done
finish vrot-host vtpm-manager vtpm-backend

program vtpmctl vrot-operator
finish vrot-operator vtpmctl

for name in swtpm swtpm_setup swtpm_ioctl; do
    program "$name" vrot-swtpm
done
put 0644 "$packaging/vrot-swtpm/swtpm.toml" vrot-swtpm etc/vtpm-manager/swtpm.toml
finish vrot-swtpm swtpm-drop-in

program vrot-service vrot-guest
put 0644 "$packaging/vrot-guest/vrot-service.default" vrot-guest etc/default/vrot-service
put 0644 "$packaging/vrot-guest/vrot-service.service" vrot-guest \
    usr/lib/systemd/system/vrot-service.service
put 0644 "$packaging/vrot-guest/vrot-proxy@.service" vrot-guest \
    usr/lib/systemd/system/vrot-proxy@.service
finish vrot-guest vrot-service

program vrot-device vrot-device
put 0644 "$packaging/vrot-device/vrot-device-proxy@.service" vrot-device \
    usr/lib/systemd/system/vrot-device-proxy@.service
finish vrot-device vrot-device

program vrot-confirm vrot-confirm
put 0644 "$packaging/vrot-confirm/vrot-confirm.default" vrot-confirm etc/default/vrot-confirm
put 0644 "$packaging/vrot-confirm/vrot-confirm.service" vrot-confirm \
    usr/lib/systemd/system/vrot-confirm.service
put 0644 "$packaging/vrot-confirm/vrot-confirm.sysusers" vrot-confirm \
    usr/lib/sysusers.d/vrot-confirm.conf
put 0644 "$packaging/vrot-confirm/vrot-confirm.tmpfiles" vrot-confirm \
    usr/lib/tmpfiles.d/vrot-confirm.conf
finish vrot-confirm vrot-confirm

program vrot-tenant vrot-tenant
finish vrot-tenant vrot-tenant
