//! The part "signing": readings that a VM signs, with a TPM that takes long for each signature.

use std::fs;
use std::io::Write;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;
use signed_data::stream::{Batch, BatchInput, StreamVerifier};
use test_support::programs::program;
use test_support::run_folder::RunFolder;

use super::arguments::Arguments;
use super::host::BenchHost;
use super::launch;
use super::report::Report;
use super::samples::Samples;
use crate::bare_vm::BareVm;
use crate::vmm::Control;

/// What a sensor says.
const READING: &[u8] = b"{\"celsius\":21.5}\n";
/// How many readings with a signature each.
const ONE_EACH: usize = 20;
/// How many readings are signed one after the other, to see how long each takes.
const WAITED_FOR: usize = 50;
/// A rate is from the first batch to the last: two at least.
const BATCHES: usize = 3;

/// `vrot-service sign --stream`, between pipes.
struct Signer {
    process: Child,
    batches: BatchInput<ChildStdout>,
}

/// A stream as it came.
struct Stream {
    batches: Vec<Batch>,
    /// Readings in a second, from the first batch to the last.
    rate: f64,
}

/// Rate and latency of the signatures of a VM that comes to those that are there.
pub(super) fn measure(
    report: &mut Report,
    arguments: &Arguments,
    run: &RunFolder,
    host: &BenchHost,
) -> Result<()> {
    let vrot = launch::start_over(host.api(), "emulator")?;
    let vmm = Control::connect(&vrot.socket)?.attach()?;
    let vm = BareVm::boot_with(vmm, &run.join("signing"))?;
    vm.slow_signatures(arguments.signature());
    let anchors = TrustAnchors::from_pem(&fs::read(host.issuer_root())?)?;
    let (mut ours, mut peer) = (Samples::default(), Samples::default());
    for _ in 0..arguments.rounds {
        let stream = in_batches(&vm, arguments.window())?;
        check(stream.batches, &anchors)?;
        ours.add(stream.rate);
        let stream = one_each(&vm)?;
        check(stream.batches, &anchors)?;
        peer.add(stream.rate);
    }
    let (rate, one_each, rounds) = (ours.median()?, peer.median()?, ours.count());
    report.beside("signed_readings_per_s", rate, one_each, "1/s", rounds);
    report.spread(&ours)?;
    latency(report, &vm)
}

/// As many readings as are taken.
fn in_batches(vm: &BareVm, window: Duration) -> Result<Stream> {
    let (mut signer, mut input) = Signer::start(vm, &["--batch-ms", "50"])?;
    let seen = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let lines = READING.repeat(1000);
    thread::scope(|scope| {
        let readings = scope.spawn(|| -> Result<()> {
            let begin = Instant::now();
            while !over.load(Ordering::Relaxed)
                && (begin.elapsed() < window || seen.load(Ordering::Relaxed) < BATCHES)
            {
                input.write_all(&lines)?;
            }
            drop(input);
            Ok(())
        });
        let stream = signer.read(&seen);
        over.store(true, Ordering::Relaxed);
        match readings.join() {
            Ok(written) => written.and(stream),
            Err(_) => anyhow::bail!("whoever writes readings panicked"),
        }
    })
}

/// A signature for each reading.
fn one_each(vm: &BareVm) -> Result<Stream> {
    let (mut signer, mut input) = Signer::start(vm, &["--batch-readings", "1"])?;
    input.write_all(&READING.repeat(ONE_EACH))?;
    drop(input);
    signer.read(&AtomicUsize::new(0))
}

/// From a reading until its signed batch is there, beside the signature of the TPM.
fn latency(report: &mut Report, vm: &BareVm) -> Result<()> {
    let (mut signer, mut input) = Signer::start(vm, &["--batch-readings", "1"])?;
    let (mut ours, mut bare) = (Samples::default(), Samples::default());
    for reading in 0..=WAITED_FOR {
        vm.signatures();
        let begin = Instant::now();
        input.write_all(READING)?;
        signer.batches.next().context("a batch")??;
        let took = begin.elapsed();
        let signatures = vm.signatures();
        let [signature] = signatures[..] else {
            anyhow::bail!("{} signatures for one batch", signatures.len());
        };
        // The first waits until the program has started.
        if reading > 0 {
            ours.add_ms(took);
            bare.add_ms(signature);
        }
    }
    drop(input);
    signer.end()?;
    let (ours, bare, count) = (ours.median()?, bare.median()?, ours.count());
    report.beside("sign_latency_ms", ours, bare, "ms", count);
    Ok(())
}

impl Signer {
    fn start(vm: &BareVm, options: &[&str]) -> Result<(Self, impl Write + Send + use<>)> {
        let mut process = Command::new(program("vrot-service")?)
            .args(["sign", "--stream", "--stream-name", "room-1/temperature"])
            .args(options)
            .args(["--tpm", &vm.tpm()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = process.stdin.take().context("an input")?;
        let output = process.stdout.take().context("an output")?;
        let signer = Self {
            process,
            batches: BatchInput::new(output),
        };
        Ok((signer, input))
    }

    /// All batches until the input ends.
    fn read(&mut self, seen: &AtomicUsize) -> Result<Stream> {
        let mut batches: Vec<Batch> = Vec::new();
        let (mut first, mut last) = (None, Instant::now());
        for batch in self.batches.by_ref() {
            batches.push(batch?);
            last = Instant::now();
            first.get_or_insert(last);
            seen.store(batches.len(), Ordering::Relaxed);
        }
        self.end()?;
        let took = last - first.context("a batch")?;
        ensure!(batches.len() >= 2, "{} batches", batches.len());
        let readings = batches.iter().skip(1);
        let readings: u64 = readings
            .map(|batch| batch.unverified_readings().count())
            .sum();
        let rate = f64::from(u32::try_from(readings)?) / took.as_secs_f64();
        Ok(Stream { batches, rate })
    }

    fn end(&mut self) -> Result<()> {
        let status = self.process.wait()?;
        ensure!(status.success(), "vrot-service sign: {status}");
        Ok(())
    }
}

/// Nobody is still there who signs.
impl Drop for Signer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What was measured is a stream that verifies.
fn check(batches: Vec<Batch>, anchors: &TrustAnchors) -> Result<()> {
    let mut verifier = StreamVerifier::new();
    for batch in batches {
        verifier.verify(batch, anchors, UnixTime::now())?;
    }
    Ok(())
}
