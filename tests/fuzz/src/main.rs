//! One libFuzzer program for all targets: `VROT_FUZZ_TARGET` names the one to run.
//! `scripts/fuzz.sh` builds and runs it.

#![no_main]

use std::sync::LazyLock;

use vrot_tests::fuzzing::target::{self, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("VROT_FUZZ_TARGET").expect("VROT_FUZZ_TARGET names a target");
    target::named(&name).expect("VROT_FUZZ_TARGET names one of the targets")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    (TARGET.run)(input);
});
