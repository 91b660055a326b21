//! An attested connection before a TCP service that knows nothing of it.

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use attested_tls::tls::ParameterNames;
use attested_tls::{Attested, Attester, CloseReason, Deadlines, Demands, accept};
use connection_proxy::{Accepted, Handler, join, prepare};
use printable::WithCauses;
use program_output::log::ACCEPTED;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::devices::Told;
use crate::proxy_header::header;
use crate::tls_identity::TlsIdentity;

/// Takes attested connections and passes what comes on them to a service.
pub struct Proxy<D: Demands> {
    /// How this end shows itself in TLS.
    pub identity: Arc<TlsIdentity>,
    /// What it shows behind that.
    pub attester: Arc<dyn Attester>,
    /// What it demands of the device of a new connection.
    pub demands: Box<dyn Fn() -> D + Send + Sync>,
    /// What the log says of an accepted device.
    pub told: fn(&D::Result) -> Told,
    /// The service.
    pub forward: Destination,
    /// Whether the service is told who connects, by a header of the PROXY protocol.
    pub tells_who: bool,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    host: String,
    port: u16,
}

/// Something that names no port of a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not HOST:PORT")]
pub struct NoDestination(String);

/// How long the service may take to accept a connection.
const CONNECTING: Duration = Duration::from_secs(10);

impl<D: Demands> Handler for Proxy<D> {
    async fn handle(&self, mut connection: Accepted) {
        if let Err(error) = prepare(&connection.stream) {
            tracing::info!(%error, "the connection has ended already");
            return;
        }
        let to = match connection.stream.local_addr() {
            Ok(to) => to,
            Err(error) => {
                tracing::info!(%error, "the connection has ended already");
                return;
            }
        };
        let tls = self.identity.tls();
        // What gives way may still say so to its peer.
        let accepted = accept(
            connection.place.hold(connection.stream),
            &tls,
            Arc::clone(&self.attester),
            (self.demands)(),
            Deadlines::default(),
        );
        let Attested {
            stream,
            peer,
            appraisal,
            ..
        } = match accepted.await {
            Ok(attested) => attested,
            Err(error) => {
                tracing::warn!(error = %WithCauses(&error), "not connected");
                return;
            }
        };
        if !connection.place.keep() {
            return;
        }
        let Told {
            device,
            name,
            reasons,
        } = (self.told)(&appraisal);
        let header = match self.tells_who {
            true => header(connection.address, to, &peer, device.as_deref()),
            false => Some(Vec::new()),
        };
        let Some(header) = header else {
            tracing::error!(device = name, "the service cannot be told who connects");
            stream.give_up().await;
            return;
        };
        let plain = match self.forward.connect(&header).await {
            Ok(plain) => plain,
            Err(error) => {
                tracing::error!(service = %self.forward, %error, "the service cannot be reached");
                stream.give_up_because(CloseReason::Unreachable).await;
                return;
            }
        };
        let tls = ParameterNames::of(&peer.parameters);
        match reasons {
            None => tracing::info!(target: ACCEPTED, %tls, device = name, "connected"),
            Some(reasons) => tracing::warn!(
                target: ACCEPTED, %tls, device = name, reasons, "connected with reservations"
            ),
        }
        join(stream, plain, &connection.stop).await;
    }
}

impl Destination {
    /// A connection on which this is said first.
    async fn connect(&self, header: &[u8]) -> io::Result<TcpStream> {
        let connecting = async {
            let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            prepare(&stream)?;
            stream.write_all(header).await?;
            Ok(stream)
        };
        timeout(CONNECTING, connecting)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || NoDestination(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(refused)?;
        // An IPv6 address in brackets, as everywhere.
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').ok_or_else(refused)?,
            None if host.contains(':') => return Err(refused()),
            None => host,
        };
        match host.is_empty() {
            true => Err(refused()),
            false => Ok(Self {
                host: host.to_owned(),
                port,
            }),
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_a_host_and_a_port() {
        for text in ["127.0.0.1:80", "[::1]:8080", "service.internal:443"] {
            let parsed = text.parse::<Destination>();
            assert_eq!(parsed.map(|parsed| parsed.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "host",
            ":80",
            "host:",
            "host:0",
            "host:70000",
            "::1:80",
            "[::1:80",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
