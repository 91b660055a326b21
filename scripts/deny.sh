#!/bin/sh
# cargo-deny, where it is installed: licences, banned and duplicate crates, sources; and known
# vulnerabilities where its database can be had (it is fetched from the network).
#
# Licences and sources are also checked by tests/tests/workspace_rules.rs against the same
# deny.toml, on every machine.
set -eu

if ! cargo deny --version > /dev/null 2>&1; then
    echo "cargo-deny is not installed: known vulnerabilities were not looked up" \
         "(\`cargo install --locked cargo-deny\`)"
    exit 0
fi
cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db > /dev/null 2>&1; then
    cargo deny --locked check advisories
else
    echo "cargo-deny could not fetch its database: known vulnerabilities were not looked up"
fi
