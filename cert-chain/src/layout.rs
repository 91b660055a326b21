//! Where a vRoT's identity lies in its TPM: the layout that stock tools look for.

/// A place in NV memory that holds one certificate or template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NvIndex(u32);

impl NvIndex {
    /// Certificate of the RSA-2048 EK (TCG EK Credential Profile 2.5 §2.2.1.4).
    pub const EK_RSA_CERTIFICATE: Self = Self(0x01c0_0002);
    /// Certificate of the P-256 EK (same).
    pub const EK_P256_CERTIFICATE: Self = Self(0x01c0_000a);
    /// The chain above the certificates, concatenated DER (same profile, §2.2.1): the certificate of
    /// the host IK. The issuer's root is not in it: a verifier has it or does not trust it.
    pub const CERTIFICATE_CHAIN: Self = Self(0x01c0_0100);
    /// Certificate of the vIK, where Google's tools look for a P-256 attestation key's.
    pub const VIK_CERTIFICATE: Self = Self(0x01c1_0002);
    /// Template (`TPMT_PUBLIC`) of the vIK: `TPM2_CreatePrimary` in the endorsement hierarchy
    /// makes the vIK anew from it.
    pub const VIK_TEMPLATE: Self = Self(0x01c1_0003);
    /// Certificate of the TLS key.
    pub const TLS_CERTIFICATE: Self = Self(0x01c1_0004);
    /// Template (`TPMT_PUBLIC`) of the TLS key: as with the vIK.
    pub const TLS_TEMPLATE: Self = Self(0x01c1_0005);
    /// Holds no data. Its authorization value, which the manager alone knows, is what the
    /// policy of the other indices demands for a write.
    pub const WRITER: Self = Self(0x01c1_0100);

    /// The handle.
    pub const fn handle(self) -> u32 {
        self.0
    }
}

/// The counter that numbers what a VM signs with its key for data. The guest makes it, in the range that the
/// TCG's registry leaves to the TPM's owner.
pub const DATA_COUNTER: u32 = 0x0180_7664;
/// The vIK, persistent.
pub const VIK_HANDLE: u32 = 0x8100_0003;
/// The key with which the VM's service authenticates itself in TLS, persistent.
pub const TLS_KEY_HANDLE: u32 = 0x8100_0004;

/// `MAX_NV_INDEX_SIZE` of libtpms; a certificate must fit into one index.
pub const MAX_INDEX: usize = 2048;
