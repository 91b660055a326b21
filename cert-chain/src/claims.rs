//! What a certificate says beyond names and keys, as a RATS conceptual message.
//!
//! The extension is `id-pe-cmw` (draft-ietf-rats-msg-wrap, "Transporting CMW in X.509 Messages"):
//! its value is a `CMW`, here always the CBOR choice, an OCTET STRING around a record
//! `[media type, claims, 2]`, where 2 is the bit for "endorsements". The claims are a CBOR map
//! with small integers as keys, in deterministic form (RFC 8949 §4.2): decoding and encoding
//! again must give the same bytes, or the claims are refused.

use minicbor::bytes::ByteSlice;
use minicbor::{Decode, Encode};
use rcgen::CustomExtension;
use serde::Serialize;

use crate::digest::Digest32;
use crate::identifiers::{Generation, Tenant, VmId, VrotId};
use crate::name::TpmName;

/// What the host's manager says about a vRoT in the certificate of its vIK.
///
/// ```cddl
/// vik-claims = {
///   1: bstr .size 16,   ; VM id
///   2: bstr .size 16,   ; vRoT id
///   3: tstr,            ; tenant
///   4: uint,            ; generation
///   5: bstr .size 32,   ; SHA-256 of the manager program
///   6: bstr .size 32,   ; SHA-256 of the backend program
///   7: true,            ; virtual: this is no hardware TPM
///   8: bstr,            ; TPM name of the vIK
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VikClaims {
    /// The VM the vRoT belongs to.
    pub vm: VmId,
    /// The vRoT.
    pub vrot: VrotId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// Which of the lineage's identities this is.
    pub generation: Generation,
    /// Digest of the manager program that issued the certificate.
    pub manager: Digest32,
    /// Digest of the backend program that runs the vRoT.
    pub backend: Digest32,
    /// Name of the vIK: fixes its attributes, which the certificate's key alone does not.
    pub vik: TpmName,
}

/// What the issuer says about a host in the certificate of its IK.
///
/// ```cddl
/// host-claims = {
///   1: bstr,            ; TPM name of the host IK
///   2: bstr,            ; TPM name of the endorsement key it was proven to live beside
///   3: bstr,            ; TPM name of the key that approves the host's PCR policies
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct HostClaims {
    /// Name of the host IK.
    #[n(1)]
    pub ik: TpmName,
    /// Name of the physical TPM's endorsement key.
    #[n(2)]
    pub ek: TpmName,
    /// Name of the operator key whose approvals `PolicyAuthorize` accepts.
    #[n(3)]
    pub policy_key: TpmName,
}

/// What the issuer says about a device in the certificate of its identity key.
///
/// ```cddl
/// device-claims = {
///   1: bstr,            ; TPM name of the device's identity key
///   2: bstr,            ; TPM name of the endorsement key it was proven to live beside
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct DeviceClaims {
    /// Name of the device's identity key.
    #[n(1)]
    pub ik: TpmName,
    /// Name of the endorsement key of the device's TPM.
    #[n(2)]
    pub ek: TpmName,
}

/// Why claims were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// Not the CBOR that was agreed on.
    #[error("the claims are no valid CBOR")]
    Cbor(#[source] minicbor::decode::Error),
    /// The extension is not an OCTET STRING.
    #[error("the claims extension is not the CBOR choice of a CMW (OCTET STRING)")]
    Der,
    /// The wrapper does not say "endorsements".
    #[error("the claims are wrapped as message kind {found}, not as endorsements ({ENDORSEMENTS})")]
    Kind {
        /// The indicator found.
        found: u32,
    },
    /// Another kind of claims.
    #[error("the claims are `{found}`, expected `{expected}`")]
    MediaType {
        /// The media type found.
        found: String,
        /// The media type needed here.
        expected: &'static str,
    },
    /// Decodes, but not to the bytes it would be encoded as.
    #[error("the claims are not in deterministic CBOR")]
    NotDeterministic,
    /// The vRoT claims to be no vRoT.
    #[error("the claims deny that the root of trust is virtual")]
    NotVirtual,
    /// More bytes than such claims can have.
    #[error("{length} bytes of claims are too many (at most {MAX_CLAIMS})")]
    TooLong {
        /// Number of bytes.
        length: usize,
    },
}

/// `id-pe-cmw`, 1.3.6.1.5.5.7.1.35.
pub(crate) const CMW_OID: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 35];
/// Media type of [`VikClaims`].
pub const VIK_CLAIMS: &str = "application/vnd.vrot.vik-claims+cbor";
/// Media type of [`HostClaims`].
pub const HOST_CLAIMS: &str = "application/vnd.vrot.host-claims+cbor";
/// Media type of [`DeviceClaims`].
pub const DEVICE_CLAIMS: &str = "application/vnd.vrot.device-claims+cbor";
/// The `endorsements` bit of a CMW's conceptual message indicator.
const ENDORSEMENTS: u32 = 1 << 1;
/// Claims share a TBSCertificate of at most 1,024 bytes with everything else.
const MAX_CLAIMS: usize = 1024;

