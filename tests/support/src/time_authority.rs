//! `openssl ts` as a time-stamp authority, at whatever time a test says it is.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::tool::Tool;

/// Root and authority, with keys of their own, in a folder of their own.
#[derive(Debug)]
pub struct TimeAuthority {
    folder: TempDir,
    /// Seconds since 1970; the system's time if zero.
    clock: AtomicU64,
}

/// What is special about an authority.
#[derive(Clone, Copy, Debug)]
pub struct AuthorityProfile<'a> {
    /// What its keys are.
    pub keys: Keys,
    /// The section of its extensions.
    pub extensions: &'a str,
    /// How long its certificate is valid.
    pub days: u32,
    /// How long its root's is.
    pub root_days: u32,
    /// Its name.
    pub name: &'a str,
}

/// What an authority's keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// ECDSA.
    P256,
    /// ECDSA on the curve for which another hash algorithm than the one in use here is customary.
    P384,
    /// What `openssl ts` is shown with as a rule.
    Rsa,
}

/// An authority that answers over HTTP until this is dropped.
#[derive(Debug)]
pub struct ServedAuthority {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const CONFIGURATION: &str = "
[req]
distinguished_name = name
prompt = no
[name]
CN = placeholder
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[authority]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
[not-critical]
extendedKeyUsage = timeStamping
[two-purposes]
extendedKeyUsage = critical, timeStamping, serverAuth
[ca]
default_ca = this
[this]
database = index.txt
crlnumber = crlnumber
default_md = sha256
default_crl_days = 3650
[tsa]
default_tsa = stamps
[stamps]
serial = serial
signer_digest = sha256
default_policy = 1.3.6.1.4.1.99999.1
digests = sha256, sha384, sha512
accuracy = millisecs:500
ordering = no
tsa_name = yes
ess_cert_id_chain = no
ess_cert_id_alg = sha256
";
/// For a request's head or body.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_REQUEST: usize = 64 * 1024;

impl Default for AuthorityProfile<'_> {
    fn default() -> Self {
        Self {
            keys: Keys::P256,
            extensions: "authority",
            days: 3650,
            root_days: 36500,
            name: "Authority of time here",
        }
    }
}

impl TimeAuthority {
    /// By the system's time, for ten years.
    pub fn new() -> Result<Self> {
        Self::with(AuthorityProfile::default(), None)
    }

    /// Made at `at` (seconds since 1970), which is its time from then on.
    pub fn with(profile: AuthorityProfile<'_>, at: Option<u64>) -> Result<Self> {
        let authority = Self {
            folder: tempfile::tempdir()?,
            clock: AtomicU64::new(at.unwrap_or(0)),
        };
        authority.write("openssl.cnf", CONFIGURATION.as_bytes())?;
        authority.write("index.txt", b"")?;
        authority.write("crlnumber", b"01\n")?;
        authority.write("serial", b"01\n")?;
        let key = match profile.keys {
            Keys::P256 => "-newkey ec -pkeyopt ec_paramgen_curve:P-256",
            Keys::P384 => "-newkey ec -pkeyopt ec_paramgen_curve:P-384",
            Keys::Rsa => "-newkey rsa:2048",
        };
        let common = format!("req -x509 -config openssl.cnf -nodes {key}");
        let root_days = profile.root_days;
        authority.openssl(
            &format!(
                "{common} -days {root_days} -extensions root -keyout root.key -out root.pem -subj"
            ),
            &["/CN=Root for time"],
        )?;
        let (days, extensions) = (profile.days, profile.extensions);
        authority.openssl(
            &format!(
                "{common} -days {days} -extensions {extensions} -keyout own.key -CA root.pem -CAkey root.key \
                 -out own.pem -subj"
            ),
            &[&format!("/CN={}", profile.name)],
        )?;
        Ok(authority)
    }

    /// Sets its time, in seconds since 1970.
    pub fn set_clock(&self, at: u64) {
        self.clock.store(at, Ordering::SeqCst);
    }

    /// Its folder: `root.pem`, `own.pem` and `own.key`, what OpenSSL needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The root's certificate.
    pub fn root(&self) -> PathBuf {
        self.folder().join("root.pem")
    }

