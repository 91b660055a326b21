//! What the store keeps of a vRoT besides its state.

use std::fmt;
use std::str::FromStr;

use api_types::Timestamp;
use cert_chain::{
    AttestationKey, Digest32, EndorsementKey, Generation, PublicArea, Tenant, TpmName, VmId, VrotId,
};
use guarded_state::disk::Batch;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use printable::{Printable, is_printable};

use super::lifecycle::Lifecycle;
use crate::keys::WrappedSecret;
use vrot_manufacture::{CertifiedSubject, Manufactured};

/// A vRoT that was not deleted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VrotRecord {
    /// Its number.
    #[n(0)]
    pub vrot: VrotId,
    /// The VM that it belongs to.
    #[n(1)]
    pub vm: VmId,
    /// Whose VM that is.
    #[n(2)]
    pub tenant: Tenant,
    /// What people call it.
    #[n(3)]
    pub name: Option<VrotName>,
    /// Which of the lineage's identities this is.
    #[n(4)]
    pub generation: Generation,
    /// Where in its life it is.
    #[n(5)]
    pub lifecycle: Lifecycle,
    /// The key of its state.
    #[n(6)]
    pub state_key: WrappedSecret,
    /// The password of its NV indices.
    #[n(7)]
    pub nv_authority: WrappedSecret,
    /// Its keys and certificates.
    #[n(8)]
    pub identity: Identity,
    /// The last time that a backend may have lost what its guest was told of, in this generation.
    #[n(9)]
    pub state_loss: Option<LostState>,
}

/// When a backend ended after it had answered commands whose state was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LostState {
    /// Number of the store's newest batch when it was noted.
    #[n(0)]
    pub batch: u64,
    /// When it was noted.
    #[n(1)]
    pub at: Timestamp,
}

/// Keys and certificates of a vRoT, as they were made.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Identity {
    /// `TPMT_PUBLIC` of the vIK.
    #[n(0)]
    vik: ByteVec,
    /// `TPMT_PUBLIC` of the RSA-2048 EK.
    #[n(1)]
    ek_rsa: ByteVec,
    /// `TPMT_PUBLIC` of the P-256 EK.
    #[n(2)]
    ek_p256: ByteVec,
    /// Certificate of the vIK in DER; none while it is pending.
    #[n(3)]
    pub vik_certificate: Option<ByteVec>,
    /// Certificate of the RSA-2048 EK in DER; none while it is pending.
    #[n(4)]
    pub ek_rsa_certificate: Option<ByteVec>,
    /// Certificate of the P-256 EK in DER; none while it is pending.
    #[n(5)]
    pub ek_p256_certificate: Option<ByteVec>,
    /// The host's certificate, which issues these, in DER.
    #[n(6)]
    pub host_certificate: ByteVec,
    /// Digest of the manager that made them.
    #[n(7)]
    pub manager: Digest32,
    /// Digest of the backend in which they were made.
    #[n(8)]
    pub backend: Digest32,
    /// When the vIK's certificate was issued; 0 while it is pending, or to have it renewed.
    #[n(9)]
    pub vik_issued_at: Timestamp,
}

/// Certificates that are still to be issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// That of the vIK, and perhaps those of the endorsement keys.
    Vik,
    /// Those of the endorsement keys: the vRoT can attest.
    Eks,
}

/// What stays of a vRoT between the destruction of its key and the removal of the rest: all that its
/// line in the audit log needs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Tombstone {
    /// Its number.
    #[n(0)]
    pub vrot: VrotId,
    /// When it was deleted.
    #[n(1)]
    pub at: Timestamp,
    /// Whose it was; absent if no VM ever had it, and in version 1.
    #[n(2)]
    pub owner: Option<Owner>,
}

/// Whose vRoT it was, and who ordered that it be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Owner {
    /// The VM that it belonged to.
    #[n(0)]
    pub vm: VmId,
    /// Whose VM that was.
    #[n(1)]
    pub tenant: Tenant,
    /// Number of the user who ordered it.
    #[n(2)]
    pub by_uid: Option<u32>,
}

