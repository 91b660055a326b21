//! `vrot-device verify-data --stream`: readings that are signed batch by batch.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use attestation::{PolicyAbout, Verdict};
use bounded_file::read_bounded;
use cert_chain::TrustAnchors;
use clap::Args;
use durable_file::{Existing, OutputFile};
use printable::{Printable, printable_json};
use serde_json::{Value, json};
use signed_data::stream::{
    Batch, BatchEvidence, BatchInput, BatchResult, MAX_POSITION, Position, Seen, StreamRefusal,
    StreamVerifier,
};
use trusted_connection::crl_files::CrlFiles;

use super::telling::{
    evidence_to_text, reading_to_json, refusal_to_json, refusal_to_text, source_to_json,
};
use super::{VerifyData, anchors_of};
use crate::command_line::say;
use crate::outcome::Outcome;
use crate::times::rfc3339;
use crate::tree::{Colour, mark};

/// Of `verify-data`, where it verifies a stream.
#[derive(Debug, Args)]
pub(super) struct StreamOptions {
    /// Verify a stream (`sign --stream`): print its readings batch by batch, as each is verified, up to the
    /// first batch that is refused.
    #[arg(long, conflicts_with = "data")]
    pub(super) stream: bool,
    /// Where it is kept how far the stream was verified: verification begins behind that, and the file is
    /// written anew with each batch. The stream begins if there is no such file.
    #[arg(long, value_name = "FILE", requires = "stream")]
    position: Option<PathBuf>,
    /// Pass over batches up to the kept position, instead of refusing them as replayed. The evidence of the
    /// last that has some counts for those that follow.
    #[arg(long, requires = "position")]
    skip_seen: bool,
    /// Take a stream up in its middle, whatever came before.
    #[arg(long, requires = "stream")]
    join: bool,
    /// Take it that the stream begins anew, as after its source was killed: what was in between is not known.
    #[arg(long, requires = "stream")]
    allow_restarts: bool,
    /// Write the reading with this number, with its proof, to the file of --to.
    #[arg(long, value_name = "NUMBER", requires_all = ["stream", "to"])]
    take: Option<u64>,
    /// The file for the reading of --take.
    #[arg(long, value_name = "FILE", requires = "take")]
    to: Option<PathBuf>,
}

/// One run over a stream.
struct Run<'a> {
    command: &'a VerifyData,
    policy: &'a PolicyAbout,
    roots: &'a TrustAnchors,
    crls: &'a CrlFiles,
    /// What follows in the input is there: nothing has to be waited for.
    whole: bool,
    verifier: StreamVerifier,
    batches: u64,
    readings: u64,
    restarts: u64,
    taken: bool,
    refusal: Option<&'static str>,
}

/// Verifies a stream from its beginning, or from where it was verified to.
pub(super) fn verify(
    command: &VerifyData,
    policy: &PolicyAbout,
    crls: &CrlFiles,
) -> Result<Outcome> {
    let options = &command.stream;
    let roots = anchors_of(policy)?;
    let _lock = options.position.as_deref().map(lock).transpose()?;
    let known = (options.position.as_deref()).map_or(Ok(None), read_position)?;
    let file = open(&command.signed)?;
    let whole = (file.metadata()).is_ok_and(|metadata| metadata.is_file());
    let mut input = BatchInput::new(BufReader::new(file));
    let skipped = known.is_some() && options.skip_seen;
    let mut verifier = match known {
        Some(position) if skipped => {
            let seen = skip(&mut input, position)?;
            let anchors = roots.with_lists(&crls.for_verification());
            StreamVerifier::after_seen(seen, policy, &anchors, command.at())
        }
        Some(position) => StreamVerifier::after(position),
        None => StreamVerifier::new(),
    };
    if options.allow_restarts {
        verifier = verifier.allow_restarts();
    }
    if options.join {
        verifier = verifier.join();
    }
    let mut run = Run {
        command,
        policy,
        roots,
        crls,
        whole,
        verifier,
        batches: 0,
        readings: 0,
        restarts: 0,
        taken: false,
        refusal: None,
    };
    let verdict = run.all(&mut input)?;
    if run.batches == 0 && verdict == Verdict::Affirming && !skipped {
        bail!("{} has no batch of a stream", command.signed.display());
    }
    run.end(verdict)?;
    if let Some(number) = (options.take).filter(|_| !run.taken && verdict == Verdict::Affirming) {
        bail!("reading {number} is not among those that were verified");
    }
    Ok(verdict.into())
}