    /// Its answer to a request in DER.
    pub fn answer(&self, request: &[u8]) -> Result<Vec<u8>> {
        let own = tempfile::tempdir()?;
        let (asked, answered) = (own.path().join("request"), own.path().join("answer"));
        fs::write(&asked, request)?;
        let files = [
            Path::new("-queryfile"),
            &asked,
            Path::new("-out"),
            &answered,
        ];
        self.openssl(
            "ts -reply -config openssl.cnf -signer own.pem -inkey own.key -chain root.pem",
            &files,
        )?;
        Ok(fs::read(answered)?)
    }

    /// A revocation list in DER, of the authority if it was revoked at a time.
    pub fn crl(&self, revoked: Option<u64>) -> Result<Vec<u8>> {
        let ca = "ca -config openssl.cnf -cert root.pem -keyfile root.key";
        if let Some(since) = revoked {
            let revoke = format!("{ca} -revoke own.pem -crl_reason keyCompromise");
            self.openssl_at(since, &revoke, &[] as &[&str])?;
        }
        self.openssl(&format!("{ca} -gencrl -out list.pem"), &[] as &[&str])?;
        self.openssl(
            "crl -in list.pem -outform DER -out list.der",
            &[] as &[&str],
        )?;
        self.read("list.der")
    }

    /// Whether OpenSSL takes this token for a time stamp over these data.
    pub fn openssl_verifies(&self, token: &[u8], data: &[u8]) -> Result<bool> {
        self.write("judged.tst", token)?;
        self.write("judged.data", data)?;
        let verify = "ts -verify -data judged.data -in judged.tst -token_in -CAfile root.pem";
        Ok(self.tool(self.clock(), verify).outcome()?.status.success())
    }

    /// Answers over HTTP on the loopback.
    pub fn serve(self: &Arc<Self>) -> Result<ServedAuthority> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (authority, stopped) = (Arc::clone(self), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever asked sees that there is no answer.
                let _ = stream
                    .map_err(Into::into)
                    .and_then(|stream| authority.answer_to(stream));
            }
        });
        Ok(ServedAuthority {
            address,
            stop,
            thread: Some(thread),
        })
    }

    fn answer_to(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = Vec::new();
        let body = loop {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece)?;
            request.extend(piece.get(..read).unwrap_or_default());
            if let Some(body) = body_of(&request)? {
                break body;
            }
            if read == 0 || request.len() > MAX_REQUEST {
                bail!("no whole request");
            }
        };
        let answer = self.answer(body)?;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/timestamp-reply\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            answer.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&answer)?;
        Ok(())
    }

    /// Writes a file into its folder.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        Ok(fs::write(self.folder().join(name), content)?)
    }

    /// Reads a file of its folder.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.folder().join(name))?)
    }

    /// Runs OpenSSL in its folder, by its clock: `line` in words, and what may have spaces behind them.
    pub fn openssl(&self, line: &str, more: &[impl AsRef<std::ffi::OsStr>]) -> Result<Vec<u8>> {
        self.tool(self.clock(), line).args(more).run()
    }

    fn openssl_at(&self, at: u64, line: &str, more: &[&str]) -> Result<Vec<u8>> {
        self.tool(Some(at), line).args(more).run()
    }

    fn clock(&self) -> Option<u64> {
        Some(self.clock.load(Ordering::SeqCst)).filter(|clock| *clock != 0)
    }

    fn tool(&self, at: Option<u64>, line: &str) -> Tool {
        let tool = match at {
            Some(at) => at_time("openssl", at),
            None => Tool::new("openssl"),
        };
        tool.args(line.split(' ')).folder(self.folder())
    }
}

/// A program that believes that it is `at`, in seconds since 1970.
pub fn at_time(program: impl AsRef<Path>, at: u64) -> Tool {
    Tool::new("faketime")
        .args(["-f", &format!("@{at}")])
        .arg(program.as_ref())
        .env("FAKETIME_FMT", "%s")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("TZ", "UTC")
}

/// The body, once it is whole.
fn body_of(request: &[u8]) -> Result<Option<&[u8]>> {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        return Ok(None);
    };
    let (head, body) = request.split_at_checked(end + 4).context("a body")?;
    let head = std::str::from_utf8(head)?.to_ascii_lowercase();
    if !head.contains("content-type: application/timestamp-query") {
        bail!("no query for a time stamp");
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("a length")?.trim().parse()?;
    Ok(body.get(..length))
}

impl ServedAuthority {
    /// Where it is asked.
    pub fn url(&self) -> String {
        format!("http://{}/tsr", self.address)
    }
}

impl Drop for ServedAuthority {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let woken: io::Result<TcpStream> = TcpStream::connect(self.address);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            thread.join().ok();
        }
    }
}
