//! Where a service listens.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::ServerName;

/// Where a service listens: a name or an address, and a port. Which VM answers there, nobody knows
/// before it has attested itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

/// Why text is no address.
#[derive(Debug, thiserror::Error)]
#[error("`{given}` is no address of a service: write HOST:PORT, and an IPv6 address in brackets")]
pub struct AddressError {
    given: String,
}

impl ServiceAddress {
    /// Name or address of the host, and the port.
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The host as TLS names it.
    pub(crate) fn name(&self) -> &ServerName<'static> {
        &self.name
    }
}

impl FromStr for ServiceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError {
            given: text.to_owned(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = (port.parse().ok())
            .filter(|port| *port != 0)
            .ok_or_else(refused)?;
        let bracketed = (host.strip_prefix('[')).and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(refused());
        }
        let host = bracketed.unwrap_or(host).to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| refused())?;
        Ok(Self { host, port, name })
    }
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ServiceAddress;

    #[test]
    fn addresses_are_read_as_they_are_written_and_nothing_else_is() {
        for text in [
            "vm-1.example.org:7072",
            "192.0.2.7:7072",
            "[2001:db8::7]:7072",
        ] {
            let read = text
                .parse::<ServiceAddress>()
                .map(|address| address.to_string());
            assert_eq!(read.ok().as_deref(), Some(text));
        }
        for text in [
            "",
            "vm-1.example.org",
            ":7072",
            "vm-1:0",
            "vm-1:70720",
            "2001:db8::7",
            "[2001:db8::7]",
            "[vm-1:7072",
            "vm 1:7072",
        ] {
            assert!(text.parse::<ServiceAddress>().is_err(), "{text}");
        }
    }
}
