//! What the store keeps of a vRoT besides its state.

use std::fmt;
use std::str::FromStr;

use api_types::Timestamp;
use attestation::launch::Launch;
use backend_link::transport::Transport;
use cert_chain::{Generation, Tenant, VmId, VrotId};
use guarded_state::disk::Batch;
use minicbor::{Decode, Encode};
use printable::{Printable, is_printable};
use vrot_manufacture::CertifiedSubject;

use super::error::RecordError;
use super::folder::FolderBinding;
use super::identity::Identity;
use super::lifecycle::Lifecycle;
use crate::keys::WrappedSecret;

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
    /// The folder that its VM's launcher keeps for the VM, if it came by that.
    #[n(10)]
    pub folder: Option<FolderBinding>,
    /// Whether it is never started without a measurement of what its VM is launched with.
    #[n(11)]
    #[cbor(default)]
    pub requires_launch: bool,
    /// What was measured: while it runs, for this start; else for the next.
    #[n(12)]
    pub launch: Option<Launch>,
    /// Where its TPM was made, if not by this manager.
    #[n(13)]
    pub origin: Option<Origin>,
    /// How its VM reaches it.
    #[n(14)]
    #[cbor(default, skip_if = "Transport::is_emulator")]
    pub transport: Transport,
}

/// Where the TPM was made that is a vRoT now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Origin {
    /// Elsewhere, where its secrets were not guarded by this host's physical TPM.
    #[n(0)]
    Imported,
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

/// Version of the record, its first field. Version 1 is read as well: it knew of no lost state, and
/// its tombstones did not say whose vRoT it was; so is version 2, which knew of no pending
/// certificate, version 3, which knew of no TLS key, and version 4, which knew of no folder, no measured
/// launch and no origin. A program that knows only an older one must not go on from a newer one, for it would forget what it does not
/// know, and finish deletions without their line in the audit log.
const VERSION: u8 = 5;
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
            return Err(RecordError::Version {
                vrot,
                found,
                known: VERSION,
            });
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

    use cert_chain::Digest32;
    use cert_chain::layout::NvIndex;

    use super::super::folder::FileIdentity;
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
                tls_key: None,
                tls_certificate: None,
            },
            state_loss: None,
            folder: None,
            requires_launch: false,
            launch: None,
            origin: None,
            transport: Transport::Emulator,
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

    /// Versions 2 to 4, as stores in the field hold them.
    #[test]
    fn versions_two_to_four_stay_readable() {
        let (record, tombstone) = (lost(), tombstone());
        let mut with_tls_key = lost();
        with_tls_key.identity.tls_key = Some(vec![14].into());
        with_tls_key.identity.tls_certificate = Some(vec![15].into());
        for (golden, stored) in [
            (
                include_str!("vrot_record_v2.hex"),
                StoredVrot::Living(Box::new(record.clone())),
            ),
            (
                include_str!("vrot_record_v3.hex"),
                StoredVrot::Living(Box::new(record.clone())),
            ),
            (
                include_str!("vrot_record_pending_v3.hex"),
                StoredVrot::Living(Box::new(pending(record.clone()))),
            ),
            (
                include_str!("tombstone_v2.hex"),
                StoredVrot::Deleted(tombstone.clone()),
            ),
            (
                include_str!("tombstone_v3.hex"),
                StoredVrot::Deleted(tombstone.clone()),
            ),
            (
                include_str!("vrot_record_v4.hex"),
                StoredVrot::Living(Box::new(with_tls_key.clone())),
            ),
            (
                include_str!("vrot_record_pending_v4.hex"),
                StoredVrot::Living(Box::new(pending(with_tls_key))),
            ),
            (
                include_str!("tombstone_v4.hex"),
                StoredVrot::Deleted(tombstone),
            ),
        ] {
            let golden = hex::decode(golden.trim()).unwrap();
            assert_eq!(
                StoredVrot::from_bytes(record.vrot, &golden).unwrap(),
                stored
            );
        }
    }

    /// It goes on as it is, and nobody waits for a certificate of what it does not have.
    #[test]
    fn a_vrot_that_was_made_before_there_were_tls_keys_has_none_and_waits_for_none() {
        let old = record().identity;
        assert_eq!(old.pending(), None);
        assert_eq!(old.is_tls_key_certified(), None);
        assert_eq!(old.tls_key(record().vrot).unwrap(), None);
        let published = old.published();
        assert!((published.iter()).all(|(index, _)| {
            ![NvIndex::TLS_CERTIFICATE, NvIndex::TLS_TEMPLATE].contains(index)
        }));
    }

    /// Version 5 byte for byte: stores in the field hold it. If this fails, the format needs a new
    /// version beside the old ones.
    #[test]
    fn version_five_stays_as_it_is() {
        let mut record = lost();
        record.identity.tls_key = Some(vec![14].into());
        record.identity.tls_certificate = Some(vec![15].into());
        record.folder = Some(FolderBinding {
            token: Digest32::new([16; 32]),
            path: "/var/lib/libvirt/swtpm/vm/tpm2".to_owned(),
            file: Some(FileIdentity {
                inode: 17,
                born: Some(18),
            }),
            uid: 19,
            accepts_another: true,
        });
        record.requires_launch = true;
        record.launch = Some(attestation::fixture::launch());
        let imported = VrotRecord {
            origin: Some(Origin::Imported),
            ..record.clone()
        };
        for (golden, stored) in [
            (
                include_str!("vrot_record_imported_v5.hex"),
                StoredVrot::Living(Box::new(imported)),
            ),
            (
                include_str!("vrot_record_v5.hex"),
                StoredVrot::Living(Box::new(record.clone())),
            ),
            (
                include_str!("vrot_record_pending_v5.hex"),
                StoredVrot::Living(Box::new(pending(record.clone()))),
            ),
            (
                include_str!("tombstone_v5.hex"),
                StoredVrot::Deleted(tombstone()),
            ),
        ] {
            assert_eq!(hex::encode(stored.to_bytes()), golden.trim());
            let golden = hex::decode(golden.trim()).unwrap();
            assert_eq!(
                StoredVrot::from_bytes(record.vrot, &golden).unwrap(),
                stored
            );
        }
    }

    fn lost() -> VrotRecord {
        VrotRecord {
            state_loss: Some(LostState {
                batch: 14,
                at: Timestamp::new(1_700_000_001),
            }),
            ..record()
        }
    }

    fn pending(mut record: VrotRecord) -> VrotRecord {
        record.identity.vik_certificate = None;
        record.identity.tls_certificate = None;
        record.identity.ek_rsa_certificate = None;
        record.identity.ek_p256_certificate = None;
        record
    }

    fn tombstone() -> Tombstone {
        let record = record();
        Tombstone {
            vrot: record.vrot,
            at: Timestamp::new(1_700_000_002),
            owner: Some(Owner {
                vm: record.vm,
                tenant: record.tenant,
                by_uid: Some(1000),
            }),
        }
    }

    /// Without one it is written as before there were several.
    #[test]
    fn how_a_vm_reaches_its_vrot_is_kept() {
        for transport in [Transport::VirtioTpm, Transport::VirtioI2c] {
            let kept = VrotRecord {
                transport,
                ..record()
            };
            let stored = StoredVrot::Living(Box::new(kept));
            let read = StoredVrot::from_bytes(record().vrot, &stored.to_bytes());
            assert_eq!(read.unwrap(), stored);
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
        let error = StoredVrot::from_bytes(record().vrot, &[0x82, 0x06, 0x01]).unwrap_err();
        assert!(matches!(error, RecordError::Version { found: 6, .. }));
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