impl Run<'_> {
    /// Batch by batch, until one is less than affirming.
    fn all(&mut self, input: &mut BatchInput<impl Read>) -> Result<Verdict> {
        while let Some(batch) = input.next() {
            match self.judge(batch.with_context(|| self.command.unusable())?) {
                Ok(result) => {
                    let verdict = result.verdict();
                    self.tell(&result)?;
                    if verdict != Verdict::Affirming {
                        return Ok(verdict);
                    }
                    self.keep(&result)?;
                }
                Err(refusal) => {
                    // Who drops a batch must not be able to hold back that this is told.
                    let refusal = match self.whole {
                        true => self.explain(refusal, input),
                        false => refusal,
                    };
                    match self.command.json {
                        true => say_line(&refusal_to_json(&refusal))?,
                        false => say(&refusal_to_text(&refusal))?,
                    }
                    self.refusal = Some(refusal.code());
                    return Ok(Verdict::Contraindicated);
                }
            }
        }
        Ok(Verdict::Affirming)
    }

    fn judge(&mut self, batch: Batch) -> Result<BatchResult, StreamRefusal> {
        let at = self.command.at();
        let verified = self.verifier.verify(batch, &self.anchors(), at)?;
        let demand = self.command.demand();
        self.verifier.appraise(verified, self.policy, &demand)
    }

    fn explain(&self, refusal: StreamRefusal, input: &mut BatchInput<impl Read>) -> StreamRefusal {
        let following = input.map_while(Result::ok);
        let at = self.command.at();
        (self.verifier).explain(refusal, following, &self.anchors(), at)
    }

    /// With the revocation lists as their files have them now.
    fn anchors(&self) -> TrustAnchors {
        self.crls.anchors(self.roots)
    }

    /// Prints a batch; its readings only if it is affirmed.
    fn tell(&self, result: &BatchResult) -> Result<()> {
        let readings = match result.verdict() {
            Verdict::Affirming => Some((result.statement().first..).zip(result.readings().iter())),
            Verdict::Warning | Verdict::Contraindicated => None,
        };
        if self.command.json {
            let mut lines = line(&batch_to_json(result));
            for (number, reading) in readings.into_iter().flatten() {
                lines.push_str(&line(&reading_to_json(number, reading)));
            }
            return deliver(&lines);
        }
        let mut text = batch_to_text(result);
        for (number, reading) in readings.into_iter().flatten() {
            let shown = String::from_utf8_lossy(reading);
            let _ = writeln!(text, "  {number} {}", Printable(&shown));
        }
        deliver(&text)
    }

    /// What is done with a batch that was printed.
    fn keep(&mut self, result: &BatchResult) -> Result<()> {
        let options = &self.command.stream;
        self.batches = self.batches.saturating_add(1);
        self.readings = (self.readings).saturating_add(result.readings().count());
        self.restarts = (self.restarts).saturating_add(u64::from(result.restarted()));
        if let (Some(number), Some(to), false) = (options.take, &options.to, self.taken)
            && let Some(reading) = result.take(number)
        {
            OutputFile::create(to, 0o666, Existing::Keep)?.finish_with(&reading.to_cbor())?;
            self.taken = true;
        }
        if let (Some(path), Some(position)) = (&options.position, self.verifier.position()) {
            OutputFile::create(path, 0o600, Existing::Replace)
                .and_then(|file| file.finish_with(&position.to_cbor()))
                .with_context(|| format!("the position {} cannot be written", path.display()))?;
        }
        Ok(())
    }

    /// The last lines.
    fn end(&self, verdict: Verdict) -> Result<()> {
        let (batches, readings, restarts) = (self.batches, self.readings, self.restarts);
        if self.command.json {
            return say_line(
                &json!({ "summary": { "verdict": verdict, "batches": batches,
                "readings": readings, "restarts": restarts, "refusal": self.refusal } }),
            );
        }
        let mut text = format!("\n{readings} readings in {batches} batches are verified\n");
        if restarts > 0 {
            let _ = writeln!(text, "the stream began anew {restarts} times");
        }
        let _ = writeln!(text, "\nverdict: {verdict}");
        say(&text)
    }
}

