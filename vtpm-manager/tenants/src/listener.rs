//! TCP connections, accepted for as long as the manager serves.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attested_tls::tls::{KeyExchange, TlsSetupError, provider};
use bounded_file::read_bounded;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::authorities::{Authorities, AuthorityError};
use crate::connection::{self, Shared};
use crate::counts::Counts;
use crate::handshake;
use crate::host::TenantHost;
use crate::places::Places;
use crate::quotas::Quotas;
use crate::requests::{Api, router};
use crate::server_key::{ServerKey, ServerKeyError};
use crate::settings::{Listen, ServerCertificate, Settings};

/// The addresses, and all that is configured, before anybody is served.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<TcpListener>,
    authorities: Arc<Authorities>,
    key: Arc<ServerKey>,
    settings: Settings,
}

/// The API, as the manager sees it.
#[derive(Clone, Debug)]
pub struct TenantApi {
    counts: Arc<Counts>,
    places: Arc<Places>,
}

/// Why there is no API for tenants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantApiError {
    /// An authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// An address that cannot be used.
    #[error("the API for tenants cannot listen at {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that cannot be read.
    #[error("`{}` cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificate or key.
    #[error("`{}` or the key that belongs to it cannot be used", path.display())]
    Key {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ServerKeyError,
    },
    /// Nothing was passed.
    #[error(
        "no socket for tenants was passed by the service manager: start \
         `vtpm-managerd-tenants.socket`, or write an address for `listen`"
    )]
    NotPassed,
    /// The library refuses.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}

/// Certificates and keys.
const MAX_FILE: usize = 64 * 1024;
/// Requests under way at the end are waited for this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// After a connection could not be accepted, e.g. for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl Bound {
    /// Listens, and reads what is configured. `passed` are sockets that the service manager made.
    pub async fn bind(
        settings: Settings,
        passed: Vec<std::net::TcpListener>,
    ) -> Result<Self, TenantApiError> {
        let key = Arc::new(ServerKey::default());
        if let ServerCertificate::Files {
            certificate,
            key: file,
        } = &settings.certificate
        {
            let (chain, private) = (read(certificate)?, Zeroizing::new(read(file)?));
            let provider = provider(KeyExchange::HybridFirst);
            key.install_pem(&chain, &private, &provider)
                .map_err(|source| TenantApiError::Key {
                    path: certificate.clone(),
                    source,
                })?;
        }
        let authorities = Arc::new(Authorities::open(&settings)?);
        let mut listeners = Vec::new();
        if settings.listen.contains(&Listen::Passed) {
            for listener in passed {
                let listener =
                    (listener.set_nonblocking(true)).and_then(|()| TcpListener::from_std(listener));
                listeners.push(listener.map_err(|_| TenantApiError::NotPassed)?);
            }
            if listeners.is_empty() {
                return Err(TenantApiError::NotPassed);
            }
        }
        for listen in &settings.listen {
            if let Listen::At(address) = *listen {
                let bound = TcpListener::bind(address).await;
                listeners.push(bound.map_err(|source| TenantApiError::Bind { address, source })?);
            }
        }
        Ok(Self {
            listeners,
            authorities,
            key,
            settings,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.listeners.iter().map(TcpListener::local_addr);
        addresses.filter_map(Result::ok).collect()
    }

    /// The key of handshakes. Until one is installed, no handshake succeeds.
    pub fn key(&self) -> &Arc<ServerKey> {
        &self.key
    }

    /// Serves until `ending` is cancelled.
    pub fn serve(
        self,
        host: Arc<dyn TenantHost>,
        ending: CancellationToken,
    ) -> Result<(TenantApi, impl Future<Output = ()> + Send), TenantApiError> {
        let config = handshake::config(&self.authorities, &self.key)?;
        let counts = Arc::new(Counts::default());
        let places = Places::new(self.settings.limits.connections, Instant::now());
        let api = TenantApi {
            counts: Arc::clone(&counts),
            places: Arc::clone(&places),
        };
        let router = router(Api {
            host: Arc::clone(&host),
            quotas: Arc::new(Quotas::new(self.settings.limits)),
            counts: Arc::clone(&counts),
        });
        let shared = Arc::new(Shared {
            config,
            authorities: self.authorities,
            places,
            counts,
            host,
            router,
        });
        Ok((api, serve(self.listeners, shared, ending)))
    }
}

impl TenantApi {
    /// What was counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Connections of tenants.
    pub fn connections(&self) -> usize {
        self.places.connections()
    }
}

async fn serve(listeners: Vec<TcpListener>, shared: Arc<Shared>, ending: CancellationToken) {
    let connections = TaskTracker::new();
    for listener in listeners {
        let (shared, ending) = (Arc::clone(&shared), ending.clone());
        let accepting = accept(listener, shared, connections.clone(), ending);
        connections.spawn(accepting);
    }
    tokio::select! {
        () = shared.authorities.follow_lists() => {}
        () = ending.cancelled() => {}
    }
    connections.close();
    if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!("a tenant kept its connection to the end: it is cut off");
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: TaskTracker,
    ending: CancellationToken,
) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => attend(stream, from, &shared, &connections, &ending),
                Err(error) => {
                    tracing::warn!(%error, "a tenant could not be let in");
                    sleep(PAUSE).await;
                }
            },
            () = ending.cancelled() => return,
        }
    }
}

fn attend(
    stream: TcpStream,
    from: SocketAddr,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
    ending: &CancellationToken,
) {
    // Without a place it is closed, before anything was read.
    if let Some(entering) = shared.enter(from) {
        // Answers are short, and somebody waits for them.
        let _ = stream.set_nodelay(true);
        let serving = connection::serve(Arc::clone(shared), stream, from, entering, ending.clone());
        connections.spawn(serving);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TenantApiError> {
    read_bounded(path, MAX_FILE).map_err(|source| TenantApiError::File {
        path: path.to_owned(),
        source,
    })
}
