//! Every fuzz target for a few seconds. `make fuzz` does it thoroughly.

use std::time::Duration;

use anyhow::Result;
use vrot_tests::fuzzing::smoke;
use vrot_tests::fuzzing::target::TARGETS;

#[test]
fn no_target_panics_or_hangs_on_changed_inputs() -> Result<()> {
    for target in TARGETS {
        let tried = smoke(target, Duration::from_secs(3))?;
        println!("{}: {tried} inputs", target.name);
    }
    Ok(())
}
