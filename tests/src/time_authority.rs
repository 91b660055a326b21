//! A time-stamp authority (RFC 3161) of `openssl ts`, with a root of its own, which answers over HTTP.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use test_support::tool::Tool;

/// A running authority.
#[derive(Debug)]
pub struct TimeAuthority {
    folder: PathBuf,
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

const CONFIGURATION: &str = "\
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
/// For each read and write of a client.
const PATIENCE: Duration = Duration::from_secs(60);
/// A request has some 70 bytes.
const MAX_REQUEST: usize = 4096;

impl TimeAuthority {
    /// Makes an authority whose keys and certificates are in `folder`, and has it listen.
    pub fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("openssl.cnf"), CONFIGURATION)?;
        fs::write(folder.join("serial"), "01\n")?;
        make_certificate(folder, "root", "Demo root for time", None)?;
        make_certificate(
            folder,
            "authority",
            "Demo time-stamp authority",
            Some("root"),
        )?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let ends = Arc::new(AtomicBool::new(false));
        let server = {
            let (folder, ends) = (folder.to_owned(), Arc::clone(&ends));
            thread::spawn(move || serve(&listener, &folder, &ends))
        };
        Ok(Self {
            folder: folder.to_owned(),
            address,
            ends,
            server: Some(server),
        })
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Its root, in PEM: what a verifier trusts.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }
}

impl Drop for TimeAuthority {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // It waits for a connection.
        let woken = TcpStream::connect(self.address).is_ok();
        if let Some(server) = self.server.take().filter(|_| woken) {
            let _ = server.join();
        }
    }
}

fn make_certificate(folder: &Path, name: &str, subject: &str, issuer: Option<&str>) -> Result<()> {
    let mut command = Tool::new("openssl")
        .args(["req", "-x509", "-config", "openssl.cnf", "-nodes"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-days", "3650", "-subj", &format!("/CN={subject}")])
        .args(["-extensions", name])
        .args(["-keyout", &format!("{name}.key")])
        .args(["-out", &format!("{name}.pem")])
        .folder(folder);
    if let Some(issuer) = issuer {
        command = command
            .args(["-CA", &format!("{issuer}.pem")])
            .args(["-CAkey", &format!("{issuer}.key")]);
    }
    command.run().map(drop)
}

fn serve(listener: &TcpListener, folder: &Path, ends: &AtomicBool) {
    for client in listener.incoming() {
        if ends.load(Ordering::Acquire) {
            return;
        }
        let answered = client
            .map_err(Into::into)
            .and_then(|client| answer(client, folder));
        // Whoever asked finds out, too.
        if let Err(error) = answered {
            eprintln!("time-stamp authority: {error:#}");
        }
    }
}

/// One request on one connection.
fn answer(client: TcpStream, folder: &Path) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut from = BufReader::new(&client);
    let mut length = None;
    loop {
        let mut line = String::new();
        from.by_ref().take(8192).read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let length = length.context("a request without a length")?;
    ensure!(length <= MAX_REQUEST, "a request of {length} bytes");
    let mut request = vec![0; length];
    from.read_exact(&mut request)?;
    let reply = reply(folder, &request)?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/timestamp-reply\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        reply.len()
    );
    let mut to = &client;
    to.write_all(head.as_bytes())?;
    Ok(to.write_all(&reply)?)
}

/// `openssl ts -reply`: one at a time, for it counts in a file.
fn reply(folder: &Path, request: &[u8]) -> Result<Vec<u8>> {
    fs::write(folder.join("request.tsq"), request)?;
    Tool::new("openssl")
        .args(["ts", "-reply", "-config", "openssl.cnf"])
        .args(["-queryfile", "request.tsq", "-out", "reply.tsr"])
        .args(["-signer", "authority.pem", "-inkey", "authority.key"])
        .args(["-chain", "root.pem"])
        .folder(folder)
        .run()?;
    Ok(fs::read(folder.join("reply.tsr"))?)
}
