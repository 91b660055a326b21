#!/bin/sh
# cargo-deny, where it is installed: licences, banned and duplicate crates, sources; and known
# vulnerabilities where its database can be had (it is fetched from the network).
#
# Licences and sources are also checked by tests/support/tests/workspace_rules.rs against the same
# deny.toml, on every machine.
set -eu

# The last words of `make check`, which ends well all the same.
skipped() {
    {
        echo "=="
        echo "== NOT CHECKED: known vulnerabilities of dependencies. $1."
        echo "=="
    } >&2
}

if ! cargo deny --version > /dev/null 2>&1; then
    skipped "cargo-deny is not installed (\`cargo install --locked cargo-deny\`)"
    exit 0
fi
cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db > /dev/null 2>&1; then
    cargo deny --locked check advisories
else
    skipped "cargo-deny could not fetch its database"
fi
