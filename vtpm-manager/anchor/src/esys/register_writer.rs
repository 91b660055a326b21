//! Writes of registers in an HMAC session of this program's own, past the software stack.
//!
//! Each batch of the store waits for such a write. libtss2-esys takes some 2 ms of processor time
//! for one, because it makes a new OpenSSL library context for each hash; the TPM itself and all
//! that is done here take less than a tenth of that. The write is protected as in a session of the
//! stack: command and response carry an HMAC under the index's authorization value over fresh
//! nonces (TPM 2.0 Part 1 §19.6), the contents are no secret, and the authorization value has 256
//! bits of entropy, so the session is neither salted nor bound. What fails here is done once more
//! through the stack, which says why if it fails as well.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use tpm_wire::{HEADER, Header, MAX_SIZE, NO_SESSIONS, SESSIONS, frame, read_frame};

use crate::config::Tcti;
use crate::nv::REGISTER_SIZE;

/// Writes registers over a connection of its own, and keeps its session for the next time.
pub(super) struct RegisterWriter {
    wire: Wire,
    session: Option<Session>,
    /// Public areas of the indices, by number.
    publics: HashMap<u32, Vec<u8>>,
}

/// A way to the TPM: one command, one response.
enum Wire {
    /// A device with a resource manager, which every process may open.
    Device {
        path: PathBuf,
        open: Option<File>,
    },
    /// swtpm, which serves one connection at a time: it is opened for each command.
    Socket(PathBuf),
    Network {
        host: String,
        port: u16,
    },
}

struct Session {
    handle: u32,
    /// The nonce that the TPM sent last.
    nonce_tpm: Vec<u8>,
}

/// What is left of a response to be read.
struct Rest<'b>(&'b [u8]);

type Nonce = [u8; 32];

const START_AUTH_SESSION: u32 = 0x176;
const FLUSH_CONTEXT: u32 = 0x165;
const NV_READ_PUBLIC: u32 = 0x169;
const NV_WRITE: u32 = 0x137;
/// `TPM_RH_NULL`
const NO_HANDLE: u32 = 0x4000_0007;
/// `TPM_ALG_SHA256`
const SHA256: [u8; 2] = [0x00, 0x0b];
/// `TPM_ALG_NULL`
const NO_ALGORITHM: [u8; 2] = [0x00, 0x10];
/// `TPM_SE_HMAC`
const HMAC: u8 = 0x00;
/// `continueSession` alone (TPM 2.0 Part 2 §8.4).
const CONTINUE: u8 = 0x01;
/// Where the attributes are in a `TPMS_NV_PUBLIC`: after index and name algorithm.
const ATTRIBUTES: usize = 6;
/// `TPMA_NV_WRITTEN` in the first byte of the attributes (TPM 2.0 Part 2 §13.4, bit 29).
const WRITTEN: u8 = 0x20;

impl RegisterWriter {
    pub(super) fn new(tpm: &Tcti) -> Self {
        let wire = match tpm {
            Tcti::Device(path) => Wire::Device {
                path: path.clone(),
                open: None,
            },
            Tcti::SwtpmPath(path) => Wire::Socket(path.clone()),
            Tcti::SwtpmTcp { host, port } => Wire::Network {
                host: host.clone(),
                port: *port,
            },
        };
        Self {
            wire,
            session: None,
            publics: HashMap::new(),
        }
    }

    /// Writes all of an index. After an error the write may have happened or not, and nothing is
    /// kept for the next time.
    pub(super) fn write(
        &mut self,
        index: u32,
        auth: &[u8; 32],
        contents: &[u8; REGISTER_SIZE],
    ) -> io::Result<()> {
        let written = self.try_to_write(index, auth, contents);
        if written.is_err() {
            self.publics.remove(&index);
            self.end_session();
            if let Wire::Device { open, .. } = &mut self.wire {
                *open = None;
            }
        }
        written
    }

