#!/bin/sh
# Licences, banned and duplicate crates and sources with cargo-deny, where it is installed; and known
# advisories about dependencies (RustSec), where their database can be had:
#
#   ADVISORY_DB=FOLDER      a copy of the database (a clone of rustsec/advisory-db), read with
#                           cargo-audit; nothing is fetched. It must be found and checked.
#   ADVISORIES=required     the database is fetched with cargo-deny, and that must succeed
#   ADVISORIES=off          no advisories are looked up
#   neither                 the database is fetched if it can be; if not, the last words say that
#                           nothing was looked up
#
# Ends with 1 where an advisory is about a dependency, and where one of the first two was asked for
# and could not be done. Licences and sources are also checked by
# tests/support/tests/workspace_rules/ against the same deny.toml, on every machine.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "deny: known advisories were asked for, and could not be looked up: $1" >&2
    exit 1
}

# The last words of `make check`, which ends well all the same.
skipped() {
    {
        echo "=="
        echo "== NOT CHECKED: known advisories about dependencies. $1."
        echo "== ADVISORY_DB=FOLDER names a copy of the database, ADVISORIES=required demands one."
        echo "=="
    } >&2
}

advisories=${ADVISORIES:-if-possible}
case $advisories in
    required | off | if-possible) ;;
    *)
        echo "deny: ADVISORIES is \"$advisories\": use required or off, or leave it out" >&2
        exit 2
        ;;
esac

deny=no
if cargo deny --version > /dev/null 2>&1; then
    deny=yes
    cargo deny --locked check licenses bans sources
fi

if [ -n "${ADVISORY_DB:-}" ]; then
    [ -d "$ADVISORY_DB/crates" ] ||
        fail "ADVISORY_DB is \"$ADVISORY_DB\", and there is no database (no folder crates in it)"
    cargo audit --version > /dev/null 2>&1 ||
        fail "cargo-audit is not installed (\`cargo install --locked cargo-audit\`)"
    ignored=$(sed -n 's/^ *{ id = "\(RUSTSEC-[0-9-]*\)".*/--ignore \1/p' deny.toml)
    for lock in Cargo.lock tests/*/Cargo.lock; do
        # shellcheck disable=SC2086  # options, and there may be none
        cargo audit --db "$ADVISORY_DB" --no-fetch --stale --file "$lock" $ignored \
            --deny unsound --deny unmaintained
    done
elif [ "$advisories" != off ]; then
    if [ $deny = no ]; then
        reason="cargo-deny is not installed (\`cargo install --locked cargo-deny\`)"
    elif cargo deny --locked fetch db > /dev/null 2>&1; then
        reason=
        cargo deny --locked check advisories
    else
        reason="cargo-deny could not fetch the database"
    fi
    [ -z "$reason" ] || [ "$advisories" != required ] || fail "$reason"
    [ -z "$reason" ] || skipped "$reason"
fi
