//! Who owns the vRoT, and in what order challenges get to it.
//!
//! One thread quotes. While the host signs, which takes as long as its physical TPM needs, the vRoT is
//! free, and all challenges that come meanwhile go under the next quote: so no number of challenges
//! keeps another one waiting for more than a quote and a signature.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use super::quoting::{EvidenceFiles, EvidenceRequest, Quoted, Quoter};
use super::{AttesterError, Host, VmTpm};

/// Evidence in CBOR, or why there is none: the same reason for all that were asked for at a time.
pub type Outcome = Result<Vec<u8>, Arc<AttesterError>>;

/// Challenges on their way to a vRoT. The thread behind it ends when this is dropped.
#[derive(Debug)]
pub struct Batches {
    jobs: SyncSender<Job>,
}

/// More requests wait than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests for evidence wait already")]
pub struct Full;

struct Job {
    request: EvidenceRequest,
    reply: Box<dyn FnOnce(Outcome) + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("request", &self.request)
            .finish()
    }
}

/// Requests that wait.
const MAX_WAITING: usize = 4096;
/// Requests under one quote. Each gets a copy of both logs.
const MAX_BATCH: usize = 512;
/// So many requests in a row the host has open at a time. The vRoT keeps its last four: with two that
/// follow each other, none is dropped for newer ones while its answer is being read, in whatever order
/// they are sent and read.
const MAX_OPEN: u64 = 2;
/// A request that follows another one is sent so long before that is usually answered: it then has its turn
/// in the host's next quote, also on a host that has others to serve, and as many challenges as possible go
/// with it. Sent at once, it would wait for all of the one before.
const LEAD: Duration = Duration::from_millis(5);
/// Between two quotes while challenges come all the time: a host signs no more often, and its quota of
/// requests (1,200 a minute by default) has to last.
const INTERVAL: Duration = Duration::from_millis(60);
/// Longer than a host takes: what is waited for is told.
const PLACE_WAIT: Duration = Duration::from_secs(60);
/// Quotes in a row after a rest.
const BURST: u32 = 3;

impl Batches {
    /// Begins to take requests.
    pub fn start(
        tpm: impl VmTpm + Send + 'static,
        host: Arc<dyn Host>,
        files: impl Into<EvidenceFiles>,
    ) -> io::Result<Self> {
        let files = files.into();
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        thread::Builder::new()
            .name("quotes".to_owned())
            .spawn(move || quote_while_asked(tpm, host, files, waiting))?;
        Ok(Self { jobs })
    }

    /// Asks for evidence; `reply` gets it, on a thread of this attester's.
    pub fn request(
        &self,
        request: EvidenceRequest,
        reply: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<(), Full> {
        let job = Job {
            request,
            reply: Box::new(reply),
        };
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Full),
        }
    }
}

fn quote_while_asked(
    tpm: impl VmTpm,
    host: Arc<dyn Host>,
    files: EvidenceFiles,
    waiting: Receiver<Job>,
) {
    let open = Arc::<Open>::default();
    let mut quoter = Quoter::new(tpm, files);
    let mut pace = Pace::default();
    while let Ok(first) = waiting.recv() {
        let place = Open::place(&open);
        thread::sleep(pace.wait(Instant::now()));
        let mut jobs = vec![first];
        while jobs.len() < MAX_BATCH
            && let Ok(job) = waiting.try_recv()
        {
            jobs.push(job);
        }
        let (requests, replies): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.request, job.reply)).unzip();
        let answer = match quoter.quote(requests) {
            Ok(quoted) => Answer {
                quoted,
                replies,
                _place: place,
            },
            Err(error) => {
                refuse(replies, error);
                continue;
            }
        };
        let host = Arc::clone(&host);
        let (hand_over, handed) = sync_channel(1);
        let started = thread::Builder::new()
            .name("host evidence".to_owned())
            .spawn(move || {
                if let Ok(answer) = handed.recv() {
                    Answer::fetch(answer, &*host);
                }
            });
        if let Err(error) = started {
            tracing::warn!(%error, "the host is not asked: no thread can be started");
        }
        // Without a thread, the replies are dropped, and who waits for them is told by that.
        let _ = hand_over.send(answer);
    }
}

