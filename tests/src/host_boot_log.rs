//! A host's boot log, for a software TPM that no firmware has measured into.
//!
//! The log is a real one in form (TCG PC Client Platform Firmware Profile 1.05, clause 10:
//! crypto-agile) and says what a server that boots Debian by shim and GRUB would log. Each digest is also extended into the TPM, so that a replay gives the PCRs.

use anyhow::Result;
use cert_chain::{HashAlgorithm, HashValue};
use test_support::software_tpm::SoftwareTpm;

/// A log under construction.
#[derive(Clone, Debug)]
pub struct HostBootLog {
    bytes: Vec<u8>,
    banks: Vec<HashAlgorithm>,
    measurements: Vec<(u32, HashValue)>,
}

impl HostBootLog {
    /// The log of a host that booted the given kernel version, measured into the SHA-256 bank.
    pub fn of_debian_server(kernel_version: &str) -> Self {
        Self::in_banks(kernel_version, &[HashAlgorithm::Sha256])
    }

    /// The same, measured into these banks.
    pub fn in_banks(kernel_version: &str, banks: &[HashAlgorithm]) -> Self {
        let mut log = Self {
            bytes: specification_event(banks),
            banks: banks.to_vec(),
            measurements: Vec::new(),
        };
        let kernel = format!("/boot/vmlinuz-{kernel_version}");
        let initrd = format!("/boot/initrd.img-{kernel_version}");

        log.measured_data(0, EV_S_CRTM_VERSION, &utf16("2.3.7"));
        log.measured(
            0,
            EV_EFI_PLATFORM_FIRMWARE_BLOB,
            b"server firmware volume, main",
            &[0, 0, 0xf8, 0xff, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0],
        );
        log.measured_data(7, EV_EFI_VARIABLE_DRIVER_CONFIG, &secure_boot_variable(1));
        for pcr in 0..8 {
            log.measured_data(pcr, EV_SEPARATOR, &[0; 4]);
        }
        log.measured(
            4,
            EV_EFI_BOOT_SERVICES_APPLICATION,
            b"shimx64.efi of Debian",
            &image_load_event("\\EFI\\debian\\shimx64.efi"),
        );
        log.measured_data(14, EV_IPL, b"MokList");
        log.measured(
            4,
            EV_EFI_BOOT_SERVICES_APPLICATION,
            b"grubx64.efi of Debian",
            &image_load_event("\\EFI\\debian\\grubx64.efi"),
        );
        log.measured_data(8, EV_IPL, b"grub_cmd: linux\0");
        log.measured(9, EV_IPL, kernel.as_bytes(), kernel.as_bytes());
        log.measured(9, EV_IPL, initrd.as_bytes(), initrd.as_bytes());
        log.measured_data(
            8,
            EV_IPL,
            format!("kernel_cmdline: {kernel} root=/dev/sda1 ro intel_iommu=on\0").as_bytes(),
        );
        log.measured_data(5, EV_EFI_ACTION, b"Exit Boot Services Invocation");
        log.measured_data(
            5,
            EV_EFI_ACTION,
            b"Exit Boot Services Returned with Success",
        );
        log
    }

    /// The log as the kernel would hand it out.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Extends it into a TPM, as the host's firmware and boot loader would.
    pub fn measure_into(&self, tpm: &SoftwareTpm) -> Result<()> {
        let extensions = self.measurements.iter();
        tpm.extend(extensions.map(|(pcr, digest)| format!("{pcr}:{}={digest}", digest.algorithm())))
    }

    /// What was extended, in order: PCR and digest.
    pub fn measurements(&self) -> &[(u32, HashValue)] {
        &self.measurements
    }

    /// An event whose digest is that of its own data.
    fn measured_data(&mut self, pcr: u32, event_type: u32, data: &[u8]) {
        self.measured(pcr, event_type, data, data);
    }

    /// An event whose digest is that of something else, for instance of the program it names.
    /// TCG_PCR_EVENT2, clause 10.2.2.
    fn measured(&mut self, pcr: u32, event_type: u32, content: &[u8], data: &[u8]) {
        self.bytes.extend(pcr.to_le_bytes());
        self.bytes.extend(event_type.to_le_bytes());
        self.bytes.extend(count(&self.banks));
        for bank in &self.banks {
            let digest = bank.hash(&[content]);
            self.measurements.push((pcr, digest));
            self.bytes.extend(bank.identifier().to_le_bytes());
            self.bytes.extend(digest.as_bytes());
        }
        self.bytes.extend(length(data).to_le_bytes());
        self.bytes.extend(data);
    }
}

/// The first event, TCG_PCR_EVENT with TCG_EfiSpecIDEvent, clause 10.4.5.1: it names the banks.
fn specification_event(banks: &[HashAlgorithm]) -> Vec<u8> {
    let mut data = b"Spec ID Event03\0".to_vec();
    data.extend(0u32.to_le_bytes()); // platform class: client
    data.extend([0, 2, 0]); // version 2.0, errata 0
    data.push(2); // uintnSize: 64 bit
    data.extend(count(banks));
    for bank in banks {
        data.extend(bank.identifier().to_le_bytes());
        let length = u16::try_from(bank.digest_length()).unwrap_or(u16::MAX);
        data.extend(length.to_le_bytes());
    }
    data.push(0); // vendor information

    let mut event = Vec::new();
    event.extend(0u32.to_le_bytes());
    event.extend(EV_NO_ACTION.to_le_bytes());
    event.extend([0; 20]);
    event.extend(length(&data).to_le_bytes());
    event.extend(data);
    event
}

/// UEFI_VARIABLE_DATA, clause 10.2.6, of the variable SecureBoot.
fn secure_boot_variable(value: u8) -> Vec<u8> {
    let name = utf16("SecureBoot");
    // EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c
    let mut data = vec![
        0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b,
        0x8c,
    ];
    data.extend(10u64.to_le_bytes()); // characters of the name
    data.extend(1u64.to_le_bytes()); // bytes of the value
    data.extend(name);
    data.push(value);
    data
}

/// UEFI_IMAGE_LOAD_EVENT, clause 10.2.3, with a device path of one file name.
fn image_load_event(file: &str) -> Vec<u8> {
    let mut name = utf16(file);
    name.extend([0, 0]);
    let node_length = u16::try_from(name.len() + 4).unwrap_or(u16::MAX);
    let mut path = vec![4, 4]; // media device path, file path (UEFI 2.10, clause 10.3.5.4)
    path.extend(node_length.to_le_bytes());
    path.extend(name);
    path.extend([0x7f, 0xff, 4, 0]); // end of the device path

    let mut data = Vec::new();
    data.extend(0x7e40_0000u64.to_le_bytes()); // location in memory
    data.extend(0x000e_7000u64.to_le_bytes()); // length in memory
    data.extend(0u64.to_le_bytes()); // link time address
    data.extend(u64::from(length(&path)).to_le_bytes());
    data.extend(path);
    data
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn count(banks: &[HashAlgorithm]) -> [u8; 4] {
    u32::try_from(banks.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

const EV_NO_ACTION: u32 = 0x0000_0003;
const EV_SEPARATOR: u32 = 0x0000_0004;
const EV_S_CRTM_VERSION: u32 = 0x0000_0008;
const EV_IPL: u32 = 0x0000_000d;
const EV_EFI_VARIABLE_DRIVER_CONFIG: u32 = 0x8000_0001;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_ACTION: u32 = 0x8000_0007;
const EV_EFI_PLATFORM_FIRMWARE_BLOB: u32 = 0x8000_0008;
