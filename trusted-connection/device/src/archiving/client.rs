//! A time-stamp authority, asked over HTTP (RFC 3161 §3.4).
//!
//! An answer is believed because of its signature and because it is to this request. TLS only hides from others
//! which hash value is stamped.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use archive::time_stamp::MAX_RESPONSE;
use archive::{TimeStampError, TimeStampRequest, Token};
use attested_tls::tls::{KeyExchange, provider};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore, version};
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::authority_url::AuthorityUrl;

/// An authority that answers over HTTP.
pub struct AuthorityClient {
    url: AuthorityUrl,
    tls: Option<TlsConnector>,
    deadline: Duration,
}

/// Why an authority made no time stamp.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// Too slow.
    #[error("the time-stamp authority {url} did not answer within {} s", after.as_secs())]
    Deadline {
        /// Which.
        url: String,
        /// How long it had.
        after: Duration,
    },
    /// Something else than a time stamp.
    #[error("{url} answered with something else ({what}): is it a time-stamp authority's address?")]
    NoAuthority {
        /// Which.
        url: String,
        /// Status or media type.
        what: String,
    },
    /// HTTP.
    #[error("the time-stamp authority {url} does not answer as HTTP demands")]
    Http {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// Its answer.
    #[error("what the time-stamp authority {url} answered cannot be used")]
    Answer {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: TimeStampError,
    },
    /// Longer than answers are, or cut off.
    #[error(
        "the answer of the time-stamp authority {url} was cut off or has more than {MAX_RESPONSE} bytes"
    )]
    Body {
        /// Which.
        url: String,
    },
    /// The name of a host cannot be in a certificate.
    #[error("{url} names a host that no certificate can be for")]
    Name {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: InvalidDnsNameError,
    },
    /// A request that cannot be made.
    #[error("the time-stamp authority {url} cannot be asked")]
    Request {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection.
    #[error("the time-stamp authority {url} cannot be reached")]
    Unreachable {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// For connection, request and answer together.
const DEADLINE: Duration = Duration::from_secs(30);
/// For a line of status and headers together.
const MAX_HEAD: usize = 64 * 1024;
const QUERY: &str = "application/timestamp-query";
const REPLY: &str = "application/timestamp-reply";

impl AuthorityClient {
    /// An authority at `url`; `web_roots` vouch for its server where it is reached over TLS.
    pub fn new(
        url: AuthorityUrl,
        web_roots: Option<RootCertStore>,
    ) -> Result<Self, AuthorityError> {
        let tls = match url.is_secure() {
            true => Some(connector(&url, web_roots)?),
            false => None,
        };
        Ok(Self {
            url,
            tls,
            deadline: DEADLINE,
        })
    }

    /// The same with another time limit.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The token of the answer to a request. Who signed it is not verified.
    pub async fn stamp(&self, request: &TimeStampRequest) -> Result<Token, AuthorityError> {
        let query = request.to_der().map_err(|source| self.answer(source))?;
        let answer = timeout(self.deadline, self.answer_to(query)).await;
        let answer = answer.map_err(|_| AuthorityError::Deadline {
            url: self.url(),
            after: self.deadline,
        })??;
        request.token(&answer).map_err(|source| self.answer(source))
    }

    async fn answer_to(&self, query: Vec<u8>) -> Result<Vec<u8>, AuthorityError> {
        let unreachable = |source| AuthorityError::Unreachable {
            url: self.url(),
            source,
        };
        // Brackets are around an IPv6 address in a URL alone.
        let host = self.url.host().trim_matches(['[', ']']);
        let addresses = lookup_host((host, self.url.port())).await;
        let addresses: Vec<_> = addresses.map_err(unreachable)?.collect();
        let stream = self.connect(&addresses).await.map_err(unreachable)?;
        match &self.tls {
            None => self.exchange(stream, query).await,
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|source| {
                    let url = self.url();
                    AuthorityError::Name { url, source }
                })?;
                let stream = tls.connect(name, stream).await.map_err(unreachable)?;
                self.exchange(stream, query).await
            }
        }
    }

    /// The first address that takes a connection. Each has its part of the time, so that one of which nothing comes
    /// back leaves some for the others, and for the answer.
    async fn connect(&self, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
        let parts = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let each = self.deadline / parts.saturating_add(1);
        let mut refused = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for address in addresses {
            match timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => refused = error,
                Err(_) => refused = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(refused)
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        query: Vec<u8>,
    ) -> Result<Vec<u8>, AuthorityError> {
        let http = |source| AuthorityError::Http {
            url: self.url(),
            source,
        };
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(http)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // What goes wrong shows in the answer.
            connection.await.ok();
        }));
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.url.path())
            .header(header::HOST, self.url.host_and_port())
            .header(header::CONTENT_TYPE, QUERY)
            .header(header::ACCEPT, REPLY)
            .body(Full::new(Bytes::from(query)))
            .map_err(|source| self.request(source))?;
        let answer = sender.send_request(request).await.map_err(http)?;
        let media = answer.headers().get(header::CONTENT_TYPE);
        let media = media.and_then(|media| media.to_str().ok());
        let bare = media
            .and_then(|media| media.split(';').next())
            .map(str::trim);
        if answer.status() != StatusCode::OK || bare != Some(REPLY) {
            return Err(AuthorityError::NoAuthority {
                url: self.url(),
                what: format!("{}, {}", answer.status(), media.unwrap_or("no media type")),
            });
        }
        let body = Limited::new(answer.into_body(), MAX_RESPONSE)
            .collect()
            .await;
        let body = body.map_err(|_| AuthorityError::Body { url: self.url() })?;
        Ok(body.to_bytes().to_vec())
    }

    fn url(&self) -> String {
        self.url.to_string()
    }

    fn answer(&self, source: TimeStampError) -> AuthorityError {
        AuthorityError::Answer {
            url: self.url(),
            source,
        }
    }

    fn request(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> AuthorityError {
        AuthorityError::Request {
            url: self.url(),
            source: source.into(),
        }
    }
}

fn connector(
    url: &AuthorityUrl,
    web_roots: Option<RootCertStore>,
) -> Result<TlsConnector, AuthorityError> {
    let config = ClientConfig::builder_with_provider(provider(KeyExchange::HybridFirst))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|source| AuthorityError::Request {
            url: url.to_string(),
            source: source.into(),
        })?;
    let mut config = config
        .with_root_certificates(web_roots.unwrap_or_else(RootCertStore::empty))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
