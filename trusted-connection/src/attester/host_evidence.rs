//! Asking the host through the vRoT: two vendor commands, so that a guest needs neither a
//! network nor an agent to reach its host.
//!
//! | Command | Code | Parameters | Answer |
//! |---|---|---|---|
//! | HOST_EVIDENCE_REQUEST | `0x20005652` | `TPM2B_DIGEST` request | `UINT64` ticket |
//! | HOST_EVIDENCE_READ | `0x20005653` | `UINT64` ticket, `UINT32` offset | `UINT32` total size, `TPM2B` chunk |
//!
//! Kernels that find commands by the lower half of their codes alone (Linux 6.1, for one) refuse
//! these; for them both are also known as `0x5652` and `0x5653`.
//!
//! Both have no handles and no sessions. READ answers `TPM_RC_RETRY` until the host is done, and
//! while it fetches a further part; and `TPM_RC_NO_RESULT` if it will not be.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use attestation::RequestDigest;
use attestation::evidence::MAX_HOST_LAYER;

/// Why the host gave no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostEvidenceError {
    /// The host was asked, and refused or has no manager.
    #[error("the host will not answer: the vRoT runs without a manager, or the manager refused")]
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
    #[error("the TPM refused the command with response code 0x{code:03x}: is it a vRoT?")]
    Refused {
        /// `TPM_RC`.
        code: u32,
    },
    /// The host took too long.
    #[error("the host did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

