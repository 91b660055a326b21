//! Readings that a VM or a device signs batch by batch, and what is made of them elsewhere.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use signed_data::stream::{Batch, BatchInput};
use test_support::deadline::wait_for;
use test_support::programs::program;
use test_support::tool::Tool;

use crate::devices::enrolled;
use crate::signed_data::Vm;

const STREAM: &str = "room-1/temperature";
const PATIENCE: Duration = Duration::from_secs(120);

/// What `verify-data --stream --json` said: batches and readings by lines, and the last line.
struct Said {
    status: i32,
    readings: Vec<String>,
    last: Value,
}

impl Said {
    fn code(&self) -> (i32, &str) {
        let code = self.last["summary"]["refusal"].as_str();
        (self.status, code.unwrap_or("none"))
    }
}

fn verify(folder: &Path, policy: &Path, stream: &str, options: &[&str]) -> Result<Said> {
    let output = Tool::new(program("vrot-device")?)
        .args(["verify-data", stream, "--stream", "--json", "--policy"])
        .arg(policy)
        .args(options)
        .folder(folder)
        .outcome()?;
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str::<Value>);
    let lines = lines.collect::<Result<Vec<_>, _>>()?;
    let readings = (lines.iter()).filter_map(|line| line["text"].as_str().map(str::to_owned));
    Ok(Said {
        status: output.status.code().context("it ends by itself")?,
        readings: readings.collect(),
        last: lines.last().cloned().unwrap_or_default(),
    })
}

impl Vm {
    fn stream_signing(&self, options: &[&str]) -> Result<Tool> {
        Ok(Tool::new(program("vrot-service")?)
            .args(["sign", "--stream", "--stream-name", STREAM])
            .args(options)
            .args(["--tpm", &self.booted.bare.tpm()])
            .arg("--event-log")
            .arg(self.booted.bare.event_log())
            .folder(self.disk.path()))
    }

    fn verify_stream(&self, stream: &str, options: &[&str]) -> Result<Said> {
        verify(self.disk.path(), &self.policy, stream, options)
    }

    fn batches(&self, stream: &str) -> Result<Vec<Batch>> {
        let bytes = fs::read(self.path(stream))?;
        Ok(BatchInput::new(&bytes[..]).collect::<Result<_, _>>()?)
    }

    fn write_batches(&self, stream: &str, batches: &[&Batch]) -> Result<()> {
        let bytes = batches.iter().flat_map(|batch| batch.to_stream());
        Ok(fs::write(self.path(stream), bytes.collect::<Vec<u8>>())?)
    }
}

fn lines(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers
        .map(|number| format!("{{\"celsius\":{number}}}"))
        .collect()
}

#[test]
fn a_vms_stream_is_signed_in_batches_and_verified_reading_by_reading() -> Result<()> {
    let vm = Vm::boot()?;
    let sent = lines(0..500);
    fs::write(vm.path("readings"), sent.join("\n") + "\n")?;
    let options = ["--from", "readings", "--to", "stream", "--evidence"];
    vm.stream_signing(&options)?
        .args(["--batch-readings", "100", "--batch-ms", "3600000"])
        .run()?;
    let fresh = ["--max-evidence-age", "600", "--stream-name", STREAM];
    let said = vm.verify_stream("stream", &fresh)?;
    ensure!(said.status == 0, "{:#}", said.last);
    assert_eq!(said.readings, sent);
    assert_eq!(said.last["summary"]["batches"], 5);
    // Only the first has evidence, so its age has to be limited.
    let said = vm.verify_stream("stream", &[])?;
    assert_eq!((said.status, said.readings.len()), (1, 100));
    // One reading by itself.
    let take = ["--identity-alone", "--take", "250", "--to", "reading"];
    assert_eq!(vm.verify_stream("stream", &take)?.status, 0);
    let (status, result) = vm.verify("reading", &["--identity-alone"])?;
    ensure!(status == 0, "{result:#}");
    assert_eq!(result["reading"]["number"], 250);
    assert_eq!(result["reading"]["text"], "{\"celsius\":250}");
    let mut forged = fs::read(vm.path("reading"))?;
    let text = b"{\"celsius\":250}";
    let at = forged.windows(text.len()).position(|part| part == text);
    *forged
        .get_mut(at.context("the reading")? + 11)
        .context("a digit")? = b'9';
    fs::write(vm.path("forged"), &forged)?;
    let (status, result) = vm.verify("forged", &["--identity-alone"])?;
    assert_eq!((status, &result["refusal"]["code"]), (1, &"reading".into()));
    Ok(())
}

