//! Archives: a large file, and very many small ones, with the programs as people run them.
//!
//! A VM of its own signs; the time stamps are OpenSSL's. Only `vrot-device archive` is timed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use test_support::programs::program;
use test_support::time_authority::{ServedAuthority, TimeAuthority};
use test_support::tool::Tool;

use super::arguments::Arguments;
use super::report::Report;
use super::samples::Samples;
use crate::proxied_vm::ProxiedVm;
use crate::scene::Scene;

const MIB: usize = 1024 * 1024;
/// How many records are in one directory.
const A_DIRECTORY: u32 = 1000;
/// How often a process that runs is asked how much memory it has had at most.
const PAUSE: Duration = Duration::from_millis(1);
/// What the figure's name says.
const MILLION: u32 = 1_000_000;

/// What signs and what is trusted.
struct Archiver {
    folder: PathBuf,
    policy: PathBuf,
    authority: Arc<TimeAuthority>,
    served: ServedAuthority,
    // In the order in which they end.
    vm: ProxiedVm,
    _scene: Scene,
}

/// Measures both.
pub(super) fn measure(report: &mut Report, arguments: &Arguments, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let archiver = Archiver::start(folder)?;
    let large = measure_large(report, &archiver, arguments);
    report.part("archive_verify_*", large);
    measure_records(report, &archiver, arguments.records)
}

fn measure_large(report: &mut Report, archiver: &Archiver, arguments: &Arguments) -> Result<()> {
    let mib = usize::try_from(arguments.archive_mib)?;
    let data = archiver.path("data");
    let mut file = BufWriter::new(File::create(&data)?);
    // Blocks that differ, so that nothing is stored once.
    for number in 0..mib {
        let block: Vec<u8> = (number..number + MIB)
            .map(|byte| byte.to_le_bytes()[0])
            .collect();
        file.write_all(&block)?;
    }
    file.into_inner()?.sync_all()?;
    archiver.sign(
        &["--from", "data", "--to", "data.signed"],
        "application/octet-stream",
    )?;
    archiver
        .create(&["data.signed", "--data", "data", "--to", "data.archive"])?
        .run()?;
    let (mut ours, mut theirs, mut peak) = (Samples::default(), Samples::default(), 0.0_f64);
    for _ in 0..arguments.rounds {
        let (took, memory) = watched(archiver.verify("data.archive")?)?;
        ours.add(mib as f64 / took.as_secs_f64());
        peak = peak.max(memory);
        let mut digest = Command::new("openssl");
        digest
            .args(["dgst", "-sha256"])
            .arg(archiver.path("data.archive"));
        let (took, _) = watched(digest)?;
        theirs.add(mib as f64 / took.as_secs_f64());
    }
    let count = ours.count();
    report.beside(
        "archive_verify_mib_per_s",
        ours.median()?,
        theirs.median()?,
        "MiB/s",
        count,
    );
    report.alone("archive_verify_peak_mib", peak, "MiB", count);
    for left in ["data", "data.signed", "data.archive"] {
        fs::remove_file(archiver.path(left))?;
    }
    Ok(())
}

