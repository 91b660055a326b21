//! `TCG_EVENTTYPE` (TCG PC Client Platform Firmware Profile §10.4.1).

use std::fmt;
use std::str::FromStr;

/// The kind of an event, with the name that the profile gives it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType(pub u32);

/// A text that names no event type.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is no event type: use a name such as EV_EFI_BOOT_SERVICES_APPLICATION")]
pub struct EventTypeError {
    /// What was given.
    pub text: String,
}

const NAMES: [(u32, &str); 39] = [
    (0x0000_0000, "EV_PREBOOT_CERT"),
    (0x0000_0001, "EV_POST_CODE"),
    (0x0000_0002, "EV_UNUSED"),
    (0x0000_0003, "EV_NO_ACTION"),
    (0x0000_0004, "EV_SEPARATOR"),
    (0x0000_0005, "EV_ACTION"),
    (0x0000_0006, "EV_EVENT_TAG"),
    (0x0000_0007, "EV_S_CRTM_CONTENTS"),
    (0x0000_0008, "EV_S_CRTM_VERSION"),
    (0x0000_0009, "EV_CPU_MICROCODE"),
    (0x0000_000a, "EV_PLATFORM_CONFIG_FLAGS"),
    (0x0000_000b, "EV_TABLE_OF_DEVICES"),
    (0x0000_000c, "EV_COMPACT_HASH"),
    (0x0000_000d, "EV_IPL"),
    (0x0000_000e, "EV_IPL_PARTITION_DATA"),
    (0x0000_000f, "EV_NONHOST_CODE"),
    (0x0000_0010, "EV_NONHOST_CONFIG"),
    (0x0000_0011, "EV_NONHOST_INFO"),
    (0x0000_0012, "EV_OMIT_BOOT_DEVICE_EVENTS"),
    (0x0000_0013, "EV_POST_CODE2"),
    (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
    (0x8000_0002, "EV_EFI_VARIABLE_BOOT"),
    (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION"),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER"),
    (0x8000_0005, "EV_EFI_RUNTIME_SERVICES_DRIVER"),
    (0x8000_0006, "EV_EFI_GPT_EVENT"),
    (0x8000_0007, "EV_EFI_ACTION"),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
    (0x8000_0009, "EV_EFI_HANDOFF_TABLES"),
    (0x8000_000a, "EV_EFI_PLATFORM_FIRMWARE_BLOB2"),
    (0x8000_000b, "EV_EFI_HANDOFF_TABLES2"),
    (0x8000_000c, "EV_EFI_VARIABLE_BOOT2"),
    (0x8000_000d, "EV_EFI_GPT_EVENT2"),
    (0x8000_0010, "EV_EFI_HCRTM_EVENT"),
    (0x8000_00e0, "EV_EFI_VARIABLE_AUTHORITY"),
    (0x8000_00e1, "EV_EFI_SPDM_FIRMWARE_BLOB"),
    (0x8000_00e2, "EV_EFI_SPDM_FIRMWARE_CONFIG"),
    (0x8000_00e3, "EV_EFI_SPDM_DEVICE_POLICY"),
    (0x8000_00e4, "EV_EFI_SPDM_DEVICE_AUTHORITY"),
];

impl EventType {
    /// Firmware code, as older firmware calls it.
    pub const POST_CODE: Self = Self(0x0000_0001);
    /// Firmware code, with its name.
    pub const POST_CODE2: Self = Self(0x0000_0013);
    /// A certificate before the boot; no longer in use, and what a blank area looks like.
    pub const PREBOOT_CERT: Self = Self(0x0000_0000);
    /// The H-CRTM, which the TPM measured before `TPM2_Startup`.
    pub const EFI_HCRTM_EVENT: Self = Self(0x8000_0010);
    /// A note that no PCR measured.
    pub const NO_ACTION: Self = Self(0x0000_0003);
    /// The end of a phase.
    pub const SEPARATOR: Self = Self(0x0000_0004);
    /// Tagged data, as the Linux boot stub measures them.
    pub const EVENT_TAG: Self = Self(0x0000_0006);
    /// Version of the first code.
    pub const S_CRTM_VERSION: Self = Self(0x0000_0008);
    /// Whatever a boot loader measured.
    pub const IPL: Self = Self(0x0000_000d);
    /// A boot loader or kernel.
    pub const EFI_BOOT_SERVICES_APPLICATION: Self = Self(0x8000_0003);
    /// A driver or an option ROM.
    pub const EFI_BOOT_SERVICES_DRIVER: Self = Self(0x8000_0004);
    /// A step of the firmware.
    pub const EFI_ACTION: Self = Self(0x8000_0007);
    /// Firmware code.
    pub const EFI_PLATFORM_FIRMWARE_BLOB: Self = Self(0x8000_0008);
    /// Firmware code, with its name.
    pub const EFI_PLATFORM_FIRMWARE_BLOB2: Self = Self(0x8000_000a);

    fn name(self) -> Option<&'static str> {
        NAMES
            .iter()
            .find(|(number, _)| *number == self.0)
            .map(|(_, name)| *name)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "EV_0x{:08x}", self.0),
        }
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventType {
    type Err = EventTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let by_name = NAMES.iter().find(|(_, name)| *name == text);
        let by_number = || u32::from_str_radix(text.strip_prefix("EV_0x")?, 16).ok();
        by_name
            .map(|(number, _)| *number)
            .or_else(by_number)
            .map(Self)
            .ok_or_else(|| EventTypeError {
                text: text.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_type_is_read_as_it_is_written() {
        for number in NAMES.map(|(number, _)| number).into_iter().chain([0x99]) {
            let event_type = EventType(number);
            assert_eq!(event_type.to_string().parse(), Ok(event_type));
        }
        assert!("EV_NONSENSE".parse::<EventType>().is_err());
    }
}
