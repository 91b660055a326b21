//! `tpm-timer N`, in a guest: how long its TPM takes for each of N commands, one after the other, in
//! microseconds, each on a line of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

const DEVICE: &str = "/dev/tpm0";
/// `TPM2_GetRandom` of 16 bytes
const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];
/// A response without error, as far as its code.
const SUCCESS: [u8; 10] = [0x80, 1, 0, 0, 0, 28, 0, 0, 0, 0];
/// Commands before those that count.
const WARM: u32 = 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tpm-timer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let count = std::env::args().nth(1).context("usage: tpm-timer N")?;
    let count: u32 = count.parse().context("usage: tpm-timer N")?;
    let mut device = File::options().read(true).write(true).open(DEVICE)?;
    let mut execute = || -> Result<f64> {
        let begin = Instant::now();
        device.write_all(&GET_RANDOM)?;
        let mut response = [0; 4096];
        let length = device.read(&mut response)?;
        let took = begin.elapsed();
        let response = response.get(..length).unwrap_or_default();
        ensure!(response.starts_with(&SUCCESS), "{response:02x?}");
        Ok(took.as_secs_f64() * 1e6)
    };
    for _ in 0..WARM {
        execute()?;
    }
    let times: Result<Vec<f64>> = (0..count).map(|_| execute()).collect();
    for time in times? {
        println!("{time:.1}");
    }
    Ok(())
}