/// A quote, and who waits for what the host says about it.
struct Answer {
    quoted: Quoted,
    replies: Vec<Box<dyn FnOnce(Outcome) + Send>>,
    _place: Place,
}

impl Answer {
    fn fetch(self, host: &dyn Host) {
        let evidence = host
            .layer(&self.quoted.request)
            .map_err(AttesterError::Host)
            .and_then(|layer| self.quoted.complete(&layer));
        match evidence {
            Ok(evidence) => {
                for (evidence, reply) in evidence.zip(self.replies) {
                    reply(Ok(evidence.to_cbor()));
                }
            }
            Err(error) => refuse(self.replies, error),
        }
    }
}

fn refuse(replies: Vec<Box<dyn FnOnce(Outcome) + Send>>, error: AttesterError) {
    let error = Arc::new(error);
    for reply in replies {
        reply(Err(Arc::clone(&error)));
    }
}

/// When the next quote may be made.
#[derive(Debug, Default)]
struct Pace {
    /// When the one after [`BURST`] may be, if no more come.
    full_at: Option<Instant>,
}

impl Pace {
    /// Takes a quote into account; how long to wait before it.
    fn wait(&mut self, now: Instant) -> Duration {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        let due = full_at.checked_sub(INTERVAL * (BURST - 1)).unwrap_or(now);
        self.full_at = Some(full_at + INTERVAL);
        due.saturating_duration_since(now)
    }
}

