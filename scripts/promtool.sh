#!/bin/sh
# Unpacks promtool, which judges our alert rules in tests, out of this release's package prometheus.
# Nothing of it is installed: that package would start a server.
#
#   scripts/promtool.sh [FOLDER]
#
# FOLDER is target/peers by default. Says nothing if promtool is there.
set -eu
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${CARGO_TARGET_DIR:-$root/target}/peers}
[ ! -x "$folder/promtool" ] || exit 0

echo "== fetching promtool, the judge of alert rules in tests"
mkdir -p "$folder"
scratch=$(mktemp -d "$folder/fetching.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
apt-get -q -o APT::Sandbox::User="$(id -un)" download prometheus > log 2>&1 || {
    cat log >&2
    echo "promtool: the package prometheus cannot be fetched: is the list of packages there (apt-get update)?" >&2
    exit 1
}
dpkg-deb -x prometheus_*.deb tree
mv tree/usr/bin/promtool "$folder/promtool"