/// What a record in the store says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StoredVrot {
    /// The vRoT exists.
    #[n(0)]
    Living(#[n(0)] Box<VrotRecord>),
    /// Its deletion was begun.
    #[n(1)]
    Deleted(#[n(0)] Tombstone),
}

/// What people call a vRoT: 1 to 64 printable characters without spaces at either end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct VrotName(#[n(0)] String);

/// A text that is no [`VrotName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name for a vRoT: use 1 to {MAX_NAME} printable characters, no space at either end"
)]
pub struct VrotNameError(String);

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not what this program writes.
    #[error("the record of vRoT {vrot} cannot be read: the store is damaged")]
    Cbor {
        /// Whose.
        vrot: VrotId,
        /// What is wrong.
        #[source]
        source: minicbor::decode::Error,
    },
    /// It stands in the place of another vRoT's.
    #[error("the record of vRoT {expected} is that of vRoT {found}: the store was altered")]
    Displaced {
        /// Where it stands.
        expected: VrotId,
        /// What it says.
        found: VrotId,
    },
    /// A key in it is none.
    #[error("the {which} in the record of vRoT {vrot} is none: the store is damaged")]
    Key {
        /// Whose.
        vrot: VrotId,
        /// Which key.
        which: &'static str,
    },
    /// There is nothing.
    #[error("the store has states of vRoT {vrot}, but no record: the store is damaged")]
    Missing {
        /// Whose.
        vrot: VrotId,
    },
    /// From a newer program.
    #[error(
        "the record of vRoT {vrot} has version {found}, this program reads version {VERSION}: use the newer program"
    )]
    Version {
        /// Whose.
        vrot: VrotId,
        /// The version found.
        found: u8,
    },
}

/// Version of the record, its first field. Version 1 is read as well: it knew of no lost state, and
/// its tombstones did not say whose vRoT it was; and so is version 2, which knew of no pending
/// certificate. A program that knows only an older one must not go on from a newer one, for it would
/// forget what it does not know, and finish deletions without their line in the audit log.
const VERSION: u8 = 3;
const FIRST_VERSION: u8 = 1;
/// What fits into a line of a table.
const MAX_NAME: usize = 64;

#[derive(Encode, Decode)]
#[cbor(array)]
struct Versioned {
    #[n(0)]
    version: u8,
    #[n(1)]
    contents: StoredVrot,
}

impl VrotRecord {
    /// What its certificates say of it.
    pub fn subject(&self) -> CertifiedSubject {
        CertifiedSubject {
            vm: self.vm,
            vrot: self.vrot,
            tenant: self.tenant.clone(),
            generation: self.generation,
        }
    }

    /// The change by which the store holds this record.
    pub fn to_batch(&self) -> Batch {
        let record = StoredVrot::Living(Box::new(self.clone())).to_bytes();
        Batch::default().put_record(self.vrot, self.generation, record)
    }
}

impl Tombstone {
    /// The change by which the store holds this in place of the vRoT's record.
    pub fn to_batch(&self) -> Batch {
        let record = StoredVrot::Deleted(self.clone()).to_bytes();
        Batch::default().put_record(self.vrot, Generation::default(), record)
    }
}

impl Identity {
    /// Records what was manufactured; all certificates are pending.
    pub fn new(
        manufactured: &Manufactured,
        host_certificate: &[u8],
        manager: Digest32,
        backend: Digest32,
    ) -> Self {
        let area = |area: &PublicArea| ByteVec::from(area.as_bytes().to_vec());
        Self {
            vik: area(manufactured.vik.public_area()),
            ek_rsa: area(manufactured.ek_rsa.public_area()),
            ek_p256: area(manufactured.ek_p256.public_area()),
            vik_certificate: None,
            ek_rsa_certificate: None,
            ek_p256_certificate: None,
            host_certificate: host_certificate.to_vec().into(),
            manager,
            backend,
            vik_issued_at: Timestamp::new(0),
        }
    }