/// Which requests the host has open.
#[derive(Debug, Default)]
struct Open {
    window: Mutex<Window>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Window {
    next: u64,
    /// Those that are open, and since when.
    open: BTreeMap<u64, Instant>,
    /// How long the last one took that was answered.
    usual: Duration,
}

/// One of them, until it is dropped.
#[derive(Debug)]
struct Place {
    open: Arc<Open>,
    number: u64,
}

impl Open {
    /// Waits until the oldest that is open is less than [`MAX_OPEN`] behind, and the newest of them about to
    /// be answered.
    fn place(open: &Arc<Self>) -> Place {
        let mut window = open.window();
        while let Some(wait) = window.wait(Instant::now()) {
            let waited = open.changed.wait_timeout(window, wait);
            window = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let number = window.next;
        window.next += 1;
        window.open.insert(number, Instant::now());
        Place {
            open: Arc::clone(open),
            number,
        }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// How long to wait before looking again; nothing, if the next request may be sent.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let (oldest, _) = self.open.first_key_value()?;
        if self.next - oldest >= MAX_OPEN {
            return Some(PLACE_WAIT);
        }
        let (_, newest) = self.open.last_key_value()?;
        let due = *newest + self.usual.saturating_sub(LEAD);
        (due > now).then(|| due - now)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut window = self.open.window();
        if let Some(since) = window.open.remove(&self.number) {
            window.usual = since.elapsed();
        }
        drop(window);
        self.open.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use attestation::fixture::{self, Host as FixtureHost, Vm, nonce, now};
    use attestation::merkle::leaf_hash;
    use attestation::{
        Anchoring, Binding, BootRecord, CutOff, Durability, Evidence, HostLeaf, LaunchMeasurement,
        Nonce, Purpose, QuotePurpose, RequestDigest, StateLoss, TpmTransport,
    };
    use cert_chain::{Digest32, Generation, HashAlgorithm, PcrSelection, PublicArea, TrustAnchors};

    use super::*;
    use crate::attester::{HostEvidenceError, SignedQuote};

    /// A vRoT and a host whose keys are in software, and whose physical TPM is slow.
    struct Parties {
        host: FixtureHost,
        vm: Vm,
        quotes: AtomicUsize,
        layers: AtomicUsize,
        open: AtomicUsize,
        declines: bool,
        transport: TpmTransport,
    }

    impl Parties {
        fn new(declines: bool) -> Arc<Self> {
            Self::attached_by(TpmTransport::Emulator, declines)
        }

        fn attached_by(transport: TpmTransport, declines: bool) -> Arc<Self> {
            let host = FixtureHost::new("host-1");
            Arc::new(Self {
                transport,
                vm: host.vm(),
                host,
                quotes: AtomicUsize::new(0),
                layers: AtomicUsize::new(0),
                open: AtomicUsize::new(0),
                declines,
            })
        }

        fn start(self: &Arc<Self>, folder: &tempfile::TempDir) -> Batches {
            let log = folder.path().join("log");
            std::fs::write(&log, &self.vm.log).unwrap();
            Batches::start(Guest(self.clone()), self.clone(), log).unwrap()
        }
    }

    struct Guest(Arc<Parties>);

    impl VmTpm for Guest {
        fn vik_public(&mut self) -> Result<Vec<u8>, AttesterError> {
            Ok(self.0.vm.public.clone())
        }

        fn certificates(&mut self) -> Result<Vec<Vec<u8>>, AttesterError> {
            Ok(vec![
                self.0.vm.certificate.to_vec(),
                self.0.host.certificate.to_vec(),
            ])
        }

        fn quoted(&self) -> PcrSelection {
            PcrSelection::new(self.0.vm.quoted.iter().copied()).unwrap()
        }

        fn banks(&mut self) -> Result<Vec<HashAlgorithm>, AttesterError> {
            Ok(vec![HashAlgorithm::Sha256])
        }

        fn quote(
            &mut self,
            bank: HashAlgorithm,
            qualifying_data: &Digest32,
        ) -> Result<SignedQuote, AttesterError> {
            self.0.quotes.fetch_add(1, Ordering::SeqCst);
            let pcrs = fixture::pcrs_of(bank, &self.0.vm.log, &self.0.vm.quoted);
            let attest = fixture::quote(&pcrs, qualifying_data);
            let signature = fixture::sign(&self.0.vm.key, &attest).to_vec();
            Ok(SignedQuote {
                attest,
                signature,
                pcrs,
            })
        }
    }

    impl Host for Parties {
        fn layer(&self, request: &RequestDigest) -> Result<Vec<u8>, HostEvidenceError> {
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(open <= 2, "{open} requests are open");
            thread::sleep(Duration::from_millis(30));
            self.open.fetch_sub(1, Ordering::SeqCst);
            self.layers.fetch_add(1, Ordering::SeqCst);
            if self.declines {
                return Err(HostEvidenceError::Declined);
            }
            let vik = PublicArea::parse(&self.vm.public).unwrap().name();
            let leaf = HostLeaf {
                salt: leaf_hash(b"salt"),
                vm: self.vm.vm,
                vrot: self.vm.vrot,
                tenant: "acme".parse().unwrap(),
                generation: Generation::new(1),
                vik: vik.clone(),
                eks: vec![vik],
                launch: LaunchMeasurement::NotMeasured,
                request: *request,
                durability: Durability::Durable,
                anchoring: Anchoring::Strict,
                cut_off: CutOff::Excluded,
                state_loss: StateLoss::Excluded,
                transport: self.transport,
                purpose: QuotePurpose::Service,
            };
            Ok(self.host.layer(&[leaf], 0).to_cbor())
        }
    }

    fn challenge(byte: u8) -> EvidenceRequest {
        EvidenceRequest {
            nonce: Nonce::new([byte; 32]).unwrap(),
            binding: Binding::None,
            tls_key: None,
        }
    }

    #[test]
    fn no_request_is_made_while_one_far_before_it_is_open() {
        let open = Arc::<Open>::default();
        let first = Open::place(&open);
        let second = Open::place(&open);
        drop(second);
        // The first is open still, so a third would be the second one beyond it.
        let (sender, receiver) = mpsc::channel();
        let waiting = Arc::clone(&open);
        let third = thread::spawn(move || {
            let place = Open::place(&waiting);
            sender.send(()).unwrap();
            place
        });
        let waited = receiver.recv_timeout(Duration::from_millis(100));
        assert_eq!(waited, Err(mpsc::RecvTimeoutError::Timeout));
        drop(first);
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(third.join().unwrap().number, 2);
    }

    #[test]
    fn a_request_that_follows_another_is_sent_when_that_is_about_to_be_answered() {
        let start = Instant::now();
        let mut window = Window {
            usual: Duration::from_millis(80),
            ..Window::default()
        };
        assert_eq!(window.wait(start), None, "none is open");
        window.open.insert(0, start);
        window.next = 1;
        assert_eq!(window.wait(start), Some(Duration::from_millis(75)));
        assert_eq!(window.wait(start + Duration::from_millis(75)), None);
        window.usual = Duration::ZERO;
        assert_eq!(window.wait(start), None, "not known yet, or a quick host");
        window.open.insert(1, start);
        window.next = 2;
        assert_eq!(window.wait(start), Some(PLACE_WAIT), "two are open");
    }

    #[test]
    fn a_few_quotes_follow_each_other_at_once_and_the_others_in_turn() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let waits: Vec<_> = (0..5).map(|_| pace.wait(start)).collect();
        assert_eq!(waits, [0, 0, 0, 1, 2].map(|turns| INTERVAL * turns));
        let rested = start + INTERVAL * 20;
        assert_eq!(pace.wait(rested), Duration::ZERO);
        // What waited for its turn does not lose it to the clock.
        let mut now = start;
        let mut pace = Pace::default();
        for _ in 0..100 {
            now += pace.wait(now);
        }
        assert_eq!(now - start, INTERVAL * (100 - BURST));
    }

    #[test]
    fn challenges_that_wait_share_quotes_and_each_gets_evidence_of_its_own() {
        let parties = Parties::new(false);
        let folder = tempfile::tempdir().unwrap();
        let batches = parties.start(&folder);
        let (sender, receiver) = mpsc::channel();
        for byte in 0..150 {
            let sender = sender.clone();
            let reply = move |outcome| sender.send((byte, outcome)).unwrap();
            batches.request(challenge(byte), reply).unwrap();
        }
        let anchors = TrustAnchors::from_pem(&parties.host.issuer.certificate_pem()).unwrap();
        let mut salts = BTreeSet::new();
        for (byte, outcome) in receiver.iter().take(150) {
            let evidence = Evidence::from_cbor(&outcome.unwrap()).unwrap();
            let own = challenge(byte).nonce;
            let verify =
                |nonce: &Nonce| evidence.verify(nonce, &Purpose::Challenge, &anchors, now());
            verify(&own).unwrap();
            assert_eq!(verify(&nonce()).unwrap_err().code(), "nonce");
            assert!(salts.insert(evidence.vm.salt));
        }
        let quotes = parties.quotes.load(Ordering::SeqCst);
        assert!(quotes < 20, "{quotes} quotes for 150 challenges");
        assert_eq!(parties.layers.load(Ordering::SeqCst), quotes);
    }

    #[test]
    fn a_missing_event_log_is_accepted_from_a_vm_whose_tpm_no_firmware_drives_and_from_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let answered = |transport, log: &str| {
            let parties = Parties::attached_by(transport, false);
            let log = folder.path().join(log);
            let batches = Batches::start(Guest(parties.clone()), parties.clone(), log).unwrap();
            let (sender, receiver) = mpsc::channel();
            let reply = move |outcome| sender.send(outcome).unwrap();
            batches.request(challenge(1), reply).unwrap();
            receiver.recv().unwrap()
        };
        let evidence = answered(TpmTransport::VirtioI2c, "none").unwrap();
        let evidence = Evidence::from_cbor(&evidence).unwrap();
        assert_eq!(evidence.vm.boot, BootRecord::PcrsAlone);
        let absent = answered(TpmTransport::Emulator, "none").unwrap_err();
        assert!(
            matches!(*absent, AttesterError::EventLogAbsent { .. }),
            "{absent:?}"
        );
        // One that cannot be read is not missing.
        let unreadable = answered(TpmTransport::VirtioI2c, ".").unwrap_err();
        assert!(
            matches!(*unreadable, AttesterError::EventLog { .. }),
            "{unreadable:?}"
        );
    }

    #[test]
    fn a_host_that_declines_is_told_to_everybody_who_waits() {
        let parties = Parties::new(true);
        let folder = tempfile::tempdir().unwrap();
        let batches = parties.start(&folder);
        let (sender, receiver) = mpsc::channel();
        for byte in 0..20 {
            let sender = sender.clone();
            let reply = move |outcome| sender.send(outcome).unwrap();
            batches.request(challenge(byte), reply).unwrap();
        }
        for outcome in receiver.iter().take(20) {
            let error = outcome.unwrap_err();
            assert!(matches!(
                *error,
                AttesterError::Host(HostEvidenceError::Declined)
            ));
        }
    }
}
