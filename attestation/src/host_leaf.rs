//! The host's statement about one vRoT, as a leaf of the tree that the host's quote signs.

use cert_chain::{Digest32, Generation, Tenant, TpmName, VmId, VrotId};
use minicbor::{Decode, Encode};

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

/// What a host measured of a VM's image and configuration before its start
/// (ISO/IEC 27070 §6.3).
///
/// The hosts of this version measure nothing; the place is there so that evidence keeps its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LaunchMeasurement {
    /// Nothing: the launcher gave no measurement.
    #[n(0)]
    NotMeasured,
    /// The SHA-256 value that the launcher gave.
    #[n(1)]
    Measured(#[n(0)] Digest32),
}

/// More endorsement keys than any vRoT has.
pub const MAX_EKS: usize = 8;
/// Longer than any leaf can be.
pub const MAX_LEAF: usize = 2048;

impl HostLeaf {
    /// The leaf's contents in deterministic CBOR.
    pub fn encode(&self) -> Vec<u8> {
        match minicbor::to_vec(self) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a Vec takes every byte: {error}"),
        }
    }

    /// The hash under which the leaf stands in the tree (RFC 9162 §2.1.1).
    pub fn hash(&self) -> Digest32 {
        merkle::leaf_hash(&self.encode())
    }
}
