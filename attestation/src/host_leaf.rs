//! The host's statement about one vRoT, as a leaf of the tree that the host's quote signs.

use cert_chain::{Digest32, Generation, Tenant, TpmName, VmId, VrotId};
use minicbor::{Decode, Encode};

use crate::launch::LaunchMeasurement;
use crate::merkle;
use crate::qualifying::RequestDigest;

/// What the host says about the vRoT that asked.
///
/// The salt keeps a requester from guessing at its neighbours' leaves by their hashes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HostLeaf {
    /// 32 random bytes, new for each leaf.
    #[n(1)]
    pub salt: Digest32,
    /// The VM.
    #[n(2)]
    pub vm: VmId,
    /// Its vRoT.
    #[n(3)]
    pub vrot: VrotId,
    /// Whose VM it is.
    #[n(4)]
    pub tenant: Tenant,
    /// Rises with each sanctioned restore or copy of the vRoT's state.
    #[n(5)]
    pub generation: Generation,
    /// Name of the vIK.
    #[n(6)]
    pub vik: TpmName,
    /// Names of the vRoT's endorsement keys.
    #[n(7)]
    pub eks: Vec<TpmName>,
    /// What the host measured of the VM before it started.
    #[n(8)]
    pub launch: LaunchMeasurement,
    /// The request that this leaf answers.
    #[n(9)]
    pub request: RequestDigest,
    /// Whether its state is safe.
    #[n(10)]
    pub durability: Durability,
    /// How far a loss of power could take the host's store back unseen, from now on.
    #[n(11)]
    pub anchoring: Anchoring,
    /// Whether one may have done so.
    #[n(12)]
    pub cut_off: CutOff,
    /// Whether the end of its backend may have taken back what its guest was told.
    #[n(13)]
    pub state_loss: StateLoss,
    /// How the VM reaches its TPM.
    #[n(14)]
    pub transport: TpmTransport,
    /// Who had the vRoT quote, and for whom. Only this tells a host's own answer from one that a guest
    /// had its vRoT make: a guest can have its vIK sign any qualifying data.
    #[n(15)]
    pub purpose: QuotePurpose,
}

/// What a VM's quote is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum QuotePurpose {
    /// A service in the VM quotes, and asks its host for a statement by a command to its TPM.
    #[n(0)]
    Service,
    /// The host has the vRoT quote for the VM's tenant, without the guest.
    #[n(1)]
    Tenant,
}

impl QuotePurpose {
    /// Its name in results and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Tenant => "tenant",
        }
    }
}

/// How often the host has its physical TPM vouch for the newest state, in a form that outlasts a
/// loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Anchoring {
    /// With every change, before it is acknowledged.
    #[n(0)]
    Strict,
    /// This many seconds after a change at the latest.
    #[n(1)]
    Checkpoint(#[n(0)] u16),
}

/// Whether a loss of power may have cut off the newest state of a host unseen, since its vRoTs
/// were given their generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CutOff {
    /// No: every restart was accounted for, to the last change.
    #[n(0)]
    Excluded,
    /// It may have; the last time is told.
    #[n(1)]
    Possible {
        /// Number of the first batch that the host's store took afterwards. It rises from one
        /// loss to the next, whatever becomes of the host's clock: this tells them apart.
        #[n(0)]
        batch: u64,
        /// When that was, by the host's clock, in seconds since 1970: for people to read.
        #[n(1)]
        time: u64,
        /// What was changed this many seconds before the loss may be missing; nothing older.
        #[n(2)]
        window_s: u16,
    },
}

/// Whether the vRoT may have lost state that its guest was told of: its backend answered a command
/// before the state was durable ([`Durability::Degraded`]), and ended before it was. It is told
/// until the vRoT has a new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StateLoss {
    /// No: each of its backends ended with all durable that was answered.
    #[n(0)]
    Excluded,
    /// It may have; the last time is told.
    #[n(1)]
    Possible {
        /// Number of the newest batch of the host's store when it was noted. It never goes back: a
        /// later loss has a higher one.
        #[n(0)]
        batch: u64,
        /// When that was, by the host's clock, in seconds since 1970.
        #[n(1)]
        time: u64,
    },
}

/// Whether a vRoT's state outlasts its host's power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Durability {
    /// All that was acknowledged is on stable storage.
    #[n(0)]
    Durable,
    /// A command was answered before its state was: a loss of power could take it back.
    #[n(1)]
    Degraded,
}

