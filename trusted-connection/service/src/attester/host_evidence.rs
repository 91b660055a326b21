//! Asking the host through the vRoT, with two commands of its own ([`tpm_wire::host_commands`]), so
//! that a guest needs neither a network nor an agent to reach its host.
//!
//! Kernels that find commands by the lower half of their codes alone (Linux 6.1, for one) refuse
//! these; they are asked for the same commands without the vendor bit.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use attestation::RequestDigest;
use attestation::evidence::{LogPosition, MAX_HOST_LAYER};
use cert_chain::Digest32;
use tpm_wire::host_commands::{HOST_EVIDENCE_READ, HOST_EVIDENCE_REQUEST, VENDOR};
use tpm_wire::{MAX_SIZE, NO_SESSIONS, Response, ResponseCode, frame};

/// Why the host gave no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostEvidenceError {
    /// The host was asked, and refused or has no manager.
    #[error(
        "the host will not answer: the vRoT runs without a manager, or the manager refused, e.g. \
         because the VM's identity key is not certified yet"
    )]
    Declined,
    /// The TPM cannot be reached.
    #[error("the TPM cannot be reached")]
    Io(#[from] io::Error),
    /// An answer that is none.
    #[error("the TPM's answer is malformed")]
    Malformed,
    /// More than a host layer can be.
    #[error("the host announced {size} bytes; a host layer has at most {MAX_HOST_LAYER}")]
    TooLong {
        /// Announced size.
        size: u32,
    },
    /// The TPM refused the command.
    #[error("the TPM refused the command with response code 0x{:03x}: is it a vRoT?", code.raw())]
    Refused {
        /// `TPM_RC`.
        code: ResponseCode,
    },
    /// The host took too long.
    #[error("the host did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

/// What the kernel's resource manager answers for a command that it does not find in the TPM's
/// list: its own layer number and `TPM_RC_COMMAND_CODE`.
const UNKNOWN_TO_KERNEL: ResponseCode = ResponseCode::new(0x000b_0143);
/// A physical TPM signs in 25 to 600 ms, and others may be before us.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two questions whether the host is done: a part of the time that has passed since it was expected to
/// be. So nobody waits much longer than the host needs, and one that has a lot to do is not asked all the time:
/// each question costs the VM's TPM a command.
const OVERDUE: u32 = 8;
const SHORTEST_WAIT: Duration = Duration::from_micros(500);
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// Before the first question of a host of which nothing is known: hardly any physical TPM signs sooner.
const UNKNOWN_HOST: Duration = Duration::from_millis(16);
/// What a host took longer ago says nothing of what others ask of it now.
const LATELY: Duration = Duration::from_secs(1);

/// The host's event log as it was read last. It is most of a layer, and comes in small parts.
#[derive(Debug)]
pub struct KnownLog {
    digest: Digest32,
    bytes: Vec<u8>,
}

impl KnownLog {
    /// The log in a layer.
    fn of(layer: &[u8]) -> Option<Self> {
        let position = LogPosition::find(layer)?;
        let bytes = layer.get(position.range)?;
        (Digest32::of(bytes) == position.digest).then(|| Self {
            digest: position.digest,
            bytes: bytes.to_vec(),
        })
    }

    /// Completes the log in what was read of a layer, if it is this one.
    fn complete(&self, layer: &mut Vec<u8>) {
        let Some(position) = LogPosition::find(layer) else {
            return;
        };
        let is_this = position.digest == self.digest && position.range.len() == self.bytes.len();
        if is_this && layer.len() < position.range.end {
            layer.truncate(position.range.start);
            layer.extend_from_slice(&self.bytes);
        }
    }
}

/// What is known of a host from one request to the next.
#[derive(Debug, Default)]
pub struct HostMemory {
    log: Option<Arc<KnownLog>>,
    pace: Option<HostPace>,
}

/// How soon a host has answered: it is not asked much before.
#[derive(Clone, Copy, Debug)]
struct HostPace {
    /// Lately.
    usual: Duration,
    /// Ever.
    least: Duration,
    last: Instant,
}

impl HostMemory {
    /// When to ask first.
    fn first_wait(&self, now: Instant) -> Duration {
        match self.pace {
            None => UNKNOWN_HOST,
            // It may have had a lot to do then.
            Some(pace) if now.saturating_duration_since(pace.last) > LATELY => pace.least * 15 / 16,
            Some(pace) => pace.usual * 15 / 16,
        }
    }

    /// It was seen to have answered after so long. A host that was quick once may have become slow, and one that
    /// has the answer at the first question may have had it long before.
    fn answered_after(&mut self, took: Duration, is_first_question: bool, now: Instant) {
        let usual = match self.pace {
            _ if is_first_question => took * 7 / 8,
            Some(pace) if pace.usual < took => pace.usual + (took - pace.usual) / 8,
            _ => took,
        };
        self.pace = Some(HostPace {
            usual,
            least: self.pace.map_or(usual, |pace| pace.least.min(usual)),
            last: now,
        });
    }
}

/// Asks the host for its layer. `tpm` takes one command with each write and gives one response
/// with each read, as `/dev/tpmrm0` does. A log that is known is not read again.
pub fn host_layer(
    tpm: &mut (impl Read + Write + ?Sized),
    request: &RequestDigest,
    memory: &Mutex<HostMemory>,
) -> Result<Vec<u8>, HostEvidenceError> {
    let memory = || memory.lock().unwrap_or_else(PoisonError::into_inner);
    let last = memory().log.clone();
    let begin = Instant::now();
    let first_wait = memory().first_wait(begin);
    let deadline = begin + DEADLINE;
    let digest = request.0;
    let parameters = [&[0, 32], digest.as_bytes().as_slice()].concat();
    let (answer, read) = match execute(tpm, HOST_EVIDENCE_REQUEST, &parameters) {
        Err(HostEvidenceError::Refused {
            code: UNKNOWN_TO_KERNEL,
        }) => (
            execute(tpm, HOST_EVIDENCE_REQUEST & !VENDOR, &parameters)?,
            HOST_EVIDENCE_READ & !VENDOR,
        ),
        answer => (answer?, HOST_EVIDENCE_READ),
    };
    let ticket: [u8; 8] = answer
        .as_slice()
        .try_into()
        .map_err(|_| HostEvidenceError::Malformed)?;
    let mut layer = Vec::new();
    thread::sleep(first_wait);
    let mut expected = begin + first_wait;
    let mut is_first_question = true;
    loop {
        let offset = u32::try_from(layer.len()).map_err(|_| HostEvidenceError::Malformed)?;
        let parameters = [ticket.as_slice(), &offset.to_be_bytes()].concat();
        match execute(tpm, read, &parameters) {
            Ok(answer) => {
                let (total, chunk) = read_chunk(&answer)?;
                if layer.is_empty() {
                    let now = Instant::now();
                    memory().answered_after(now - begin, is_first_question, now);
                }
                layer.extend_from_slice(chunk);
                expected = Instant::now();
                if let Some(last) = &last {
                    last.complete(&mut layer);
                }
                if layer.len() == total {
                    let is_known = last.is_some_and(|last| {
                        LogPosition::find(&layer).is_some_and(|log| log.digest == last.digest)
                    });
                    if !is_known {
                        let log = KnownLog::of(&layer).map(Arc::new);
                        memory().log = log;
                    }
                    return Ok(layer);
                }
                if chunk.is_empty() || layer.len() > total {
                    return Err(HostEvidenceError::Malformed);
                }
            }
            Err(HostEvidenceError::Refused {
                code: ResponseCode::RETRY,
            }) => {
                if Instant::now() >= deadline {
                    return Err(HostEvidenceError::Timeout(DEADLINE));
                }
                is_first_question = false;
                let wait = expected.elapsed() / OVERDUE;
                thread::sleep(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT));
            }
            Err(HostEvidenceError::Refused {
                code: ResponseCode::NO_RESULT,
            }) => {
                return Err(HostEvidenceError::Declined);
            }
            Err(error) => return Err(error),
        }
    }
}

