#!/bin/sh
# Installs the Debian packages that building and the demo need, and with --tests those that tests and
# figures need besides, as far as they are missing, and checks the Rust toolchain. Debian 12 and 13; as
# root, or with sudo. Says nothing when nothing is missing.
set -eu

packages="build-essential pkg-config openssl ca-certificates
    libtpms-dev libtss2-dev swtpm swtpm-tools tpm2-tools
    qemu-system-x86 qemu-utils ovmf busybox-static cpio xz-utils faketime curl acpica-tools
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
    apparmor dpkg-dev systemd iproute2"
# What the tests and figures need besides: a browser for the dashboard, a reader of manual pages, another
# implementation of COSE (scripts/pycose.sh), and the program `kill`.
[ "${1:-}" != --tests ] || packages="$packages chromium groff-base python3-venv procps"

here=$(cd "$(dirname "$0")/.." && pwd)

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        echo "setup: packages are missing, and only root can install them: run this as root," \
             "or install sudo. Missing: $missing" >&2
        exit 1
    fi
}

install_packages() {
    echo "== installing: $*"
    # One update is enough for all that this script installs.
    if [ -z "${updated:-}" ]; then
        as_root apt-get update -q
        updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

missing=
for package in $packages; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # a list of words
    install_packages $missing
fi

# The newest Rust that this workspace needs stands in its manifest.
wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$here/Cargo.toml")
if ! command -v cargo > /dev/null; then
    # Debian 13 has rustup; Debian 12 has not, and its own cargo is too old.
    [ -n "${updated:-}" ] || as_root apt-get update -q
    updated=yes
    missing=rustup
    if apt-cache show rustup > /dev/null 2>&1; then
        install_packages rustup
    else
        echo "setup: no Rust toolchain. Install Rust $wanted or newer with rustup" \
             "(https://rustup.rs), then run this again." >&2
        exit 1
    fi
fi
if command -v rustup > /dev/null && ! cargo --version > /dev/null 2>&1; then
    echo "== installing the stable Rust toolchain"
    rustup default stable
fi

found=$(cargo --version | cut -d ' ' -f 2)
older=$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)
if [ "$older" != "$wanted" ]; then
    echo "setup: cargo is $found, and this workspace needs Rust $wanted or newer:" \
         "run \`rustup update stable\`, or install it with rustup (https://rustup.rs)." >&2
    exit 1
fi