    /// What is still to be issued, the vIK's certificate first.
    pub fn pending(&self) -> Option<Pending> {
        if self.vik_certificate.is_none() {
            Some(Pending::Vik)
        } else {
            (!self.has_ek_certificates()).then_some(Pending::Eks)
        }
    }

    /// Whether both endorsement keys have a certificate.
    pub fn has_ek_certificates(&self) -> bool {
        self.ek_rsa_certificate.is_some() && self.ek_p256_certificate.is_some()
    }

    /// Makes the vIK's certificate pending, and also those of the endorsement keys, unless these are
    /// kept.
    pub fn withdraw(&mut self, keeps_eks: bool) {
        self.vik_certificate = None;
        self.vik_issued_at = Timestamp::new(0);
        if !keeps_eks {
            self.ek_rsa_certificate = None;
            self.ek_p256_certificate = None;
        }
    }

    /// SHA-256 value of the vIK's certificate, if that is not pending.
    pub fn vik_certificate_digest(&self) -> Option<Digest32> {
        self.vik_certificate.as_deref().map(|der| Digest32::of(der))
    }

    /// The vIK.
    pub fn vik(&self, vrot: VrotId) -> Result<AttestationKey, RecordError> {
        key(&self.vik, vrot, "vIK")
    }

    /// The RSA-2048 EK.
    pub fn ek_rsa(&self, vrot: VrotId) -> Result<EndorsementKey, RecordError> {
        key(&self.ek_rsa, vrot, "RSA-2048 EK")
    }

    /// The P-256 EK.
    pub fn ek_p256(&self, vrot: VrotId) -> Result<EndorsementKey, RecordError> {
        key(&self.ek_p256, vrot, "P-256 EK")
    }

    /// Names of both EKs.
    pub fn ek_names(&self, vrot: VrotId) -> Result<Vec<TpmName>, RecordError> {
        Ok(vec![self.ek_rsa(vrot)?.name(), self.ek_p256(vrot)?.name()])
    }
}

impl StoredVrot {
    /// The record as it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let versioned = Versioned {
            version: VERSION,
            contents: self.clone(),
        };
        match minicbor::to_vec(versioned) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Reads the record that stands in the place of `vrot`.
    pub fn from_bytes(vrot: VrotId, bytes: &[u8]) -> Result<Self, RecordError> {
        let cbor = |source| RecordError::Cbor { vrot, source };
        // The version first: what follows may be anything.
        let mut decoder = minicbor::Decoder::new(bytes);
        decoder.array().map_err(cbor)?;
        let found = decoder.u8().map_err(cbor)?;
        if !(FIRST_VERSION..=VERSION).contains(&found) {
            return Err(RecordError::Version { vrot, found });
        }
        let versioned: Versioned = minicbor::decode(bytes).map_err(cbor)?;
        let found = match &versioned.contents {
            Self::Living(record) => record.vrot,
            Self::Deleted(tombstone) => tombstone.vrot,
        };
        if found != vrot {
            return Err(RecordError::Displaced {
                expected: vrot,
                found,
            });
        }
        Ok(versioned.contents)
    }
}

fn key<K: TryFrom<PublicArea>>(
    bytes: &[u8],
    vrot: VrotId,
    which: &'static str,
) -> Result<K, RecordError> {
    PublicArea::parse(bytes)
        .ok()
        .and_then(|area| K::try_from(area).ok())
        .ok_or(RecordError::Key { vrot, which })
}

