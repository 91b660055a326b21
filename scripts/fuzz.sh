#!/bin/sh
# Coverage-guided fuzzing with libFuzzer, on the stable toolchain.
#
#   scripts/fuzz.sh SECONDS [TARGET…]
#
# Each target runs for SECONDS; without TARGET, all of them. Corpora are kept in target/fuzz/,
# crashing inputs too. Fails when a target crashes.
set -eu

seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
root=$(cd "$(dirname "$0")/.." && pwd)
work=$root/target/fuzz
triple=x86_64-unknown-linux-gnu

# What `cargo fuzz` passes, without the sanitizer, which needs a nightly toolchain.
flags="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"

echo "== building the fuzz targets with instrumentation"
# shellcheck disable=SC2086  # a list of words
RUSTFLAGS=$(echo $flags) cargo build --release --target "$triple" \
    --manifest-path "$root/tests/fuzz/Cargo.toml" --target-dir "$work/build"

cargo run --quiet --locked --manifest-path "$root/Cargo.toml" -p vrot-tests --bin fuzz-seeds -- "$work/seeds"
[ $# -gt 0 ] || set -- $(ls "$work/seeds")

failed=
for target in "$@"; do
    echo "== fuzzing $target for $seconds s"
    mkdir -p "$work/corpus/$target"
    if ! VROT_FUZZ_TARGET=$target "$work/build/$triple/release/vrot-fuzz" \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$work/$target-" "$work/corpus/$target" "$work/seeds/$target"; then
        failed="$failed $target"
    fi
done
if [ -n "$failed" ]; then
    echo "fuzz: crashes in$failed; the inputs are in $work" >&2
    exit 1
fi