/// How the VM reaches its TPM, as its host set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum TpmTransport {
    /// A VMM's device (TIS or CRB) behind the TPM emulator protocol: the VM's firmware measures into
    /// it from its first instruction on.
    #[n(0)]
    Emulator,
    /// virtio-tpm, which no firmware drives.
    #[n(1)]
    VirtioTpm,
    /// TIS over I2C behind virtio-i2c, which no firmware drives.
    #[n(2)]
    VirtioI2c,
}

impl TpmTransport {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulator => "emulator",
            Self::VirtioTpm => "virtio-tpm",
            Self::VirtioI2c => "virtio-i2c",
        }
    }

    /// Whether the VM's firmware can measure itself, and what it starts, into the TPM.
    pub fn reaches_firmware(self) -> bool {
        match self {
            Self::Emulator => true,
            Self::VirtioTpm | Self::VirtioI2c => false,
        }
    }
}

/// More endorsement keys than any vRoT has.
pub const MAX_EKS: usize = 8;
/// Longer than any leaf can be.
pub const MAX_LEAF: usize = 6144;

impl HostLeaf {
    /// The leaf's contents in deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        match minicbor::to_vec(self) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// Reads a leaf, in the one form that it has. Nothing about it is verified.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let leaf: Self = minicbor::decode(bytes).ok()?;
        (leaf.encode() == bytes && leaf.eks.len() <= MAX_EKS).then_some(leaf)
    }

    /// The hash under which the leaf stands in the tree (RFC 9162 §2.1.1).
    pub fn hash(&self) -> Digest32 {
        merkle::leaf_hash(&self.encode())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::launch::{Launch, LaunchPart, PartValue};

    /// Guests and verifiers of other builds read leaves like this one, byte for byte.
    #[test]
    fn the_encoding_stays_as_it_is() {
        let digest = |byte| Digest32::new([byte; 32]);
        let name = |byte| TpmName::from_bytes(&[&[0, 0x0b], &[byte; 32][..]].concat()).unwrap();
        let launch = Launch::new(vec![LaunchPart {
            id: "kernel".parse().unwrap(),
            value: PartValue::Digest(digest(8)),
        }]);
        let launch = launch.unwrap();
        let leaf = HostLeaf {
            salt: digest(1),
            vm: "02020202-0202-4202-8202-020202020202".parse().unwrap(),
            vrot: "03030303-0303-4303-8303-030303030303".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            generation: Generation::new(5),
            vik: name(6),
            eks: vec![name(7)],
            launch: LaunchMeasurement::Measured(launch),
            request: RequestDigest(digest(9)),
            durability: Durability::Degraded,
            anchoring: Anchoring::Checkpoint(600),
            cut_off: CutOff::Possible {
                batch: 12,
                time: 1_700_000_000,
                window_s: 600,
            },
            state_loss: StateLoss::Possible {
                batch: 13,
                time: 1_700_000_001,
            },
            transport: TpmTransport::VirtioI2c,
            purpose: QuotePurpose::Tenant,
        };
        let golden = include_str!("host_leaf.hex").trim();
        assert_eq!(hex::encode(leaf.encode()), golden);
    }

    #[test]
    fn no_leaf_is_longer_than_the_limit() {
        let digest = |byte| Digest32::new([byte; 32]);
        let name = TpmName::from_bytes(&[&[0, 0x0d], &[7; 64][..]].concat()).unwrap();
        let parts = (0..crate::launch::MAX_PARTS).map(|n| LaunchPart {
            id: format!("value:{n:0>42}").parse().unwrap(),
            value: "x".repeat(64).parse().unwrap(),
        });
        let leaf = HostLeaf {
            salt: digest(1),
            vm: VmId::random(),
            vrot: VrotId::random(),
            tenant: "a".repeat(63).parse().unwrap(),
            generation: Generation::new(u64::MAX),
            vik: name.clone(),
            eks: vec![name; MAX_EKS],
            launch: LaunchMeasurement::Measured(Launch::new(parts.collect()).unwrap()),
            request: RequestDigest(digest(9)),
            durability: Durability::Degraded,
            anchoring: Anchoring::Checkpoint(u16::MAX),
            cut_off: CutOff::Possible {
                batch: u64::MAX,
                time: u64::MAX,
                window_s: u16::MAX,
            },
            state_loss: StateLoss::Possible {
                batch: u64::MAX,
                time: u64::MAX,
            },
            transport: TpmTransport::VirtioI2c,
            purpose: QuotePurpose::Tenant,
        };
        assert!(leaf.encode().len() <= MAX_LEAF, "{}", leaf.encode().len());
    }
}
