//! What a service is told of who connects: a header before the data (PROXY protocol, version 2, as HAProxy
//! defines it in `doc/proxy-protocol.txt`).

use std::net::{IpAddr, SocketAddr};

use attested_tls::Peer;
use attested_tls::tls::ParameterNames;

/// What every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, of a connection that was proxied.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// `PP2_TYPE_SSL`: one byte of what the client did, 4 bytes that are zero if it was verified, and more fields.
const TLS: u8 = 0x20;
const TLS_VERSION: u8 = 0x21;
const TLS_NAME: u8 = 0x22;
const TLS_SUITE: u8 = 0x23;
/// `PP2_CLIENT_SSL`.
const CAME_BY_TLS: u8 = 0x01;
/// `PP2_CLIENT_CERT_CONN`.
const SHOWED_WHO_IT_IS: u8 = 0x02;

/// The header of a connection from `from` to `to`. `device` is the name under which the device was accepted, if
/// anything was demanded of it. `None` if that is longer than a header can be.
pub(crate) fn header(
    from: SocketAddr,
    to: SocketAddr,
    peer: &Peer,
    device: Option<&str>,
) -> Option<Vec<u8>> {
    let names = ParameterNames::of(&peer.parameters);
    let version = names.version.replace("TLS ", "TLSv");
    let (client, not_verified) = match device {
        Some(_) => (CAME_BY_TLS | SHOWED_WHO_IT_IS, 0_u32),
        None => (CAME_BY_TLS, 1),
    };
    let mut tls = vec![client];
    tls.extend(not_verified.to_be_bytes());
    put_field(&mut tls, TLS_VERSION, version.as_bytes())?;
    put_field(&mut tls, TLS_SUITE, names.suite.as_bytes())?;
    if let Some(device) = device {
        put_field(&mut tls, TLS_NAME, device.as_bytes())?;
    }

    let mut body = Vec::new();
    let family = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            for address in [from, to] {
                body.extend(match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                });
            }
            TCP_OVER_IPV6
        }
    };
    body.extend(from.port().to_be_bytes());
    body.extend(to.port().to_be_bytes());
    put_field(&mut body, TLS, &tls)?;

    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(u16::try_from(body.len()).ok()?.to_be_bytes());
    header.extend(body);
    Some(header)
}

/// Kind, length and value.
fn put_field(to: &mut Vec<u8>, kind: u8, value: &[u8]) -> Option<()> {
    to.push(kind);
    to.extend(u16::try_from(value.len()).ok()?.to_be_bytes());
    to.extend(value);
    Some(())
}

#[cfg(test)]
mod tests {
    use attestation::connection::TlsParameters;

    use super::*;

    fn of(from: &str, to: &str, device: Option<&str>) -> Option<Vec<u8>> {
        let peer = Peer {
            certificates: Vec::new(),
            identity: None,
            parameters: TlsParameters {
                version: 0x0304,
                suite: 0x1302,
                group: 0x11ec,
            },
        };
        header(from.parse().ok()?, to.parse().ok()?, &peer, device)
    }

    #[test]
    fn a_header_has_addresses_and_the_name_of_the_device() {
        // Written out by the text of the specification.
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x44".to_vec();
        expected.extend([192, 0, 2, 7, 127, 0, 0, 1, 0xea, 0x60, 0x1b, 0xa0]);
        expected.extend(b"\x20\x00\x35\x03\0\0\0\0");
        expected.extend(b"\x21\x00\x07TLSv1.3");
        expected.extend(b"\x23\x00\x16TLS_AES_256_GCM_SHA384");
        expected.extend(b"\x22\x00\x0ameter-3.eu");
        let header = of("192.0.2.7:60000", "127.0.0.1:7072", Some("meter-3.eu"));
        assert_eq!(header, Some(expected));
    }

    #[test]
    fn of_whoever_showed_nothing_the_header_says_so() {
        let header = of("[2001:db8::1]:1", "192.0.2.1:7072", None).unwrap_or_default();
        assert_eq!(header.get(12..14), Some(&[0x21, 0x21][..]));
        // Behind two addresses and two ports.
        let tls = header.get(16 + 36..).unwrap_or_default();
        assert_eq!(tls.get(..1), Some(&[0x20][..]));
        assert_eq!(tls.get(3..8), Some(&[1, 0, 0, 0, 1][..]));
        // No name stands behind the suite.
        assert!(header.ends_with(b"TLS_AES_256_GCM_SHA384"));
    }

    #[test]
    fn a_name_that_does_not_fit_makes_no_header() {
        let long = "m".repeat(70_000);
        assert_eq!(of("192.0.2.7:1", "192.0.2.1:2", Some(&long)), None);
    }
}
