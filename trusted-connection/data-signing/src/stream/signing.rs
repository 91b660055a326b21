//! Batches that are signed one after the other.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cert_chain::{Digest32, PublicArea};
use printable::WithCauses;
use signed_data::stream::{BatchStatement, Link, Readings, UnsignedBatch};
use signed_data::{Credentials, EvidenceReference, FormatError, Label, LabelText, evidence_nonce};

use crate::signer::{BoxedError, DataSigner};
use crate::stream::collector::{Collected, Collector};
use crate::stream::framing::{FramingError, ReadingInput};
use crate::stream::options::StreamOptions;
use crate::stream::output::{Opened, Output, OutputError};
use crate::stream::stop;

/// What is signed, where it comes from and where it goes.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// How.
    pub options: &'a StreamOptions,
    /// Where readings come from, if not from standard input.
    pub from: Option<&'a Path>,
    /// Where batches go, if not to standard output.
    pub to: Option<&'a Path>,
    /// The stream's name.
    pub stream: &'a LabelText,
    /// What the readings are.
    pub content_type: &'a LabelText,
    /// Whether evidence is taken.
    pub evidence: bool,
}

/// What was signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Batches.
    pub batches: u64,
    /// Readings in them.
    pub readings: u64,
}

/// Why a stream ends that should go on. What came before is signed and written, but for the batch at which
/// it happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The input.
    #[error(transparent)]
    Input(#[from] FramingError),
    /// The input, from the first.
    #[error("{} cannot be opened", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Who signs, before anything is signed.
    #[error("the key that signs cannot be read: nothing was written")]
    Key(#[source] BoxedError),
    /// Who signs.
    #[error("the batch of {readings} readings from {first} on was not signed")]
    Signer {
        /// Its first reading.
        first: u64,
        /// How many there are.
        readings: usize,
        /// Why.
        #[source]
        source: BoxedError,
    },
    /// Not within the limits.
    #[error("a batch cannot be made of these readings")]
    Batch(#[from] FormatError),
    /// The system.
    #[error("readings cannot be taken in while a TPM signs")]
    Threads(#[source] io::Error),
}

/// Certificates are renewed long before they end; what proves the key is asked for anew after so long.
const REREAD: Duration = Duration::from_secs(60);

/// Signs readings until the input ends or a signal says so, and then what came until then.
pub fn sign_stream(job: &Job<'_>, signer: &mut dyn DataSigner) -> Result<Summary, StreamError> {
    let input = open(job.from)?;
    let Opened { mut output, after } = match job.to {
        Some(path) if job.options.append => {
            let key = public_area(signer).map_err(StreamError::Key)?;
            Output::append(path, &key, job.stream)?
        }
        Some(path) => Opened {
            output: Output::create(path)?,
            after: None,
        },
        None => Opened {
            output: Output::standard()?,
            after: None,
        },
    };
    let most = usize::try_from(job.options.batch_readings).unwrap_or(usize::MAX);
    let collector = Arc::new(Collector::new(most, job.options.batch_time()));
    stop::at_signals(&collector).map_err(StreamError::Threads)?;
    let filled = Arc::clone(&collector);
    let framing = job.options.framing;
    // It ends with the input, or with the process: nothing else can end a read.
    thread::Builder::new()
        .name("readings".to_owned())
        .spawn(move || fill(&filled, ReadingInput::new(input, framing)))
        .map_err(StreamError::Threads)?;
    let write = |batch: &[u8]| output.write(batch);
    sign_collected(job, &collector, after, signer, write)
}

fn public_area(signer: &mut dyn DataSigner) -> Result<PublicArea, BoxedError> {
    Ok(PublicArea::parse(&signer.credentials()?.statement.public)?)
}

/// Takes readings in until there are no more.
fn fill(collector: &Collector, input: ReadingInput<Box<dyn BufRead + Send>>) {
    for reading in input {
        match reading {
            Ok(reading) => collector.add(reading),
            Err(error) => return collector.end(Some(error)),
        }
    }
    collector.end(None);
}

/// Signs what is collected, batch by batch, until the collector has ended.
pub fn sign_collected(
    job: &Job<'_>,
    collector: &Collector,
    after: Option<Link>,
    signer: &mut dyn DataSigner,
    mut write: impl FnMut(&[u8]) -> Result<(), OutputError>,
) -> Result<Summary, StreamError> {
    let mut run = Run {
        job,
        signer,
        after,
        credentials: None,
        repeat: true,
        evidence: None,
    };
    let mut summary = Summary::default();
    while let Some(collected) = collector.take()? {
        let readings = collected.readings.len();
        let first = run.after.map_or(0, |link| link.next);
        let batch = run.batch(collected).map_err(|error| match error {
            BatchError::Format(error) => StreamError::Batch(error),
            BatchError::Signer(source) => StreamError::Signer {
                first,
                readings,
                source,
            },
        })?;
        write(&batch)?;
        summary.batches = summary.batches.saturating_add(1);
        summary.readings = summary.readings.saturating_add(readings as u64);
    }
    Ok(summary)
}

/// One run of a signer.
struct Run<'a> {
    job: &'a Job<'a>,
    signer: &'a mut dyn DataSigner,
    after: Option<Link>,
    /// Those that the last batch had, and when they were asked for.
    credentials: Option<(Credentials, Instant)>,
    /// Whether the next batch needs its credentials with it.
    repeat: bool,
    /// When evidence was taken last, or could not be had behind the first.
    evidence: Option<Instant>,
}

#[derive(Debug)]
enum BatchError {
    Format(FormatError),
    Signer(BoxedError),
}

impl From<FormatError> for BatchError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<BoxedError> for BatchError {
    fn from(error: BoxedError) -> Self {
        Self::Signer(error)
    }
}

impl Run<'_> {
    /// Signs one batch: as it is written.
    fn batch(&mut self, collected: Collected) -> Result<Vec<u8>, BatchError> {
        let readings = Readings::new(collected.readings)?;
        let mut credentials = self.credentials()?;
        let mut label = Label {
            key: self.signer.key(),
            source: self.signer.source(),
            stream: self.job.stream.clone(),
            sequence: self.signer.number()?,
            time: self.signer.now()?,
            content_type: self.job.content_type.clone(),
            evidence: None,
        };
        let statement = BatchStatement::over(
            &readings,
            &label,
            self.after,
            self.job.content_type.clone(),
            collected.span,
        );
        if self.job.evidence && self.evidence_is_due() {
            let begun = Instant::now();
            match self.take_evidence(&mut label, &statement) {
                Ok(evidence) => {
                    credentials.evidence = Some(evidence.into());
                    self.repeat = true;
                    self.evidence = Some(begun);
                }
                // Whoever demands evidence of a certain age notices; the host may be starting anew. It is
                // not asked for each batch: readings would wait as long as it does not answer.
                Err(error) if self.evidence.is_some() => {
                    let why = WithCauses(error.as_ref()).to_string();
                    tracing::warn!("no evidence for this batch: {why}");
                    self.evidence = Some(Instant::now());
                    label.time = self.signer.now()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let unsigned = UnsignedBatch::new(label, statement, readings)?;
        let signature = self.signer.sign(&unsigned.digest())?;
        self.after = Some(unsigned.link());
        let repeat = std::mem::replace(&mut self.repeat, false);
        let batch = unsigned.signed(signature, repeat.then_some(credentials));
        Ok(batch.to_stream())
    }

    fn credentials(&mut self) -> Result<Credentials, BoxedError> {
        if let Some((credentials, read_at)) = &self.credentials
            && read_at.elapsed() < REREAD
        {
            return Ok(credentials.clone());
        }
        let now = self.signer.credentials()?;
        if (self.credentials.as_ref()).is_none_or(|(before, _)| *before != now) {
            self.repeat = true;
        }
        self.credentials = Some((now.clone(), Instant::now()));
        Ok(now)
    }

    fn evidence_is_due(&self) -> bool {
        let every = Duration::from_secs(self.job.options.evidence_seconds);
        self.evidence.is_none_or(|taken| taken.elapsed() >= every)
    }

    fn take_evidence(
        &mut self,
        label: &mut Label,
        statement: &BatchStatement,
    ) -> Result<Vec<u8>, BoxedError> {
        let data = Digest32::of(&statement.to_cbor());
        let nonce = evidence_nonce(&label.key, label.sequence, &data)?;
        let taken = label.time;
        let evidence = self.signer.evidence(nonce)?;
        let time = self.signer.now()?;
        if taken > time {
            return Err("the clock was set back while evidence was taken".into());
        }
        label.time = time;
        label.evidence = Some(EvidenceReference {
            digest: Digest32::of(&evidence),
            taken,
        });
        Ok(evidence)
    }
}

fn open(from: Option<&Path>) -> Result<Box<dyn BufRead + Send>, StreamError> {
    const BUFFER: usize = 256 * 1024;
    Ok(match from {
        Some(path) => {
            let file = File::open(path).map_err(|source| StreamError::Open {
                path: path.to_owned(),
                source,
            })?;
            Box::new(BufReader::with_capacity(BUFFER, file))
        }
        None => Box::new(BufReader::with_capacity(BUFFER, io::stdin())),
    })
}
