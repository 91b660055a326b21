#!/bin/sh
# Installs pycose, another implementation of COSE, which judges our signed data in tests, and what it
# needs, in a Python environment of its own. Nothing of it is installed elsewhere.
#
#   scripts/pycose.sh [FOLDER]
#
# FOLDER is target/peers/pycose by default; FOLDER/bin/python runs it. It comes from PyPI: the files that
# scripts/pycose.txt names by their hash values, and no others. Says nothing if it is there.
set -eu
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${CARGO_TARGET_DIR:-$root/target}/peers/pycose}
versions=$root/scripts/pycose.txt
! cmp -s "$versions" "$folder/versions" || exit 0

echo "== fetching pycose, the judge of signed data in tests"
mkdir -p "$(dirname "$folder")"
rm -rf "$folder"
# Where an environment is made it stays: its programs name their own path.
log=$(mktemp "$(dirname "$folder")/fetching.XXXXXX")
trap 'rm -f "$log"' EXIT
fail() {
    cat "$log" >&2
    echo "pycose: $1" >&2
    exit 1
}
python3 -m venv "$folder" > "$log" 2>&1 ||
    fail "no Python environment can be made: is the package python3-venv installed?"
"$folder/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: \
    --require-hashes -r "$versions" > "$log" 2>&1 ||
    fail "pycose cannot be fetched from PyPI (pip's settings, e.g. PIP_INDEX_URL, name a mirror)"
"$folder/bin/python" -c 'import pycose.messages' > "$log" 2>&1 ||
    fail "what was fetched is no pycose"
cp "$versions" "$folder/versions"