/// A CMW record (draft-ietf-rats-msg-wrap).
#[derive(Encode, Decode)]
struct Record<'b> {
    #[b(0)]
    media_type: &'b str,
    #[b(1)]
    claims: &'b ByteSlice,
    #[n(2)]
    kind: u32,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct VikClaimsMap {
    #[n(1)]
    vm: VmId,
    #[n(2)]
    vrot: VrotId,
    #[n(3)]
    tenant: Tenant,
    #[n(4)]
    generation: Generation,
    #[n(5)]
    manager: Digest32,
    #[n(6)]
    backend: Digest32,
    #[n(7)]
    is_virtual: bool,
    #[n(8)]
    vik: TpmName,
}

impl VikClaims {
    pub(crate) fn extension(&self) -> CustomExtension {
        let map = VikClaimsMap {
            vm: self.vm,
            vrot: self.vrot,
            tenant: self.tenant.clone(),
            generation: self.generation,
            manager: self.manager,
            backend: self.backend,
            is_virtual: true,
            vik: self.vik.clone(),
        };
        extension(VIK_CLAIMS, &map)
    }

    pub(crate) fn from_extension(value: &[u8]) -> Result<Self, ClaimsError> {
        let map: VikClaimsMap = open(value, VIK_CLAIMS)?;
        if !map.is_virtual {
            return Err(ClaimsError::NotVirtual);
        }
        Ok(Self {
            vm: map.vm,
            vrot: map.vrot,
            tenant: map.tenant,
            generation: map.generation,
            manager: map.manager,
            backend: map.backend,
            vik: map.vik,
        })
    }
}

impl HostClaims {
    pub(crate) fn extension(&self) -> CustomExtension {
        extension(HOST_CLAIMS, self)
    }

    pub(crate) fn from_extension(value: &[u8]) -> Result<Self, ClaimsError> {
        open(value, HOST_CLAIMS)
    }
}

impl DeviceClaims {
    pub(crate) fn extension(&self) -> CustomExtension {
        extension(DEVICE_CLAIMS, self)
    }

    pub(crate) fn from_extension(value: &[u8]) -> Result<Self, ClaimsError> {
        open(value, DEVICE_CLAIMS)
    }
}

fn extension(media_type: &str, claims: &impl Encode<()>) -> CustomExtension {
    let claims = encode(claims);
    let record = encode(&Record {
        media_type,
        claims: claims.as_slice().into(),
        kind: ENDORSEMENTS,
    });
    let value = yasna::construct_der(|writer| writer.write_bytes(&record));
    // Not critical: a verifier that knows names and keys alone can still check the path.
    CustomExtension::from_oid_content(&CMW_OID, value)
}

fn open<T>(extension_value: &[u8], media_type: &'static str) -> Result<T, ClaimsError>
where
    T: Encode<()> + for<'b> Decode<'b, ()>,
{
    if extension_value.len() > MAX_CLAIMS {
        return Err(ClaimsError::TooLong {
            length: extension_value.len(),
        });
    }
    let wrapped = yasna::parse_der(extension_value, |reader| reader.read_bytes())
        .map_err(|_| ClaimsError::Der)?;
    let record: Record<'_> = minicbor::decode(&wrapped).map_err(ClaimsError::Cbor)?;
    if record.media_type != media_type {
        return Err(ClaimsError::MediaType {
            found: record.media_type.to_owned(),
            expected: media_type,
        });
    }
    if record.kind != ENDORSEMENTS {
        return Err(ClaimsError::Kind { found: record.kind });
    }
    let claims: T = minicbor::decode(record.claims).map_err(ClaimsError::Cbor)?;
    if encode(&record) != wrapped || encode(&claims) != **record.claims {
        return Err(ClaimsError::NotDeterministic);
    }
    Ok(claims)
}

fn encode(value: &impl Encode<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match minicbor::encode(value, &mut bytes) {
        Ok(()) => bytes,
        // Writing to a `Vec` cannot fail, and no value of ours refuses to be encoded.
        Err(error) => unreachable!("CBOR into memory: {error}"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn wrapped(claims: &[u8]) -> Vec<u8> {
        let record = encode(&Record {
            media_type: HOST_CLAIMS,
            claims: claims.into(),
            kind: ENDORSEMENTS,
        });
        yasna::construct_der(|writer| writer.write_bytes(&record))
    }

    fn host_claims() -> HostClaims {
        let name = |digit: &str| format!("000b{}", digit.repeat(64)).parse().unwrap();
        HostClaims {
            ik: name("1"),
            ek: name("2"),
            policy_key: name("3"),
        }
    }

    #[test]
    fn claims_come_back_as_they_went_in() {
        let extension = host_claims().extension();
        assert_eq!(
            HostClaims::from_extension(extension.content()).unwrap(),
            host_claims()
        );
        assert!(matches!(
            VikClaims::from_extension(extension.content()),
            Err(ClaimsError::MediaType { .. })
        ));
    }

    #[test]
    fn claims_have_one_encoding_only() {
        let claims = encode(&host_claims());
        assert!(HostClaims::from_extension(&wrapped(&claims)).is_ok());

        // The first key, 1, in two bytes instead of one.
        let (head, tail) = claims.split_at(1);
        let long_key = [head, &[0x18, 0x01], tail.split_first().unwrap().1].concat();
        let trailing = [&claims[..], &[0]].concat();
        for other in [long_key, trailing] {
            assert!(matches!(
                HostClaims::from_extension(&wrapped(&other)),
                Err(ClaimsError::NotDeterministic)
            ));
        }
    }
}