    fn try_to_write(
        &mut self,
        index: u32,
        auth: &[u8; 32],
        contents: &[u8; REGISTER_SIZE],
    ) -> io::Result<()> {
        let public = match self.publics.remove(&index) {
            Some(public) => public,
            None => self.read_public(index)?,
        };
        let name = [&SHA256[..], sha256(&[&public]).as_ref()].concat();
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.start_session()?,
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, auth);
        let parameters = [sized(contents)?, vec![0, 0]].concat();
        let command = sha256(&[&NV_WRITE.to_be_bytes(), &name, &name, &parameters]);
        let nonce = nonce()?;
        let proof = [command.as_ref(), &nonce, &session.nonce_tpm, &[CONTINUE]].concat();
        let authorization = [
            session.handle.to_be_bytes().to_vec(),
            sized(&nonce)?,
            vec![CONTINUE],
            sized(hmac::sign(&key, &proof).as_ref())?,
        ]
        .concat();
        let length = u32::try_from(authorization.len()).unwrap_or(u32::MAX);
        let body = [
            &index.to_be_bytes()[..],
            &index.to_be_bytes(),
            &length.to_be_bytes(),
            &authorization,
            &parameters,
        ]
        .concat();
        let answer = self.wire.succeed(&frame(SESSIONS, NV_WRITE, &body));
        // The session is known again to `end_session`, whatever the answer says.
        let nonce_tpm = answer.and_then(|answer| accepted(&key, &nonce, &answer));
        if let Ok(nonce_tpm) = &nonce_tpm {
            session.nonce_tpm.clone_from(nonce_tpm);
        }
        self.session = Some(session);
        nonce_tpm?;
        self.publics.insert(index, as_written(public));
        Ok(())
    }

    /// The public area of an index. Whoever changes it on the way makes the write fail, because
    /// the name is part of what is authorized.
    fn read_public(&mut self, index: u32) -> io::Result<Vec<u8>> {
        let command = frame(NO_SESSIONS, NV_READ_PUBLIC, &index.to_be_bytes());
        let answer = self.wire.succeed(&command)?;
        let public = Rest(&answer).sized()?.to_vec();
        if public.starts_with(&[&index.to_be_bytes()[..], &SHA256].concat()) {
            Ok(public)
        } else {
            Err(malformed())
        }
    }

    fn start_session(&mut self) -> io::Result<Session> {
        let body = [
            NO_HANDLE.to_be_bytes().repeat(2),
            sized(&nonce()?)?,
            sized(&[])?,
            vec![HMAC],
            NO_ALGORITHM.to_vec(),
            SHA256.to_vec(),
        ]
        .concat();
        let command = frame(NO_SESSIONS, START_AUTH_SESSION, &body);
        let answer = self.wire.succeed(&command)?;
        let mut rest = Rest(&answer);
        Ok(Session {
            handle: u32::from_be_bytes(*rest.chunk()?),
            nonce_tpm: rest.sized()?.to_vec(),
        })
    }

    /// Gives the session's slot in the TPM back. One that a TPM reset has ended is gone already.
    fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            let flush = frame(NO_SESSIONS, FLUSH_CONTEXT, &session.handle.to_be_bytes());
            drop(self.wire.succeed(&flush));
        }
    }
}

impl Drop for RegisterWriter {
    fn drop(&mut self) {
        self.end_session();
    }
}

impl Wire {
    /// What follows the header in the response to a command that succeeds.
    fn succeed(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let response = self.exchange(command)?;
        let header = Header::parse(&response).ok_or_else(malformed)?;
        match (header.code, response.get(HEADER..)) {
            (0, Some(body)) => Ok(body.to_vec()),
            (code, _) => Err(io::Error::other(format!("response code {code:#x}"))),
        }
    }

    fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let whole = |read: Option<Vec<u8>>| read.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        match self {
            Self::Device { path, open } => {
                let device = match open {
                    Some(device) => device,
                    None => open.insert(File::options().read(true).write(true).open(path)?),
                };
                device.write_all(command)?;
                // The kernel gives a response out in one piece.
                let mut response = vec![0; MAX_SIZE];
                let length = device.read(&mut response)?;
                response.truncate(length);
                Ok(response)
            }
            Self::Socket(path) => {
                let mut tpm = UnixStream::connect(path)?;
                tpm.write_all(command)?;
                whole(read_frame(&mut tpm, MAX_SIZE)?)
            }
            Self::Network { host, port } => {
                let mut tpm = TcpStream::connect((host.as_str(), *port))?;
                tpm.set_nodelay(true)?;
                tpm.write_all(command)?;
                whole(read_frame(&mut tpm, MAX_SIZE)?)
            }
        }
    }
}