fn read_chunk(answer: &[u8]) -> Result<(usize, &[u8]), HostEvidenceError> {
    let malformed = || HostEvidenceError::Malformed;
    let (total, rest) = answer.split_first_chunk().ok_or_else(malformed)?;
    let (length, chunk) = rest.split_first_chunk().ok_or_else(malformed)?;
    let size = u32::from_be_bytes(*total);
    if usize::from(u16::from_be_bytes(*length)) != chunk.len() {
        return Err(malformed());
    }
    match usize::try_from(size) {
        Ok(total) if total <= MAX_HOST_LAYER => Ok((total, chunk)),
        _ => Err(HostEvidenceError::TooLong { size }),
    }
}

/// Sends one command and returns what follows the response's header.
fn execute(
    tpm: &mut (impl Read + Write + ?Sized),
    code: u32,
    parameters: &[u8],
) -> Result<Vec<u8>, HostEvidenceError> {
    tpm.write_all(&frame(NO_SESSIONS, code, parameters))?;
    let mut response = vec![0; MAX_SIZE];
    let length = tpm.read(&mut response)?;
    response.truncate(length);
    let response = Response::parse(&response).ok_or(HostEvidenceError::Malformed)?;
    match response.code() {
        ResponseCode::SUCCESS => Ok(response.body().to_vec()),
        code => Err(HostEvidenceError::Refused { code }),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::VecDeque;

    use attestation::HostLayer;
    use tpm_wire::response;

    use super::*;

    /// `TPM_RC_COMMAND_CODE`
    const COMMAND_CODE: ResponseCode = ResponseCode::new(0x143);

    /// Answers each command with the next of its prepared responses.
    #[derive(Default)]
    struct Prepared {
        responses: VecDeque<Vec<u8>>,
        commands: Vec<Vec<u8>>,
    }

    impl Prepared {
        fn then(mut self, code: ResponseCode, body: &[u8]) -> Self {
            self.responses.push_back(response(code, body));
            self
        }

        fn chunk(self, total: u32, chunk: &[u8]) -> Self {
            let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
            self.then(
                ResponseCode::SUCCESS,
                &[total.to_be_bytes().as_slice(), &length, chunk].concat(),
            )
        }
    }

    impl Read for Prepared {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let response = self.responses.pop_front().unwrap_or_default();
            let length = response.len();
            buffer.get_mut(..length).unwrap().copy_from_slice(&response);
            Ok(length)
        }
    }

    impl Write for Prepared {
        fn write(&mut self, command: &[u8]) -> io::Result<usize> {
            self.commands.push(command.to_vec());
            Ok(command.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(mut tpm: Prepared) -> (Result<Vec<u8>, HostEvidenceError>, Prepared) {
        let request = RequestDigest(Digest32::of(b"quote"));
        (host_layer(&mut tpm, &request, &Mutex::default()), tpm)
    }

    #[test]
    fn a_host_is_asked_shortly_before_it_usually_answers() {
        let ms = Duration::from_millis;
        let begin = Instant::now();
        let mut memory = HostMemory::default();
        assert_eq!(memory.first_wait(begin), UNKNOWN_HOST);
        memory.answered_after(ms(80), false, begin);
        assert_eq!(memory.first_wait(begin), ms(75));
        // It has more to do; when it was asked long before, it may have less again.
        memory.answered_after(ms(720), false, begin);
        assert_eq!(memory.first_wait(begin), ms(150));
        assert_eq!(memory.first_wait(begin + ms(1001)), ms(75));
        // It had the answer already.
        memory.answered_after(ms(160), true, begin);
        assert_eq!(memory.first_wait(begin), ms(140) * 15 / 16);
        memory.answered_after(ms(40), false, begin);
        assert_eq!(memory.first_wait(begin), ms(40) * 15 / 16);
    }

    #[test]
    fn the_layer_is_read_chunk_by_chunk_once_the_host_is_done() {
        let tpm = Prepared::default()
            .then(ResponseCode::SUCCESS, &[0, 0, 0, 0, 0, 0, 0, 9])
            .then(ResponseCode::RETRY, &[])
            .chunk(6, b"abcd")
            .then(ResponseCode::RETRY, &[])
            .chunk(6, b"ef");
        let (layer, tpm) = ask(tpm);
        assert_eq!(layer.unwrap(), b"abcdef");
        let last = tpm.commands.last().unwrap();
        assert!(last.ends_with(&[0, 0, 0, 9, 0, 0, 0, 4]), "ticket, offset");
    }

    /// A layer with this log, read in chunks at these offsets.
    fn read_in_chunks(
        layer: &[u8],
        known: &Mutex<HostMemory>,
        chunks: &[(usize, usize)],
    ) -> Vec<u32> {
        let total = u32::try_from(layer.len()).unwrap();
        let mut tpm = Prepared::default().then(ResponseCode::SUCCESS, &[0; 8]);
        for (from, to) in chunks {
            tpm = tpm.chunk(total, layer.get(*from..*to).unwrap());
        }
        let request = RequestDigest(Digest32::of(b"quote"));
        assert_eq!(host_layer(&mut tpm, &request, known).unwrap(), layer);
        let reads = tpm.commands.iter().skip(1);
        let offset = |command: &Vec<u8>| *command.last_chunk::<4>().unwrap();
        reads.map(|read| u32::from_be_bytes(offset(read))).collect()
    }

    #[test]
    fn a_log_that_is_known_is_not_read_again_and_another_one_is() {
        let layer = |log: &[u8]| {
            HostLayer {
                attest: vec![1; 100].into(),
                signature: vec![2; 72].into(),
                host_ik_public: vec![3; 90].into(),
                event_log_digest: Digest32::of(log),
                event_log: log.to_vec().into(),
                root: Digest32::of(b"root"),
                tree_size: 1,
                index: 0,
                path: Vec::new(),
                leaf: vec![4; 100].into(),
                pcr_values: Vec::new().into(),
            }
            .to_cbor()
        };
        let one = layer(&[7; 10_000]);
        let other = layer(&[8; 10_000]);
        let known = Mutex::default();
        let end = one.len();
        let all = [(0, 4000), (4000, 8000), (8000, end)];
        assert_eq!(read_in_chunks(&one, &known, &all), [0, 4000, 8000]);
        let log = LogPosition::find(&one).unwrap().range;
        let few = [(0, 4000), (log.end, end)];
        let behind = u32::try_from(log.end).unwrap();
        assert_eq!(read_in_chunks(&one, &known, &few), [0, behind]);
        assert_eq!(read_in_chunks(&other, &known, &all), [0, 4000, 8000]);
        assert_eq!(read_in_chunks(&other, &known, &few), [0, behind]);
        // One that does not have its digest is not kept.
        let mut lies = layer(&[9; 10_000]);
        *lies.get_mut(log.start).unwrap() = 0;
        assert_eq!(read_in_chunks(&lies, &known, &all), [0, 4000, 8000]);
        assert!(known.lock().unwrap().log.is_none());
    }

    #[test]
    fn a_host_that_declines_and_a_tpm_that_is_no_vrot_are_told_apart() {
        let declined = Prepared::default()
            .then(ResponseCode::SUCCESS, &[0; 8])
            .then(ResponseCode::NO_RESULT, &[]);
        assert!(matches!(ask(declined).0, Err(HostEvidenceError::Declined)));
        let ordinary = Prepared::default().then(COMMAND_CODE, &[]);
        assert!(matches!(
            ask(ordinary).0,
            Err(HostEvidenceError::Refused { code: COMMAND_CODE })
        ));
    }

    #[test]
    fn an_old_kernel_is_asked_without_the_vendor_bit() {
        let tpm = Prepared::default()
            .then(UNKNOWN_TO_KERNEL, &[])
            .then(ResponseCode::SUCCESS, &[0; 8])
            .chunk(2, b"ab");
        let (layer, tpm) = ask(tpm);
        assert_eq!(layer.unwrap(), b"ab");
        let codes: Vec<_> = tpm.commands.iter().map(|c| c.get(6..10)).collect();
        assert_eq!(
            codes,
            [
                Some([0x20, 0, 0x56, 0x52].as_slice()),
                Some([0, 0, 0x56, 0x52].as_slice()),
                Some([0, 0, 0x56, 0x53].as_slice()),
            ]
        );
    }

    #[test]
    fn impossible_answers_are_refused() {
        let endless = Prepared::default()
            .then(ResponseCode::SUCCESS, &[0; 8])
            .chunk(4, b"");
        assert!(matches!(ask(endless).0, Err(HostEvidenceError::Malformed)));
        let too_much = Prepared::default()
            .then(ResponseCode::SUCCESS, &[0; 8])
            .chunk(1, b"ab");
        assert!(matches!(ask(too_much).0, Err(HostEvidenceError::Malformed)));
        let huge = Prepared::default()
            .then(ResponseCode::SUCCESS, &[0; 8])
            .chunk(u32::MAX, b"a");
        assert!(matches!(
            ask(huge).0,
            Err(HostEvidenceError::TooLong { size: u32::MAX })
        ));
        assert!(matches!(
            ask(Prepared::default()).0,
            Err(HostEvidenceError::Malformed)
        ));
    }
}
