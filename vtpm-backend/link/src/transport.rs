//! How a VM reaches its TPM.

use minicbor::{Decode, Encode};

/// How a VM reaches its TPM. It is fixed for the life of a vRoT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Transport {
    /// Through its VMM, which emulates the TPM's registers and speaks the TPM emulator protocol.
    #[n(0)]
    #[default]
    Emulator,
    /// By a queue in the guest's memory (vhost-user): virtio-tpm.
    #[n(1)]
    VirtioTpm,
    /// The same, for a TPM behind virtio-i2c.
    #[n(2)]
    VirtioI2c,
}

impl Transport {
    /// Whether it is that of a VM of which nothing else was said.
    pub fn is_emulator(&self) -> bool {
        *self == Self::Emulator
    }

    /// Whether the VMM shares its guest's memory with the backend.
    pub fn is_vhost_user(self) -> bool {
        match self {
            Self::Emulator => false,
            Self::VirtioTpm | Self::VirtioI2c => true,
        }
    }
}