impl VrotName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VrotName {
    type Err = VrotNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let length = text.chars().count();
        if length == 0
            || length > MAX_NAME
            || text.trim() != text
            || !text.chars().all(is_printable)
        {
            let start: String = text.chars().take(MAX_NAME).collect();
            return Err(VrotNameError(Printable(&start).to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VrotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    pub(crate) fn record() -> VrotRecord {
        let vrot = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let wrapped = |byte: u8| -> WrappedSecret {
            let mut bytes = vec![0x82, 0x4c];
            bytes.extend([byte; 12]);
            bytes.extend([0x42, byte, byte]);
            minicbor::decode(&bytes).unwrap()
        };
        VrotRecord {
            vrot,
            vm: "00000000-0000-4000-8000-000000000002".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            name: Some("web server".parse().unwrap()),
            generation: Generation::new(1),
            lifecycle: Lifecycle::Assigned {
                at: Timestamp::new(1_700_000_000),
            },
            state_key: wrapped(3),
            nv_authority: wrapped(4),
            identity: Identity {
                vik: vec![5].into(),
                ek_rsa: vec![6].into(),
                ek_p256: vec![7].into(),
                vik_certificate: Some(vec![8].into()),
                ek_rsa_certificate: Some(vec![9].into()),
                ek_p256_certificate: Some(vec![10].into()),
                host_certificate: vec![11].into(),
                manager: Digest32::new([12; 32]),
                backend: Digest32::new([13; 32]),
                vik_issued_at: Timestamp::new(1_700_000_000),
            },
            state_loss: None,
        }
    }

    /// Version 1, as stores in the field hold it.
    #[test]
    fn version_one_stays_readable() {
        let golden = hex::decode(include_str!("vrot_record_v1.hex").trim()).unwrap();
        assert_eq!(
            StoredVrot::from_bytes(record().vrot, &golden).unwrap(),
            StoredVrot::Living(Box::new(record()))
        );
    }

    /// Versions 2 and 3, and 3 byte for byte: stores in the field hold it. If this fails, the format
    /// needs a new version beside the old ones.
    #[test]
    fn version_two_stays_readable_and_version_three_as_it_is() {
        let record = VrotRecord {
            state_loss: Some(LostState {
                batch: 14,
                at: Timestamp::new(1_700_000_001),
            }),
            ..record()
        };
        let tombstone = Tombstone {
            vrot: record.vrot,
            at: Timestamp::new(1_700_000_002),
            owner: Some(Owner {
                vm: record.vm,
                tenant: record.tenant.clone(),
                by_uid: Some(1000),
            }),
        };
        let vrot = record.vrot;
        let mut pending = record.clone();
        pending.identity.vik_certificate = None;
        pending.identity.ek_rsa_certificate = None;
        pending.identity.ek_p256_certificate = None;
        let read = |golden: &str| {
            let golden = hex::decode(golden.trim()).unwrap();
            (StoredVrot::from_bytes(vrot, &golden).unwrap(), golden)
        };
        for (golden_2, golden_3, stored) in [
            (
                Some(include_str!("vrot_record_v2.hex")),
                include_str!("vrot_record_v3.hex"),
                StoredVrot::Living(Box::new(record)),
            ),
            (
                None,
                include_str!("vrot_record_pending_v3.hex"),
                StoredVrot::Living(Box::new(pending)),
            ),
            (
                Some(include_str!("tombstone_v2.hex")),
                include_str!("tombstone_v3.hex"),
                StoredVrot::Deleted(tombstone),
            ),
        ] {
            let (found, golden) = read(golden_3);
            assert_eq!(hex::encode(stored.to_bytes()), hex::encode(&golden));
            assert_eq!(found, stored);
            if let Some(golden) = golden_2 {
                assert_eq!(read(golden).0, stored);
            }
        }
    }

    #[test]
    fn a_record_in_anothers_place_is_refused() {
        let bytes = StoredVrot::Living(Box::new(record())).to_bytes();
        let error = StoredVrot::from_bytes(VrotId::random(), &bytes).unwrap_err();
        assert!(matches!(error, RecordError::Displaced { .. }), "{error}");
    }

    #[test]
    fn a_version_from_the_future_is_refused_whatever_follows() {
        let error = StoredVrot::from_bytes(record().vrot, &[0x82, 0x04, 0x01]).unwrap_err();
        assert!(matches!(error, RecordError::Version { found: 4, .. }));
    }

    #[test]
    fn names_are_for_people_and_their_tables() {
        for good in ["web", "Web server 2", "büro"] {
            assert!(good.parse::<VrotName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            " web",
            "web\n",
            "we\u{1b}[2Jb",
            "we\u{202e}b",
            "we\u{200b}b",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<VrotName>().is_err(), "{bad}");
        }
    }
}