const NO_SESSIONS: u16 = 0x8001;
const REQUEST: u32 = 0x2000_5652;
const READ: u32 = 0x2000_5653;
const SUCCESS: u32 = 0;
/// The vendor bit of a command code.
const VENDOR: u32 = 0x2000_0000;
/// What the kernel's resource manager answers for a command that it does not find in the TPM's
/// list: its own layer number and `TPM_RC_COMMAND_CODE`.
const UNKNOWN_TO_KERNEL: u32 = 0x000b_0143;
const RETRY: u32 = 0x922;
const NO_RESULT: u32 = 0x154;
/// A response has at most as many bytes (`TPM_PT_MAX_RESPONSE_SIZE`).
const MAX_RESPONSE: usize = 4096;
const HEADER: usize = 10;
/// A physical TPM signs in 25 to 600 ms, and others may be before us.
const DEADLINE: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Asks the host for its layer. `tpm` takes one command with each write and gives one response
/// with each read, as `/dev/tpmrm0` does.
pub fn host_layer(
    tpm: &mut (impl Read + Write),
    request: &RequestDigest,
) -> Result<Vec<u8>, HostEvidenceError> {
    let deadline = Instant::now() + DEADLINE;
    let digest = request.0;
    let parameters = [&[0, 32], digest.as_bytes().as_slice()].concat();
    let (answer, read) = match execute(tpm, REQUEST, &parameters) {
        Err(HostEvidenceError::Refused {
            code: UNKNOWN_TO_KERNEL,
        }) => (
            execute(tpm, REQUEST & !VENDOR, &parameters)?,
            READ & !VENDOR,
        ),
        answer => (answer?, READ),
    };
    let ticket: [u8; 8] = answer
        .as_slice()
        .try_into()
        .map_err(|_| HostEvidenceError::Malformed)?;
    let mut layer = Vec::new();
    let mut wait = FIRST_WAIT;
    loop {
        let offset = u32::try_from(layer.len()).map_err(|_| HostEvidenceError::Malformed)?;
        let parameters = [ticket.as_slice(), &offset.to_be_bytes()].concat();
        match execute(tpm, read, &parameters) {
            Ok(answer) => {
                let (total, chunk) = read_chunk(&answer)?;
                layer.extend_from_slice(chunk);
                wait = FIRST_WAIT;
                if layer.len() == total {
                    return Ok(layer);
                }
                if chunk.is_empty() || layer.len() > total {
                    return Err(HostEvidenceError::Malformed);
                }
            }
            Err(HostEvidenceError::Refused { code: RETRY }) => {
                if Instant::now() >= deadline {
                    return Err(HostEvidenceError::Timeout(DEADLINE));
                }
                thread::sleep(wait);
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            Err(HostEvidenceError::Refused { code: NO_RESULT }) => {
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
    tpm: &mut (impl Read + Write),
    code: u32,
    parameters: &[u8],
) -> Result<Vec<u8>, HostEvidenceError> {
    let size =
        u32::try_from(HEADER + parameters.len()).map_err(|_| HostEvidenceError::Malformed)?;
    let command = [
        NO_SESSIONS.to_be_bytes().as_slice(),
        &size.to_be_bytes(),
        &code.to_be_bytes(),
        parameters,
    ]
    .concat();
    tpm.write_all(&command)?;
    let mut response = vec![0; MAX_RESPONSE];
    let length = tpm.read(&mut response)?;
    response.truncate(length);
    let malformed = || HostEvidenceError::Malformed;
    let (header, body) = response
        .split_first_chunk::<HEADER>()
        .ok_or_else(malformed)?;
    let [_, _, s0, s1, s2, s3, c0, c1, c2, c3] = *header;
    if usize::try_from(u32::from_be_bytes([s0, s1, s2, s3])).ok() != Some(length) {
        return Err(malformed());
    }
    match u32::from_be_bytes([c0, c1, c2, c3]) {
        SUCCESS => Ok(body.to_vec()),
        code => Err(HostEvidenceError::Refused { code }),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::VecDeque;

    use cert_chain::Digest32;

    use super::*;

    /// Answers each command with the next of its prepared responses.
    #[derive(Default)]
    struct Prepared {
        responses: VecDeque<Vec<u8>>,
        commands: Vec<Vec<u8>>,
    }

    impl Prepared {
        fn then(mut self, code: u32, body: &[u8]) -> Self {
            let size = u32::try_from(HEADER + body.len()).unwrap();
            self.responses.push_back(
                [
                    NO_SESSIONS.to_be_bytes().as_slice(),
                    &size.to_be_bytes(),
                    &code.to_be_bytes(),
                    body,
                ]
                .concat(),
            );
            self
        }

        fn chunk(self, total: u32, chunk: &[u8]) -> Self {
            let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
            self.then(
                0,
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
        (host_layer(&mut tpm, &request), tpm)
    }

    #[test]
    fn the_layer_is_read_chunk_by_chunk_once_the_host_is_done() {
        let tpm = Prepared::default()
            .then(0, &[0, 0, 0, 0, 0, 0, 0, 9])
            .then(RETRY, &[])
            .chunk(6, b"abcd")
            .then(RETRY, &[])
            .chunk(6, b"ef");
        let (layer, tpm) = ask(tpm);
        assert_eq!(layer.unwrap(), b"abcdef");
        let last = tpm.commands.last().unwrap();
        assert!(last.ends_with(&[0, 0, 0, 9, 0, 0, 0, 4]), "ticket, offset");
    }

    #[test]
    fn a_host_that_declines_and_a_tpm_that_is_no_vrot_are_told_apart() {
        let declined = Prepared::default().then(0, &[0; 8]).then(NO_RESULT, &[]);
        assert!(matches!(ask(declined).0, Err(HostEvidenceError::Declined)));
        let ordinary = Prepared::default().then(0x143, &[]);
        assert!(matches!(
            ask(ordinary).0,
            Err(HostEvidenceError::Refused { code: 0x143 })
        ));
    }

    #[test]
    fn an_old_kernel_is_asked_without_the_vendor_bit() {
        let tpm = Prepared::default()
            .then(UNKNOWN_TO_KERNEL, &[])
            .then(0, &[0; 8])
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
        let endless = Prepared::default().then(0, &[0; 8]).chunk(4, b"");
        assert!(matches!(ask(endless).0, Err(HostEvidenceError::Malformed)));
        let too_much = Prepared::default().then(0, &[0; 8]).chunk(1, b"ab");
        assert!(matches!(ask(too_much).0, Err(HostEvidenceError::Malformed)));
        let huge = Prepared::default().then(0, &[0; 8]).chunk(u32::MAX, b"a");
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