#[test]
fn replayed_dropped_reordered_and_altered_batches_of_a_vm_are_told_apart_and_not_printed()
-> Result<()> {
    let vm = Vm::boot()?;
    fs::write(vm.path("readings"), lines(0..8).join("\n") + "\n")?;
    let options = ["--from", "readings", "--to", "stream"];
    vm.stream_signing(&options)?
        .args(["--batch-readings", "2", "--batch-ms", "3600000"])
        .run()?;
    let all = vm.batches("stream")?;
    let [a, b, c, d] = &all[..] else {
        anyhow::bail!("{} batches", all.len())
    };
    let judged = |batches: &[&Batch]| -> Result<(i32, String, usize)> {
        vm.write_batches("other", batches)?;
        let said = vm.verify_stream("other", &["--identity-alone"])?;
        let (status, code) = said.code();
        Ok((status, code.to_owned(), said.readings.len()))
    };
    let found = |code: &str, printed| (1, code.to_owned(), printed);
    assert_eq!(judged(&[a, b, c, d])?, (0, "none".to_owned(), 8));
    assert_eq!(judged(&[a, b, b])?, found("replayed", 4));
    assert_eq!(judged(&[a, b, d])?, found("dropped", 4));
    assert_eq!(judged(&[a, c, b, d])?, found("reordered", 2));
    assert_eq!(judged(&[b])?, found("credentials-missing", 0));
    let mut altered = b.to_cbor();
    let at = (altered.windows(9).rposition(|part| part == b"celsius\":")).context("a reading")?;
    *altered.get_mut(at + 9).context("a digit")? ^= 1;
    let altered = Batch::from_cbor(&altered)?;
    assert_eq!(judged(&[a, &altered, c])?, found("readings-altered", 2));
    // Cut off: what is whole is printed, and that is told from an end.
    let mut cut = fs::read(vm.path("stream"))?;
    cut.truncate(cut.len() - 1);
    fs::write(vm.path("cut"), &cut)?;
    let said = vm.verify_stream("cut", &["--identity-alone"])?;
    assert_eq!((said.status, said.readings.len()), (2, 6));
    Ok(())
}

/// A signer that reads what is written to it.
struct Signer(Child);

