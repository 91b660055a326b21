//! What a domain says about what its VM is launched with.
//!
//! libvirt has filled in by then what the definition left to it: the machine's version, and the firmware
//! that `firmware='efi'` stands for. Disks and the firmware's variables change and are not named here.

use roxmltree::{Document, Node};

use crate::parts::Parts;

use super::domain::one;
use super::error::LibvirtError;

const KIB_PER_MIB: u64 = 1024;

/// The parts that a domain names.
pub(super) fn parts(document: &Document<'_>) -> Result<Parts, LibvirtError> {
    let root = document.root_element();
    let mut parts = Parts::default();
    if let Some(os) = one(root, "os")? {
        for (element, part) in [
            ("loader", "firmware"),
            ("kernel", "kernel"),
            ("initrd", "initramfs"),
        ] {
            if let Some(path) = text(one(os, element)?) {
                parts.file(part, path);
            }
        }
        if let Some(command_line) = text(one(os, "cmdline")?) {
            parts.text("command-line", command_line);
        }
        if let Some(machine) = one(os, "type")?.and_then(|kind| kind.attribute("machine")) {
            parts.setting("machine", machine);
        }
    }
    if let Some(cpus) = text(one(root, "vcpu")?) {
        parts.setting("cpus", cpus);
    }
    if let Some(memory) = one(root, "memory")?
        && memory.attribute("unit").is_none_or(|unit| unit == "KiB")
        && let Some(kibibytes) = text(Some(memory)).and_then(|text| text.parse::<u64>().ok())
    {
        parts.setting("memory-mib", &(kibibytes / KIB_PER_MIB).to_string());
    }
    if let Some(cpu) = one(root, "cpu")? {
        let model = text(one(cpu, "model")?).or(cpu.attribute("mode"));
        if let Some(model) = model {
            parts.setting("cpu-model", model);
        }
    }
    Ok(parts)
}

fn text<'a>(node: Option<Node<'a, '_>>) -> Option<&'a str> {
    let text = node?.text()?.trim();
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::domain::parse;
    use super::*;

    #[test]
    fn a_domain_is_told_part_by_part() -> Result<(), LibvirtError> {
        let document = parse(
            "<domain><memory unit='KiB'>2097152</memory><vcpu placement='static'>2</vcpu>\
             <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>\
             <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>\
             <nvram template='/t'>/var/v</nvram><kernel>/k</kernel><initrd>/i</initrd>\
             <cmdline>quiet &amp; more</cmdline></os>\
             <cpu mode='custom'><model fallback='forbid'>qemu64</model></cpu></domain>",
        )?;
        let mut expected = Parts::default();
        expected.file("firmware", "/usr/share/OVMF/OVMF_CODE.fd");
        expected.file("kernel", "/k");
        expected.file("initramfs", "/i");
        expected.text("command-line", "quiet & more");
        expected.setting("machine", "pc-q35-7.2");
        expected.setting("cpus", "2");
        expected.setting("memory-mib", "2048");
        expected.setting("cpu-model", "qemu64");
        assert_eq!(parts(&document)?, expected);
        assert_eq!(parts(&parse("<domain/>")?)?, Parts::default());
        Ok(())
    }
}
