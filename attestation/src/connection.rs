//! What evidence for a connection is bound to: everything by which two TLS connections, or the two
//! ends of one, can be told apart.
//!
//! Each end computes it from its own connection; it never travels. A value that somebody else named
//! would let a relay have its own connection attested (draft-ietf-seat-use-cases; CVE-2026-33697).

use cert_chain::Digest32;
use minicbor::Encoder;

use crate::binding::Binding;
use crate::nonce::Nonce;
use crate::qualifying::encoded;

/// Which end of the connection attests itself. A statement of one end is never one of the other, so
/// that none can be sent back to the end that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that accepted the connection.
    Server,
    /// The end that opened it.
    Client,
}

/// One TLS 1.3 connection and one request for evidence on it, as one end sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFacts<'a> {
    /// Who attests itself.
    pub attester: Role,
    /// The value exported from the connection (RFC 8446 §7.5) under [`EXPORTER_LABEL`], with the
    /// request as its context.
    pub exporter: [u8; 32],
    /// The verifier's nonce.
    pub nonce: &'a Nonce,
    /// The server's end.
    pub server: EndIdentity,
    /// The client's end, if it has an identity in TLS.
    pub client: Option<EndIdentity>,
    /// Version, suite and group of the connection.
    pub parameters: TlsParameters,
}

/// How one end was authenticated in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndIdentity {
    /// SHA-256 of the SubjectPublicKeyInfo in DER.
    pub key: Digest32,
    /// SHA-256 of the certificate in DER.
    pub certificate: Digest32,
}

/// Code points of TLS (the IANA registries "TLS Parameters").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsParameters {
    /// Protocol version: 0x0304 is TLS 1.3.
    pub version: u16,
    /// Cipher suite.
    pub suite: u16,
    /// Named group of the key exchange.
    pub group: u16,
}

/// Label of the exported value: of this protocol alone (RFC 9266's is shared by many).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-vrot-attestation-v1";

const REQUEST: &str = "vrot attestation request v1";
const CONNECTION: &str = "vrot connection binding v1";

/// Context of the exported value: which request of which end this is for, in CBOR.
pub fn exporter_context(attester: Role, sequence: u32, nonce: &Nonce) -> Vec<u8> {
    encoded(|encoder| {
        encoder
            .array(4)?
            .str(REQUEST)?
            .u8(attester.number())?
            .u32(sequence)?
            .encode(nonce)?
            .ok()
    })
}

impl Role {
    const fn number(self) -> u8 {
        match self {
            Self::Server => 0,
            Self::Client => 1,
        }
    }
}

impl ConnectionFacts<'_> {
    /// What the binding is the digest of: `connection-binding-data` in `docs/connection.md`.
    pub fn binding_data(&self) -> Vec<u8> {
        encoded(|encoder| {
            encoder
                .array(9)?
                .str(CONNECTION)?
                .u8(self.attester.number())?
                .bytes(&self.exporter)?
                .encode(self.nonce)?;
            end(encoder, Some(&self.server))?;
            end(encoder, self.client.as_ref())?;
            encoder
                .u16(self.parameters.version)?
                .u16(self.parameters.suite)?
                .u16(self.parameters.group)?
                .ok()
        })
    }

    /// The binding.
    pub fn binding(&self) -> Binding {
        Binding::Connection(Digest32::of(&self.binding_data()))
    }
}

/// An end that has no identity is `null`, which is no array.
fn end(
    encoder: &mut Encoder<Vec<u8>>,
    identity: Option<&EndIdentity>,
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    match identity {
        Some(identity) => encoder
            .array(2)?
            .encode(identity.key)?
            .encode(identity.certificate)?
            .ok(),
        None => encoder.null()?.ok(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn nonce(byte: u8) -> Nonce {
        Nonce::new([byte; 32]).unwrap()
    }

    fn identity(byte: u8) -> EndIdentity {
        EndIdentity {
            key: Digest32::new([byte; 32]),
            certificate: Digest32::new([byte ^ 0xff; 32]),
        }
    }

    fn facts(nonce: &Nonce) -> ConnectionFacts<'_> {
        ConnectionFacts {
            attester: Role::Server,
            exporter: [1; 32],
            nonce,
            server: identity(2),
            client: Some(identity(3)),
            parameters: TlsParameters {
                version: 0x0304,
                suite: 0x1302,
                group: 0x11ec,
            },
        }
    }

    #[test]
    fn the_binding_depends_on_everything_that_tells_connections_and_ends_apart() {
        let one = nonce(7);
        let other = nonce(8);
        let base = facts(&one);
        let parameters = base.parameters;
        let changed = [
            ConnectionFacts {
                attester: Role::Client,
                ..base.clone()
            },
            ConnectionFacts {
                exporter: [9; 32],
                ..base.clone()
            },
            ConnectionFacts {
                nonce: &other,
                ..base.clone()
            },
            ConnectionFacts {
                server: identity(3),
                ..base.clone()
            },
            ConnectionFacts {
                server: EndIdentity {
                    certificate: Digest32::new([0; 32]),
                    ..base.server
                },
                ..base.clone()
            },
            ConnectionFacts {
                client: None,
                ..base.clone()
            },
            ConnectionFacts {
                client: Some(identity(2)),
                ..base.clone()
            },
            // The two ends, exchanged.
            ConnectionFacts {
                server: identity(3),
                client: Some(identity(2)),
                ..base.clone()
            },
            ConnectionFacts {
                parameters: TlsParameters {
                    version: 0x0303,
                    ..parameters
                },
                ..base.clone()
            },
            ConnectionFacts {
                parameters: TlsParameters {
                    suite: 0x1301,
                    ..parameters
                },
                ..base.clone()
            },
            ConnectionFacts {
                parameters: TlsParameters {
                    group: 0x001d,
                    ..parameters
                },
                ..base.clone()
            },
        ];
        for (number, facts) in changed.iter().enumerate() {
            assert_ne!(facts.binding(), base.binding(), "{number}");
            for (earlier, before) in changed.iter().enumerate().take(number) {
                assert_ne!(facts.binding(), before.binding(), "{number} and {earlier}");
            }
        }
    }
}