impl Signer {
    fn start(vm: &Vm, to: &str) -> Result<Self> {
        let mut command = Command::new(program("vrot-service")?);
        command
            .args(["sign", "--stream", "--stream-name", STREAM, "--append"])
            .args([
                "--batch-ms",
                "1",
                "--to",
                to,
                "--tpm",
                &vm.booted.bare.tpm(),
            ])
            .current_dir(vm.disk.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    fn write(&mut self, lines: &[String]) -> Result<()> {
        let text = lines.join("\n") + "\n";
        let input = self.0.stdin.as_mut().context("an input")?;
        Ok(input.write_all(text.as_bytes())?)
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stream_goes_on_in_its_file_after_its_signer_was_killed_and_begins_anew_without_it()
-> Result<()> {
    let vm = Vm::boot()?;
    let written = || -> u64 {
        let bytes = fs::read(vm.path("stream")).unwrap_or_default();
        let batches = BatchInput::new(&bytes[..]).map_while(Result::ok);
        batches
            .map(|batch| batch.unverified_readings().count())
            .sum()
    };
    let mut signer = Signer::start(&vm, "stream")?;
    signer.write(&lines(0..10))?;
    wait_for("ten readings", PATIENCE, || {
        Ok((written() >= 10).then_some(()))
    })?;
    // Whatever of these is signed when it is killed.
    signer.write(&lines(10..20))?;
    drop(signer);
    vm.tool("tpm2_flushcontext -t")?;
    let known = ["--identity-alone", "--position", "position"];
    let seen = vm.verify_stream("stream", &known)?.readings.len();
    ensure!((10..=20).contains(&seen), "{seen} readings");
    // It may have been killed while it wrote.
    let bytes = fs::read(vm.path("stream"))?;
    let whole = BatchInput::new(&bytes[..]).map_while(Result::ok);
    let whole: Vec<u8> = whole.flat_map(|batch| batch.to_stream()).collect();
    let torn = [&whole[..], whole.get(..100).context("a batch")?].concat();
    fs::write(vm.path("stream"), &torn)?;
    let mut signer = Signer::start(&vm, "stream")?;
    signer.write(&lines(100..110))?;
    drop(signer.0.stdin.take());
    ensure!(signer.0.wait()?.success(), "it ends with its input");
    vm.tool("tpm2_flushcontext -t")?;
    let said = vm.verify_stream("stream", &["--identity-alone"])?;
    ensure!(said.status == 0, "{:#}", said.last);
    assert_eq!(said.last["summary"]["restarts"], 0);
    assert_eq!(said.readings.get(seen..), Some(&lines(100..110)[..]));
    // Whoever verified a part goes on behind it, and takes nothing twice.
    assert_eq!(vm.verify_stream("stream", &known)?.code(), (1, "replayed"));
    let skip = [&known[..], &["--skip-seen"]].concat();
    assert_eq!(vm.verify_stream("stream", &skip)?.readings, lines(100..110));
    assert_eq!(vm.verify_stream("stream", &skip)?.readings, lines(0..0));
    // One that is told to end does so behind what it took, and as one that has done its work.
    let expected = written() + 1;
    let mut signer = Signer::start(&vm, "stream")?;
    signer.write(&lines(200..201))?;
    wait_for("another", PATIENCE, || {
        Ok((written() >= expected).then_some(()))
    })?;
    signal::kill(
        Pid::from_raw(i32::try_from(signer.0.id())?),
        Signal::SIGTERM,
    )?;
    ensure!(signer.0.wait()?.success(), "it ends when it is told to");
    assert_eq!(vm.verify_stream("stream", &skip)?.readings, lines(200..201));
    // To another program, a stream begins anew with each run.
    fs::write(vm.path("readings"), "1\n2\n")?;
    for name in ["first", "second"] {
        let stream = vm.stream_signing(&["--from", "readings"])?.run()?;
        fs::write(vm.path(name), stream)?;
    }
    let both = [fs::read(vm.path("first"))?, fs::read(vm.path("second"))?].concat();
    fs::write(vm.path("both"), both)?;
    let said = vm.verify_stream("both", &["--identity-alone"])?;
    assert_eq!((said.code(), said.readings.len()), ((1, "restarted"), 2));
    let allowed = ["--identity-alone", "--allow-restarts"];
    let said = vm.verify_stream("both", &allowed)?;
    assert_eq!((said.status, said.readings.len()), (0, 4));
    assert_eq!(said.last["summary"]["restarts"], 1);
    Ok(())
}

#[test]
fn what_is_no_reading_ends_a_stream_behind_those_that_are() -> Result<()> {
    let vm = Vm::boot()?;
    fs::write(vm.path("readings"), "1\n2\n{\n4\n")?;
    let options = ["--from", "readings", "--to", "stream"];
    let refused = vm.stream_signing(&options)?.run().err();
    let refused = format!("{:#}", refused.context("line 3 is no JSON")?);
    ensure!(refused.contains("line 3"), "{refused}");
    let said = vm.verify_stream("stream", &["--identity-alone"])?;
    assert_eq!(
        (said.status, said.readings),
        (0, vec!["1".into(), "2".into()])
    );
    let again = vm.stream_signing(&options)?.run().err();
    let again = format!("{:#}", again.context("the stream is there")?);
    ensure!(again.contains("--append"), "{again}");
    Ok(())
}

#[test]
fn a_device_signs_a_stream_with_its_tpm() -> Result<()> {
    let (issuer, device) = enrolled()?;
    let policy = device.policy("spiffe://demo.example/plant-7/*", &issuer)?;
    let sent = lines(0..30);
    fs::write(device.path("readings"), sent.join("\n") + "\n")?;
    Tool::new(program("vrot-device")?)
        .args(["sign", "--stream", "--from", "readings", "--to", "stream"])
        .args(["--batch-readings", "10", "--evidence"])
        .args(device.root_of_trust())
        .folder(&device.path(""))
        .run()?;
    let folder = device.path("");
    let said = verify(&folder, &policy, "stream", &["--max-evidence-age", "600"])?;
    ensure!(said.status == 0, "{:#}", said.last);
    assert_eq!(said.readings, sent);
    Ok(())
}