impl<'b> Rest<'b> {
    fn chunk<const N: usize>(&mut self) -> io::Result<&'b [u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(chunk)
    }

    /// Bytes behind their number (`TPM2B`).
    fn sized(&mut self) -> io::Result<&'b [u8]> {
        let length = usize::from(u16::from_be_bytes(*self.chunk()?));
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// The TPM's next nonce, if the response proves that it comes from who knows the authorization
/// value, and answers this command.
fn accepted(key: &hmac::Key, nonce: &Nonce, answer: &[u8]) -> io::Result<Vec<u8>> {
    let mut rest = Rest(answer);
    // TPM2_NV_Write has no response parameters.
    if rest.chunk()? != &[0; 4] {
        return Err(malformed());
    }
    let nonce_tpm = rest.sized()?;
    let attributes: &[u8; 1] = rest.chunk()?;
    let tag = rest.sized()?;
    let response = sha256(&[&[0; 4], &NV_WRITE.to_be_bytes()]);
    let proved = [response.as_ref(), nonce_tpm, nonce, attributes].concat();
    if *attributes != [CONTINUE] || hmac::verify(key, &proved, tag).is_err() {
        return Err(io::Error::other("the response does not come from the TPM"));
    }
    Ok(nonce_tpm.to_vec())
}

/// The public area after a write.
fn as_written(mut public: Vec<u8>) -> Vec<u8> {
    if let Some(attributes) = public.get_mut(ATTRIBUTES) {
        *attributes |= WRITTEN;
    }
    public
}

fn sha256(parts: &[&[u8]]) -> digest::Digest {
    digest::digest(&digest::SHA256, &parts.concat())
}

fn sized(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes()[..], bytes].concat())
}

fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| io::Error::other("the operating system gave no random numbers"))?;
    Ok(nonce)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a response that no TPM gives")
}

#[cfg(test)]
mod tests {
    use anyhow::{Result, ensure};
    use test_support::Swtpm;

    use super::*;
    use crate::{AnchorConfig, Held, NvAuth, Retention, TrustAnchor};

    const AUTH: [u8; 32] = [7; 32];
    /// That of the volatile register.
    const INDEX: u32 = 0x0180_5652;

    #[test]
    fn a_register_is_written_over_resets_and_no_session_stays() -> Result<()> {
        let tpm = Swtpm::blank()?;
        tpm.tool("tpm2_startup -c")?;
        let way = Tcti::SwtpmPath(tpm.socket());
        let anchor = TrustAnchor::start(&AnchorConfig::new(way.clone(), tpm.path("anchor.json")))?;
        let register = anchor.register(Retention::Volatile, NvAuth::new(AUTH));
        register.define()?;
        let mut writer = RegisterWriter::new(&way);
        for byte in 0..20 {
            writer.write(INDEX, &AUTH, &[byte; REGISTER_SIZE])?;
            ensure!(register.read()? == Held::Written([byte; REGISTER_SIZE]));
        }
        tpm.switch_off()?;
        ensure!(writer.write(INDEX, &AUTH, &[1; REGISTER_SIZE]).is_err());
        tpm.switch_on()?;
        // The session is gone, and the index has another name until it is written.
        writer.write(INDEX, &AUTH, &[2; REGISTER_SIZE])?;
        writer.write(INDEX, &AUTH, &[3; REGISTER_SIZE])?;
        ensure!(register.read()? == Held::Written([3; REGISTER_SIZE]));
        ensure!(writer.write(INDEX, &[8; 32], &[4; REGISTER_SIZE]).is_err());
        ensure!(register.read()? == Held::Written([3; REGISTER_SIZE]));
        drop((writer, register, anchor));
        let held = tpm.tool("tpm2_getcap handles-loaded-session")?;
        ensure!(held.trim().is_empty(), "{held}");
        Ok(())
    }
}
