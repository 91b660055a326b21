//! Feeds a target with changed inputs for a bounded time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use test_support::programs::target_folder;

use super::mutation::{Random, mutate};
use super::target::Target;

/// Runs a target on its seeds, then on changed ones until the time is over; fails on a panic and
/// on an input that takes unreasonably long. The input is left in `target/fuzz/`.
pub fn smoke(target: &Target, time: Duration) -> Result<u64> {
    let seeds = (target.seeds)().with_context(|| format!("making seeds for {}", target.name))?;
    for seed in &seeds {
        try_input(target, seed)?;
    }
    // The same inputs in each run: a failure seen once is seen again.
    let mut random = Random::new(0x7663_6f6e_7472_6f6c);
    let end = Instant::now() + time;
    let mut pool = seeds;
    pool.push(Vec::new());
    let mut tried = 0;
    while Instant::now() < end {
        let input = pool
            .get(random.below(pool.len()))
            .cloned()
            .unwrap_or_default();
        let other = pool
            .get(random.below(pool.len()))
            .cloned()
            .unwrap_or_default();
        let changed = mutate(&input, &other, &mut random);
        try_input(target, &changed)?;
        tried += 1;
    }
    Ok(tried)
}

fn try_input(target: &Target, input: &[u8]) -> Result<()> {
    let begin = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let took = begin.elapsed();
    let what = match outcome {
        Ok(()) if took <= LONGEST => return Ok(()),
        Ok(()) => format!("took {} ms", took.as_millis()),
        Err(_) => "panicked".to_owned(),
    };
    let folder = target_folder()?.join("fuzz");
    fs::create_dir_all(&folder)?;
    let digest = hex::encode(Sha256::digest(input));
    let name = digest.get(..16).unwrap_or(&digest);
    let path = folder.join(format!("{}-{name}", target.name));
    fs::write(&path, input)?;
    bail!("{} {what} on {}", target.name, path.display())
}

/// No parser needs so long for so few bytes, even on a busy machine.
const LONGEST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_makes_a_target_panic_fails_the_run_and_is_kept() -> Result<()> {
        let fragile = Target {
            name: "driver-test",
            run: |input| assert!(input.len() != 3, "three bytes are too many"),
            seeds: || Ok(vec![b"abcdef".to_vec()]),
        };
        let Err(error) = smoke(&fragile, Duration::from_secs(20)) else {
            bail!("the panic was not seen");
        };
        let text = error.to_string();
        let path = text.rsplit(' ').next().context("a path")?;
        assert_eq!(fs::read(path)?.len(), 3);
        fs::remove_file(path)?;
        Ok(())
    }
}
