//! Where a state key is in the memory of a backend that a zygote spawned.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::support::command;
use crate::support::zygote::Zygote;

/// One mapping of a process (proc(5), `smaps`).
struct Mapping {
    start: u64,
    end: u64,
    /// What stands in the line `VmFlags`, between spaces.
    flags: String,
}

#[test]
fn after_opening_a_state_key_is_nowhere_but_in_locked_memory() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test reads another process's memory: run it as root"
    );
    // Looked for are its halves: nothing else in a process is like it by chance.
    let key: [u8; 32] = std::array::from_fn(|at| {
        let at = u8::try_from(at).unwrap_or_default();
        at.wrapping_mul(151) ^ 0xa7
    });
    let mut zygote = Zygote::start()?;
    let backend = zygote.spawn_with(key)?;
    // The first use of the key, and what follows on the stack.
    backend.execute(&command(0x17b, &[0, 8]))?;
    let memory = File::open(format!("/proc/{}/mem", backend.process))?;
    let mut found = 0;
    for mapping in mappings(backend.process)? {
        for half in [&key[..16], &key[16..]] {
            let hits = occurrences(&memory, &mapping, half);
            ensure!(
                hits == 0 || mapping.flags.contains(" lo ") && mapping.flags.contains(" dd "),
                "{hits} times in a mapping of {} bytes at {:#x} with the flags{}",
                mapping.end - mapping.start,
                mapping.start,
                mapping.flags
            );
            found += hits;
        }
    }
    // ring's key schedule begins with the key itself (FIPS 197 §5.2): both halves are found once,
    // which also says that this looked where it should.
    assert_eq!(found, 2);
    Ok(())
}

#[test]
fn a_spawned_backend_has_locked_memory() -> Result<()> {
    let mut zygote = Zygote::start()?;
    let backend = zygote.spawn()?;
    let status = fs::read_to_string(format!("/proc/{}/status", backend.process))?;
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let locked = locked.context("VmLck")?.trim();
    ensure!(!locked.starts_with("0 "), "{locked}");
    Ok(())
}

fn mappings(process: i32) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{process}/smaps"))?.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            mappings.last_mut().context("a mapping")?.flags = format!("{flags} ");
            continue;
        }
        let range = line
            .split_whitespace()
            .next()
            .and_then(|range| range.split_once('-'));
        if let Some((start, end)) = range {
            let number = |text| u64::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                mappings.push(Mapping {
                    start,
                    end,
                    flags: String::new(),
                });
            }
        }
    }
    Ok(mappings)
}

/// In what of the mapping can be read at all (not `[vvar]`, say).
fn occurrences(memory: &File, mapping: &Mapping, needle: &[u8]) -> usize {
    let length = usize::try_from(mapping.end - mapping.start).unwrap_or_default();
    let mut bytes = vec![0; length];
    let read = memory.read_exact_at(&mut bytes, mapping.start);
    if read.is_err() {
        return 0;
    }
    bytes
        .windows(needle.len())
        .filter(|at| *at == needle)
        .count()
}
