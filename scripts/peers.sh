#!/bin/sh
# Unpacks a newer swtpm than this release of Debian has, with all that it is linked with, into a folder
# of its own: a peer for tests. Nothing of it is installed.
#
#   scripts/peers.sh [FOLDER]
#
# FOLDER is target/peers/swtpm by default; FOLDER/bin has its programs. They come from Debian's
# unstable suite, whose index is checked against Debian's keys. Says nothing if the folder is there.
set -eu
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-${CARGO_TARGET_DIR:-$root/target}/peers/swtpm}
mirror=${PEERS_MIRROR:-http://deb.debian.org/debian}
suite=${PEERS_SUITE:-sid}

[ ! -e "$folder/bin/swtpm" ] || exit 0

fail() {
    echo "peers: $1" >&2
    exit 1
}

echo "== fetching swtpm of Debian's suite $suite, a peer for tests"
mkdir -p "$(dirname "$folder")"
scratch=$(mktemp -d "$(dirname "$folder")/fetching.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# An apt of its own, for which nothing is installed: it names all libraries as well, and none of this
# machine's settings but its proxy count.
mkdir -p "$scratch/etc/apt.conf.d" "$scratch/etc/preferences.d" "$scratch/state/lists/partial" "$scratch/cache/archives/partial"
: > "$scratch/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring"
echo "deb [signed-by=$keyring] $mirror $suite main" > "$scratch/etc/sources.list"
cat > "$scratch/apt.conf" << END
Dir::Etc "$scratch/etc";
Dir::Etc::SourceList "$scratch/etc/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "$scratch/state";
Dir::State::Status "$scratch/status";
Dir::Cache "$scratch/cache";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
// A mirror may be a frozen one.
Acquire::Check-Valid-Until "false";
END
export APT_CONFIG="$scratch/apt.conf"
apt-get update -q > "$scratch/log" 2>&1 && ! grep -q '^[EW]:' "$scratch/log" ||
    fail "the suite $suite cannot be had from $mirror (PEERS_MIRROR and PEERS_SUITE name others):
$(cat "$scratch/log")"
apt-get install -q -y --download-only swtpm swtpm-tools > "$scratch/log" 2>&1 ||
    fail "swtpm of the suite $suite cannot be fetched from $mirror:
$(tail -n 5 "$scratch/log")"
for package in "$scratch"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$scratch/tree"
done

# Its C library is newer than this machine's, so its own loader starts it. Programs that it calls by
# a path are those below bin as well, by its configuration.
libraries=$folder/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH)
loader=$(cd "$scratch/tree" && find usr/lib* -name 'ld-linux-*.so.*' | sort | head -n 1)
[ -n "$loader" ] || fail "no dynamic loader came with the C library of $suite"
mkdir "$scratch/tree/bin.new"
for program in swtpm swtpm_setup swtpm_ioctl swtpm_cert swtpm_localca; do
    [ -e "$scratch/tree/usr/bin/$program" ] || continue
    cat > "$scratch/tree/bin.new/$program" << END
#!/bin/sh
PATH=$folder/bin:\$PATH
exec $folder/$loader --argv0 $program --library-path $libraries:$libraries/swtpm \\
    $folder/usr/bin/$program "\$@"
END
    chmod 0755 "$scratch/tree/bin.new/$program"
done
rm -rf "$scratch/tree/bin"
mv "$scratch/tree/bin.new" "$scratch/tree/bin"
rm -rf "$folder"
mv "$scratch/tree" "$folder"
