//! What an event is about, in the words of a person: "kernel", "initramfs", "shimx64.efi".
//!
//! The name comes out of the event's data, which no PCR measured. It decides what an event is
//! *called* and never whether it is acceptable.

use super::{Event, EventType};

impl Event {
    /// The name of what was measured, where the event carries code or a boot loader's input;
    /// `None` for everything else.
    pub fn subject(&self) -> Option<String> {
        let fixed = match (self.pcr, self.event_type) {
            (0, EventType::S_CRTM_VERSION) => "firmware version",
            (0, EventType::POST_CODE | EventType::POST_CODE2) => "firmware",
            (0, EventType::EFI_PLATFORM_FIRMWARE_BLOB | EventType::EFI_PLATFORM_FIRMWARE_BLOB2) => {
                "firmware"
            }
            (2, EventType::EFI_BOOT_SERVICES_DRIVER) => "driver or option ROM",
            (4, EventType::EFI_BOOT_SERVICES_APPLICATION) => return Some(loaded_image(&self.data)),
            (4, EventType::EFI_ACTION) => "firmware action",
            (9, EventType::EVENT_TAG) => tagged(&self.data),
            (8 | 9, EventType::IPL) => read_by_boot_loader(&self.data),
            _ => return None,
        };
        Some(fixed.to_owned())
    }
}

/// `UEFI_IMAGE_LOAD_EVENT` (PFP §10.2.3): three addresses and lengths, then a device path, whose
/// last file name is the program's.
fn loaded_image(data: &[u8]) -> String {
    const BEFORE_PATH: usize = 32;
    let unknown = || "boot loader or kernel".to_owned();
    let Some(file) = data.get(BEFORE_PATH..).and_then(last_file_name) else {
        return unknown();
    };
    match kind_of_file(&file) {
        Some(kind) => kind.to_owned(),
        None if file.is_empty() => unknown(),
        None => file,
    }
}

/// Walks a device path (UEFI 2.10 §10.3): nodes of type, subtype, length in 16 bits, contents.
fn last_file_name(mut path: &[u8]) -> Option<String> {
    const HEADER: usize = 4;
    const MEDIA: u8 = 0x04;
    const FILE_PATH: u8 = 0x04;
    let mut name = None;
    while let [kind, subtype, low, high, ..] = *path {
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some(contents) = path.get(HEADER..length) else {
            break;
        };
        if (kind, subtype) == (MEDIA, FILE_PATH) {
            name = Some(base_name(&utf16(contents)));
        }
        path = path.get(length..).unwrap_or_default();
    }
    name
}

/// `TCG_PCClientTaggedEvent` (PFP §10.2.1), with the numbers of the Linux boot stub
/// (drivers/firmware/efi/libstub/efistub.h).
fn tagged(data: &[u8]) -> &'static str {
    const INITRD: u32 = 0x8f3b_22ec;
    const LOAD_OPTIONS: u32 = 0x8f3b_22ed;
    match data.first_chunk().map(|number| u32::from_le_bytes(*number)) {
        Some(INITRD) => "initramfs",
        Some(LOAD_OPTIONS) => COMMAND_LINE,
        _ => "initramfs or command line",
    }
}

/// GRUB logs the commands it runs in PCR 8 and the names of the files it reads in PCR 9.
fn read_by_boot_loader(data: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(data);
    if text.starts_with("kernel_cmdline:") {
        return COMMAND_LINE;
    }
    if text.starts_with("grub_cmd:") {
        return "boot loader command";
    }
    kind_of_file(&base_name(&text)).unwrap_or("what the boot loader read")
}

/// What a file is, by the way distributions (and QEMU's `-kernel`) name it.
fn kind_of_file(name: &str) -> Option<&'static str> {
    let starts = |prefix| name.starts_with(prefix);
    if name == "kernel" || starts("vmlinu") || starts("bzImage") {
        Some("kernel")
    } else if starts("initrd") || starts("initramfs") {
        Some("initramfs")
    } else {
        None
    }
}

/// The part after the last separator, in characters that are safe on any terminal.
fn base_name(path: &str) -> String {
    path.trim_end_matches('\0')
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_graphic)
        .take(LONGEST_NAME)
        .collect()
}

fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| {
            pair.iter()
                .rev()
                .fold(0, |unit, byte| unit << 8 | u16::from(*byte))
        })
        .collect();
    String::from_utf16_lossy(&units)
}

const COMMAND_LINE: &str = "kernel command line";
/// Names stand in reasons; longer ones say no more.
const LONGEST_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn event(pcr: u32, event_type: EventType, data: &[u8]) -> Event {
        Event {
            pcr,
            event_type,
            digests: Vec::new(),
            data: data.to_vec(),
            offset: 0,
        }
    }

    fn image(path: &[u8]) -> Option<String> {
        let data = [&[0; 32], path].concat();
        event(4, EventType::EFI_BOOT_SERVICES_APPLICATION, &data).subject()
    }

    fn file_node(name: &str) -> Vec<u8> {
        let name: Vec<u8> = name
            .encode_utf16()
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let length = u16::try_from(name.len() + 4).unwrap_or(u16::MAX);
        [&[4, 4], length.to_le_bytes().as_slice(), &name].concat()
    }

    #[test]
    fn a_program_is_called_by_its_file_name_and_a_kernel_a_kernel() {
        const END: [u8; 4] = [0x7f, 0xff, 4, 0];
        for (file, name) in [
            ("\\EFI\\debian\\shimx64.efi", "shimx64.efi"),
            ("\\vmlinuz-6.1.0-30-amd64", "kernel"),
            ("kernel", "kernel"),
            ("\u{1b}[31mred", "[31mred"),
            ("\u{1b}", "boot loader or kernel"),
        ] {
            let path = [file_node(file).as_slice(), &END].concat();
            assert_eq!(image(&path).as_deref(), Some(name));
        }
    }

    #[test]
    fn a_device_path_that_makes_no_sense_names_nothing() {
        let unknown = Some("boot loader or kernel");
        for path in [
            [].as_slice(),
            &[4],
            &[4, 4, 0, 0],
            &[4, 4, 3, 0],
            &[4, 4, 0xff, 0xff, 0x41, 0x00],
            &[0x7f, 0xff, 4, 0],
        ] {
            assert_eq!(image(path).as_deref(), unknown);
        }
        let short = event(4, EventType::EFI_BOOT_SERVICES_APPLICATION, b"short");
        assert_eq!(short.subject().as_deref(), unknown);
    }

    #[test]
    fn what_the_boot_stub_and_grub_measure_has_names() {
        let name = |pcr, event_type, data: &[u8]| event(pcr, event_type, data).subject();
        let tag = |number: u32| name(9, EventType::EVENT_TAG, &number.to_le_bytes());
        assert_eq!(tag(0x8f3b_22ec).as_deref(), Some("initramfs"));
        assert_eq!(tag(0x8f3b_22ed).as_deref(), Some("kernel command line"));
        let grub = |pcr, data: &str| name(pcr, EventType::IPL, data.as_bytes());
        assert_eq!(
            grub(8, "kernel_cmdline: ro\0").as_deref(),
            Some("kernel command line")
        );
        assert_eq!(
            grub(9, "/boot/initrd.img-6.1.0-30-amd64").as_deref(),
            Some("initramfs")
        );
        assert_eq!(name(7, EventType::SEPARATOR, &[0; 4]), None);
    }
}
