#!/bin/sh
# Builds a guest initramfs from this machine's Debian packages and our own binary.
#
#   images/build.sh --kernel DIR --service FILE --output FILE [--tools] [--with DIR]
#                   [--add FILE]
#
# --kernel   what images/kernel.sh made
# --service  the vrot-service binary (`none` for an image without it)
# --tools    adds tpm2-tools, for tests that use stock tools in the guest
# --with     adds what is in a folder, at the same places
# --add      adds a program under its own name, with its libraries
#
# The same inputs give the same bytes, so that the guest's PCR values can be written down.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
kernel='' service='' output='' tools=no with='' added=''
while [ $# -gt 0 ]; do
    case $1 in
        --kernel)  kernel=$2; shift 2 ;;
        --service) service=$2; shift 2 ;;
        --output)  output=$2; shift 2 ;;
        --tools)   tools=yes; shift ;;
        --with)    with=$2; shift 2 ;;
        --add)     added=$2; shift 2 ;;
        *) echo "images: unknown option $1" >&2; exit 2 ;;
    esac
done
: "${kernel:?--kernel is missing}" "${service:?--service is missing}" "${output:?--output is missing}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/root
mkdir -p "$root/bin" "$root/lib/modules" "$root/usr/bin" "$root/dev" "$root/proc" "$root/sys"

# Copies a program's shared libraries to where the loader will look for them.
libraries() {
    ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' |
        while read -r library; do
            mkdir -p "$root$(dirname "$library")"
            [ -e "$root$library" ] || cp -L "$library" "$root$library"
        done
}

# A program is stripped: symbols would only cost measuring time.
program() {
    cp -L "$1" "$root/usr/bin/$2"
    strip --strip-all "$root/usr/bin/$2"
    libraries "$1"
}

cp -L "$(command -v busybox)" "$root/bin/busybox"
cp "$here/init" "$root/init"
chmod 755 "$root/init"
cp "$kernel"/modules/*.ko "$root/lib/modules/" 2>/dev/null || true
# Drivers of devices that stand on what the others drive.
if [ -d "$kernel/modules/late" ]; then
    cp -R "$kernel/modules/late" "$root/lib/modules/"
fi

if [ "$service" != none ]; then
    program "$service" vrot-service
fi
if [ "$tools" = yes ]; then
    program "$(command -v tpm2)" tpm2
    # tpm2-tools is one program under many names.
    for name in tpm2_pcrread tpm2_quote tpm2_nvread tpm2_nvreadpublic tpm2_readpublic \
                tpm2_getcap tpm2_getrandom tpm2_changeauth tpm2_nvwrite tpm2_nvundefine tpm2_nvdefine \
                tpm2_pcrextend tpm2_send tpm2_createprimary tpm2_evictcontrol tpm2_startup; do
        ln -s tpm2 "$root/usr/bin/$name"
    done
fi
if [ "$service" != none ] || [ "$tools" = yes ]; then
    # Loaded by name at run time, so that no program's list of libraries shows it.
    for library in /usr/lib/*-linux-gnu/libtss2-tcti-device.so.0 /lib/*-linux-gnu/libtss2-tcti-device.so.0; do
        [ -e "$library" ] || continue
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
        libraries "$library"
        break
    done
fi
[ -z "$with" ] || cp -R "$with/." "$root"
[ -z "$added" ] || program "$added" "$(basename "$added")"

# One order, one owner, one time, one inode numbering.
find "$root" -exec touch -h -d @0 {} +
mkdir -p "$(dirname "$output")"
(cd "$root" && find . | LC_ALL=C sort |
    cpio --quiet --create --format=newc --owner=0:0 --reproducible --renumber-inodes) |
    gzip -n -6 > "$output.new"
mv "$output.new" "$output"
echo "images: $output, $(du -k "$output" | cut -f1) KiB"