fn measure_records(report: &mut Report, archiver: &Archiver, records: u32) -> Result<()> {
    let name = match records {
        MILLION => "archive_million".to_owned(),
        other => format!("archive_{other}_records"),
    };
    let folder = archiver.path("records");
    for number in 0..records {
        let directory = folder.join(format!("{:04}", number / A_DIRECTORY));
        if number % A_DIRECTORY == 0 {
            fs::create_dir_all(&directory)?;
        }
        let record = format!("{{\"number\":{number},\"celsius\":21.5,\"room\":\"1\"}}\n");
        fs::write(directory.join(format!("{number:07}.json")), record)?;
    }
    Tool::new(program("vrot-device")?)
        .args(["archive", "records", "records", "--to", "records.cbor"])
        .folder(&archiver.folder)
        .run()?;
    let statement = "application/vnd.vrot.records+cbor";
    archiver.sign(
        &[
            "--from",
            "records.cbor",
            "--to",
            "records.signed",
            "--attached",
        ],
        statement,
    )?;
    let begin = Instant::now();
    archiver
        .create(&[
            "records.signed",
            "--records",
            "records",
            "--to",
            "records.archive",
        ])?
        .run()?;
    let created = begin.elapsed().as_secs_f64();
    let (took, memory) = watched(archiver.verify("records.archive")?)?;
    let verified = took.as_secs_f64();
    // What others would do with such a directory: one file, and its hash value.
    let begin = Instant::now();
    Tool::new("tar")
        .args([
            "--create",
            "--sort=name",
            "--file",
            "records.tar",
            "records",
        ])
        .folder(&archiver.folder)
        .run()?;
    Tool::new("openssl")
        .args(["dgst", "-sha256", "records.tar"])
        .folder(&archiver.folder)
        .run()?;
    let packed = begin.elapsed().as_secs_f64();
    report.alone(format!("{name}_s"), created + verified, "s", 1);
    report.beside(format!("{name}_create_s"), created, packed, "s", 1);
    report.alone(format!("{name}_verify_s"), verified, "s", 1);
    report.alone(format!("{name}_verify_peak_mib"), memory, "MiB", 1);
    fs::remove_dir_all(&folder)?;
    Ok(())
}

impl Archiver {
    fn start(folder: &Path) -> Result<Self> {
        let authority = Arc::new(TimeAuthority::new()?);
        let served = authority.serve()?;
        let scene = Scene::set("bench-archive")?;
        let vm = ProxiedVm::boot(&scene.host, folder)?;
        // Its log and quotes are what the policy is made from; nobody connects.
        let proxy = vm.proxy("proxy", "127.0.0.1:9".parse()?, &["--any-device"])?;
        Ok(Self {
            folder: folder.to_owned(),
            policy: vm.policy(&scene, &proxy)?,
            authority,
            served,
            vm,
            _scene: scene,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn sign(&self, options: &[&str], content_type: &str) -> Result<()> {
        Tool::new(program("vrot-service")?)
            .arg("sign")
            .args(options)
            .args(["--content-type", content_type, "--stream-name", "bench"])
            .args(["--tpm", &self.vm.bare.tpm()])
            .arg("--event-log")
            .arg(self.vm.bare.event_log())
            .folder(&self.folder)
            .run()
            .map(drop)
    }

    fn create(&self, options: &[&str]) -> Result<Tool> {
        Ok(Tool::new(program("vrot-device")?)
            .args(["archive", "create"])
            .args(options)
            .args(["--identity-alone", "--authority", &self.served.url()])
            .arg("--authority-root")
            .arg(self.authority.root())
            .arg("--policy")
            .arg(&self.policy)
            .folder(&self.folder))
    }

    fn verify(&self, archive: &str) -> Result<Command> {
        let mut command = Command::new(program("vrot-device")?);
        command
            .args(["archive", "verify", archive, "--identity-alone"])
            .arg("--authority-root")
            .arg(self.authority.root())
            .arg("--policy")
            .arg(&self.policy)
            .current_dir(&self.folder);
        Ok(command)
    }
}

/// How long a program took, and how many MiB of memory it had at most, as far as it was asked before it ended.
fn watched(mut command: Command) -> Result<(Duration, f64)> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let mut child = command.spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0_f64;
    let ended = loop {
        if let Some(kib) = fs::read_to_string(&status)
            .ok()
            .as_deref()
            .and_then(high_water)
        {
            peak = peak.max(kib / 1024.0);
        }
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        thread::sleep(PAUSE);
    };
    let took = begin.elapsed();
    ensure!(ended.success(), "{command:?} ended with {ended}");
    Ok((took, peak))
}

fn high_water(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
