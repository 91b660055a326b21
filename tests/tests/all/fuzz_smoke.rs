//! Every fuzz target for a second. `make fuzz` does it thoroughly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use vrot_tests::fuzzing::smoke;
use vrot_tests::fuzzing::target::TARGETS;

const THREADS: usize = 2;

#[test]
fn no_target_panics_or_hangs_on_changed_inputs() -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(target) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let tried = smoke(target, Duration::from_secs(1))?;
            println!("{}: {tried} inputs", target.name);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow!("a thread that feeds targets panicked"))?
        })
    })
}
