//! Where time stamps come from, and whose are believed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use archive::time_stamp::Nonce;
use archive::{Imprint, TimeStampRequest, Token, VerifiedTimeStamp};
use attestation::policy::MAX_ROOTS;
use bounded_file::read_bounded;
use cert_chain::TrustAnchors;
use clap::Args;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::runtime;
use trusted_connection::crl_files::CrlFiles;

use super::client::AuthorityClient;
use super::requests::Requests;
use crate::authority_url::AuthorityUrl;
use crate::crl_options::CrlOptions;
use crate::settings::Settings;

/// The authority, asked over a connection or by files.
#[derive(Debug, Args)]
struct AuthorityOptions {
    /// The time-stamp authority (RFC 3161 over HTTP): http://, or https:// (TLS 1.3). What it answers is signed and
    /// belongs to one request, over http:// too.
    #[arg(long, value_name = "URL")]
    authority: Option<AuthorityUrl>,
    /// Ask an authority that this machine does not reach, by files in this folder, which is for one archive alone:
    /// NAME.tsq is a request, and NAME.tsr has to be the answer.
    #[arg(long, value_name = "DIR", conflicts_with = "authority")]
    requests: Option<PathBuf>,
    /// Roots that vouch for the authority's web server, for https://, in PEM.
    /// Without it, those of the system.
    #[arg(long, value_name = "FILE", conflicts_with = "requests")]
    web_roots: Option<PathBuf>,
}

/// Who makes a new time stamp, and what decides whether it is believed.
#[derive(Debug, Args)]
pub(super) struct StampOptions {
    #[command(flatten)]
    authority: AuthorityOptions,
    #[command(flatten)]
    believed: TimeRoots,
    #[command(flatten)]
    crls: CrlOptions,
}

/// The same, opened.
pub(super) struct Stamping {
    authority: Authority,
    /// Roots that are trusted for telling time, with the revocation lists.
    pub(super) believed: TrustAnchors,
    /// The revocation lists.
    pub(super) crls: CrlFiles,
}

/// Roots that are trusted for telling time.
#[derive(Debug, Args)]
pub(super) struct TimeRoots {
    /// Roots of time-stamp authorities that are believed, in PEM. Can be given several times.
    #[arg(long = "authority-root", value_name = "FILE")]
    authority_roots: Vec<PathBuf>,
}

/// Whoever makes time stamps.
enum Authority {
    Reached(Box<AuthorityClient>),
    Files(Requests),
}

impl StampOptions {
    pub(super) fn open(&self, settings: &Settings) -> Result<Stamping> {
        let crls = self.crls.open(settings)?;
        let authority = self.authority.open(settings)?;
        let believed = self.believed.open(settings)?;
        Ok(Stamping {
            authority,
            believed: believed.with_lists(&crls.for_verification()),
            crls,
        })
    }
}

impl Stamping {
    /// A time stamp over a hash value, and what it proves; `None` while a request called `name` waits for its
    /// answer.
    pub(super) fn stamp(
        &self,
        name: &str,
        imprint: &Imprint,
    ) -> Result<Option<(Token, VerifiedTimeStamp)>> {
        let Some(token) = self.authority.stamp(name, imprint.clone())? else {
            return Ok(None);
        };
        let verified = (token.verify(imprint, &self.believed, UnixTime::now()))
            .context("the authority's time stamp is not believed")?;
        Ok(Some((token, verified)))
    }
}

impl AuthorityOptions {
    fn open(&self, settings: &Settings) -> Result<Authority> {
        if let Some(folder) = &self.requests {
            return Ok(Authority::Files(Requests::new(folder.clone())));
        }
        let url = settings.authority(self.authority.as_ref())?.clone();
        let roots = match url.is_secure() {
            true => Some(web_roots(settings.web_roots(self.web_roots.as_deref()))?),
            false => None,
        };
        let client = AuthorityClient::new(url, roots)?;
        Ok(Authority::Reached(Box::new(client)))
    }
}

impl Authority {
    /// A time stamp over a hash value; `None` while a request called `name` waits for its answer.
    fn stamp(&self, name: &str, imprint: Imprint) -> Result<Option<Token>> {
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
    pub(super) fn open(&self, settings: &Settings) -> Result<TrustAnchors> {
        let mut all = Vec::new();
        for path in settings.authority_roots(&self.authority_roots)? {
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
