//! The registers of a TPM on an I2C bus (PC Client Platform TPM Profile 1.05, 7.3: "I2C-TPM
//! Register Overview"), and what those have that never change.

/// A register. What is not listed is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// `TPM_LOC_SEL`
    LocalitySelect,
    /// `TPM_ACCESS`
    Access,
    /// `TPM_STS`
    Status,
    /// `TPM_DATA_FIFO`
    Fifo,
    /// `TPM_DATA_CSUM_ENABLE`
    ChecksumEnable,
    /// `TPM_DATA_CSUM`
    Checksum,
    /// One that only tells this. What is written there changes nothing.
    Constant(u32),
    /// `TPM_I2C_DEVICE_ADDRESS`, which cannot be changed.
    DeviceAddress,
}

/// Where an access begins: in which register, and how many bytes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) register: Register,
    pub(super) offset: usize,
    /// How many bytes there are from here. Of the FIFO there are as many as one likes.
    pub(super) width: usize,
}

/// The address on the bus, of 7 bits, that the profile gives a TPM.
pub(super) const DEVICE_ADDRESS: u8 = 0x2e;

/// `TPM_I2C_INTERFACE_CAPABILITY`: a FIFO (2), interface version 1.0, TPM 2.0, no guard times,
/// standard and fast mode, locality 0 alone, an address that cannot be changed, a burst count that
/// changes.
const INTERFACE_CAPABILITY: u32 = 2 | FAMILY_TPM_2 | STANDARD_AND_FAST_MODE;
const FAMILY_TPM_2: u32 = 1 << 7;
const STANDARD_AND_FAST_MODE: u32 = 3 << 21;
/// `TPM_DID_VID`: what QEMU's TPMs say, behind which the same libtpms may be (IBM, device 1).
const DEVICE_AND_VENDOR: u32 = 0x0001_1014;
/// `TPM_RID`, as there.
const REVISION: u32 = 1;
/// `TPM_INT_ENABLE`, `TPM_INT_STATUS`, `TPM_INT_CAPABILITY`: there are no interrupts.
const NO_INTERRUPTS: u32 = 0;

/// First address, width in bytes.
const REGISTERS: [(u8, u8, Register); 13] = [
    (0x00, 1, Register::LocalitySelect),
    (0x04, 1, Register::Access),
    (0x08, 4, Register::Constant(NO_INTERRUPTS)),
    (0x10, 4, Register::Constant(NO_INTERRUPTS)),
    (0x14, 4, Register::Constant(NO_INTERRUPTS)),
    (0x18, 4, Register::Status),
    (0x24, 1, Register::Fifo),
    (0x30, 4, Register::Constant(INTERFACE_CAPABILITY)),
    (0x38, 2, Register::DeviceAddress),
    (0x40, 1, Register::ChecksumEnable),
    (0x44, 2, Register::Checksum),
    (0x48, 4, Register::Constant(DEVICE_AND_VENDOR)),
    (0x4c, 1, Register::Constant(REVISION)),
];

impl Place {
    /// What is at an address.
    pub(super) fn at(address: u8) -> Option<Self> {
        REGISTERS.iter().find_map(|(first, width, register)| {
            let offset = address.checked_sub(*first)?;
            let width = width.checked_sub(offset).filter(|width| *width > 0)?;
            Some(Self {
                register: *register,
                offset: offset.into(),
                width: match register {
                    Register::Fifo => usize::MAX,
                    _ => width.into(),
                },
            })
        })
    }
}
