//! Where time stamps come from, and whose are believed.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use archive::time_stamp::Nonce;
use archive::{Imprint, TimeStampRequest, Token};
use attestation::policy::MAX_ROOTS;
use bounded_file::read_bounded;
use cert_chain::TrustAnchors;
use clap::Args;
use hyper::Uri;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::runtime;

use super::client::AuthorityClient;
use super::requests::Requests;

/// The authority, asked over a connection or by files.
#[derive(Debug, Args)]
pub(super) struct AuthorityOptions {
    /// The time-stamp authority (RFC 3161 over HTTP): http://, or https:// (TLS 1.3). What it answers is signed and
    /// belongs to one request, over http:// too.
    #[arg(long, value_name = "URL", required_unless_present = "requests")]
    authority: Option<AuthorityUrl>,
    /// Ask an authority that this machine does not reach, by files in this folder, which is for one archive alone:
    /// NAME.tsq is a request, and NAME.tsr has to be the answer.
    #[arg(long, value_name = "DIR", conflicts_with = "authority")]
    requests: Option<PathBuf>,
    /// Roots that vouch for the authority's web server, for https://, in PEM.
    #[arg(long, value_name = "FILE", default_value = SYSTEM_ROOTS, requires = "authority")]
    web_roots: PathBuf,
}

/// Roots that are trusted for telling time.
#[derive(Debug, Args)]
pub(super) struct TimeRoots {
    /// Roots of time-stamp authorities that are believed, in PEM. Can be given several times.
    #[arg(long = "authority-root", value_name = "FILE", required = true)]
    authority_roots: Vec<PathBuf>,
}

/// Where an authority is asked: `http://` or `https://`, without a password.
#[derive(Clone, Debug)]
pub struct AuthorityUrl(Uri);

/// Where Debian keeps the roots of the web.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Whoever makes time stamps.
pub(super) enum Authority {
    Reached(Box<AuthorityClient>),
    Files(Requests),
}

impl AuthorityOptions {
    pub(super) fn open(&self) -> Result<Authority> {
        if let Some(folder) = &self.requests {
            return Ok(Authority::Files(Requests::new(folder.clone())));
        }
        let url = self.authority.clone().context("no authority is named")?;
        let roots = match url.is_secure() {
            true => Some(web_roots(&self.web_roots)?),
            false => None,
        };
        let client = AuthorityClient::new(url, roots)?;
        Ok(Authority::Reached(Box::new(client)))
    }
}

impl Authority {
    /// A time stamp over a hash value; `None` while a request called `name` waits for its answer.
    pub(super) fn stamp(&self, name: &str, imprint: Imprint) -> Result<Option<Token>> {
        match self {
            Self::Reached(client) => {
                let request = fresh_request(imprint)?;
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .context("no connection can be made")?;
                let token = runtime.block_on(client.stamp(&request));
                // A host's name that is still looked up then would hold up for as long as that takes.
                runtime.shutdown_background();
                Ok(Some(token?))
            }
            Self::Files(requests) => requests.stamp(name, imprint),
        }
    }
}

impl TimeRoots {
    pub(super) fn open(&self) -> Result<TrustAnchors> {
        let mut all = Vec::new();
        for path in &self.authority_roots {
            read_roots(path)?;
            all.extend(read_pem(path)?);
            all.push(b'\n');
        }
        Ok(TrustAnchors::from_pem(&all)?)
    }
}

pub(super) fn fresh_request(imprint: Imprint) -> Result<TimeStampRequest> {
    let mut random = [0; 8];
    (SystemRandom::new().fill(&mut random))
        .ok()
        .context("the system has no random numbers")?;
    Ok(TimeStampRequest::new(imprint, Nonce::new(random)))
}

fn read_roots(path: &Path) -> Result<TrustAnchors> {
    TrustAnchors::from_pem(&read_pem(path)?)
        .with_context(|| format!("the roots in {} cannot be used", path.display()))
}

/// What cannot be read of them vouches for nobody.
fn web_roots(path: &Path) -> Result<RootCertStore> {
    let pem = read_pem(path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    let mut roots = RootCertStore::empty();
    let (read, _) = roots.add_parsable_certificates(certificates);
    ensure!(
        read > 0,
        "{} has no certificate that can be used",
        path.display()
    );
    Ok(roots)
}

fn read_pem(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, MAX_ROOTS).with_context(|| format!("{} cannot be read", path.display()))
}

impl AuthorityUrl {
    pub(super) fn is_secure(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    pub(super) fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }

    pub(super) fn port(&self) -> u16 {
        let usual = if self.is_secure() { 443 } else { 80 };
        self.0.port_u16().unwrap_or(usual)
    }

    /// Host and port as a request's head names them.
    pub(super) fn host_and_port(&self) -> &str {
        self.0
            .authority()
            .map_or("", |authority| authority.as_str())
    }

    pub(super) fn path(&self) -> &str {
        self.0.path_and_query().map_or("/", |path| path.as_str())
    }
}

impl FromStr for AuthorityUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url: Uri = text.parse().map_err(|error| format!("{error}"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err("it begins with neither http:// nor https://".to_owned());
        }
        if url.host().is_none_or(str::is_empty) {
            return Err("it names no host".to_owned());
        }
        // It would stand in the list of processes.
        if url
            .authority()
            .is_some_and(|host| host.as_str().contains('@'))
        {
            return Err("a name or password in it is not used: leave it out".to_owned());
        }
        Ok(Self(url))
    }
}

impl std::fmt::Display for AuthorityUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