/// Prints readings. Nobody has verified what could not be printed: it is not to be behind the position, and a
/// stream that nobody reads is not read to its end.
fn deliver(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    (out.write_all(text.as_bytes()).and_then(|()| out.flush()))
        .context("the readings cannot be written to standard output")
}

fn batch_to_json(result: &BatchResult) -> Value {
    let (data, statement) = (result.data(), result.statement());
    let label = data.label();
    let reasons = result.reasons();
    json!({ "batch": {
        "verdict": result.verdict(),
        "source": source_to_json(data.source()),
        "stream": label.stream,
        "number": label.sequence,
        "signed_at": rfc3339(label.time),
        "content_type": statement.content_type,
        "first_reading": statement.first,
        "readings": statement.count,
        "taken_from_ms": statement.span.from,
        "taken_to_ms": statement.span.to,
        "began_anew": result.restarted(),
        "evidence": evidence_of(result),
        "evidence_age_s": result.evidence_age(),
        "reasons": reasons
            .map(|reason| json!({ "code": reason.code, "text": reason.text }))
            .collect::<Vec<_>>(),
        "attestation": result.attestation().map(|attestation| attestation.to_json()),
    } })
}

fn evidence_of(result: &BatchResult) -> &'static str {
    match result.evidence() {
        BatchEvidence::Own => "own",
        BatchEvidence::Earlier(_) => "earlier",
        BatchEvidence::None => "none",
    }
}

/// One line for the batch, one for each reason, and what its evidence showed.
fn batch_to_text(result: &BatchResult) -> String {
    let (label, statement) = (result.data().label(), result.statement());
    let (number, time) = (label.sequence, rfc3339(label.time));
    let source = label.source.to_string();
    let (from, to) = (statement.first, statement.next().saturating_sub(1));
    let mut text = format!(
        "batch {number} of {}, signed at {time}: readings {from} to {to}",
        Printable(&source)
    );
    let _ = write!(text, "; evidence: {}", evidence_of(result));
    if let Some(age) = result.evidence_age() {
        let _ = write!(text, ", {age} s old");
    }
    if result.restarted() {
        text.push_str("; the stream begins anew");
    }
    text.push('\n');
    let mark = mark(result.verdict(), Colour::of_output());
    for reason in result.reasons() {
        let (why, code) = (Printable(&reason.text), reason.code);
        let _ = writeln!(text, "{mark} {why} ({code})");
    }
    if let BatchEvidence::Earlier(verdict) = result.evidence()
        && verdict != Verdict::Affirming
    {
        let _ = writeln!(
            text,
            "{mark} the evidence of the earlier batch is {verdict}"
        );
    }
    text.push_str(&evidence_to_text(result.attestation()));
    text
}

/// Batches up to the one that was verified last.
fn skip(input: &mut BatchInput<impl Read>, known: Position) -> Result<Seen> {
    let mut seen = Seen::up_to(known);
    for batch in input {
        if seen.pass(batch?) {
            return Ok(seen);
        }
    }
    bail!("the batch up to which the stream was verified is not in it");
}

fn read_position(path: &Path) -> Result<Option<Position>> {
    if !fs::exists(path).with_context(|| format!("{} cannot be read", path.display()))? {
        return Ok(None);
    }
    let bytes = read_bounded(path, MAX_POSITION)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let position = Position::from_cbor(&bytes);
    let position =
        position.with_context(|| format!("{} is no position in a stream", path.display()))?;
    Ok(Some(position))
}

/// Keeps other runs from the same position: each would go on from where it was, and the last would have its
/// say. The position itself is replaced, so that the lock is on a file beside it.
fn lock(position: &Path) -> Result<File> {
    let mut path = position.to_owned().into_os_string();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another run keeps its position in {}: end that one first, or name another file",
            position.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} cannot be locked", path.display()))
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let file = match path == Path::new("-") {
        true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        false => File::open(path),
    };
    file.with_context(|| format!("{} cannot be opened", path.display()))
}

fn line(value: &Value) -> String {
    printable_json(&format!("{value}\n"))
}

fn say_line(value: &Value) -> Result<()> {
    say(&line(value))
}
