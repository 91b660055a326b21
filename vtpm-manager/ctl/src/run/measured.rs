//! What a QEMU command line says about what the VM is launched with.
//!
//! What QEMU brings along itself (its own firmware, its option ROMs) belongs to the host and is not named
//! here; nor are disks, which change.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::options::{entries, options};
use crate::parts::Parts;

/// Where QEMU looks for firmware that is named without a folder.
const FIRMWARE: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/OVMF"];

/// The parts that the arguments of a QEMU name.
pub(super) fn parts(arguments: &[OsString]) -> Parts {
    let mut parts = Parts::default();
    // What holds without these options, for every machine.
    parts.setting("cpus", "1");
    for (option, value) in options(arguments) {
        let Some(value) = value else {
            continue;
        };
        let text = value.to_string_lossy();
        match option.as_str() {
            "kernel" => parts.file("kernel", value),
            "initrd" => parts.file("initramfs", value),
            "append" => parts.text("command-line", &text),
            "bios" => parts.file("firmware", firmware(value)),
            "cpu" => parts.setting("cpu-model", &text),
            "drive" => drive(&mut parts, &text),
            "machine" | "M" => machine(&mut parts, &text),
            "smp" => smp(&mut parts, &text),
            "m" => memory(&mut parts, &text),
            _ => {}
        }
    }
    parts
}

fn firmware(name: &OsStr) -> PathBuf {
    let path = Path::new(name);
    if path.exists() || path.components().count() > 1 {
        return path.to_owned();
    }
    let found = FIRMWARE.iter().map(|folder| Path::new(folder).join(path));
    found
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| path.to_owned())
}

/// The first flash chip has the firmware; another one has its variables, which change.
fn drive(parts: &mut Parts, value: &str) {
    let entries = entries(value, "file");
    let of = |key: &str| {
        let mut all = entries.iter().rev();
        all.find(|(found, _)| found == key)
            .map(|(_, value)| value.as_str())
    };
    let is_first = of("unit").or(of("index")).is_none_or(|unit| unit == "0");
    let is_fixed = of("readonly").is_some_and(|is| is == "on");
    if let (Some("pflash"), Some(file)) = (of("if"), of("file"))
        && is_first
        && is_fixed
    {
        parts.file("firmware", file);
    }
}

/// The machine's type, and all that is said about it.
fn machine(parts: &mut Parts, value: &str) {
    let entries = entries(value, "type");
    if let Some((_, name)) = entries.iter().find(|(key, _)| key == "type") {
        parts.setting("machine", name);
    }
    if entries.len() > 1 {
        parts.text("text:machine", value);
    }
}

fn smp(parts: &mut Parts, value: &str) {
    let entries = entries(value, "cpus");
    match entries.iter().find(|(key, _)| key == "cpus") {
        Some((_, count)) => parts.setting("cpus", count),
        None => parts.remove("cpus"),
    }
    if entries.len() > 1 {
        parts.text("text:smp", value);
    }
}

fn memory(parts: &mut Parts, value: &str) {
    let entries = entries(value, "size");
    if let Some((_, size)) = entries.iter().find(|(key, _)| key == "size")
        && let Some(mebibytes) = mebibytes(size)
    {
        parts.setting("memory-mib", &mebibytes.to_string());
    }
    if entries.len() > 1 {
        parts.text("text:memory", value);
    }
}

/// A size with a suffix (qemu(1), `-m`): mebibytes if there is none.
fn mebibytes(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let suffix = size.strip_prefix(digits)?.to_ascii_uppercase();
    match suffix.trim_end_matches("IB").trim_end_matches('B') {
        "" | "M" => Some(number),
        "G" => number.checked_mul(1024),
        "T" => number.checked_mul(1024 * 1024),
        "K" if number.is_multiple_of(1024) => Some(number / 1024),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Source;

    fn told(line: &[&str]) -> Vec<String> {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        let mut told: Vec<String> = parts(&words)
            .iter()
            .map(|part| match &part.source {
                Source::File(path) => format!("{}=file {}", part.name, path.display()),
                Source::Value(value) => format!("{}={value}", part.name),
                Source::Text(text) => format!("{}=text {text}", part.name),
            })
            .collect();
        told.sort();
        told
    }

    #[test]
    fn a_direct_boot_is_told_part_by_part() {
        let line = [
            "-machine",
            "q35,smm=on",
            "-cpu",
            "host",
            "-smp",
            "4",
            "-m",
            "2G",
            "-kernel",
            "/k",
            "-initrd",
            "/i",
            "-append",
            "-x quiet",
            "-drive",
            "if=pflash,format=raw,readonly=on,file=/usr/c,,d.fd",
            "-drive",
            "if=pflash,format=raw,unit=1,file=/var/vars.fd",
            "-drive",
            "file=/disk.img",
        ];
        assert_eq!(
            told(&line),
            [
                "command-line=text -x quiet",
                "cpu-model=host",
                "cpus=4",
                "firmware=file /usr/c,d.fd",
                "initramfs=file /i",
                "kernel=file /k",
                "machine=q35",
                "memory-mib=2048",
                "text:machine=text q35,smm=on",
            ]
        );
    }

    #[test]
    fn what_is_not_said_plainly_is_told_as_a_text_or_not_at_all() {
        assert_eq!(told(&[]), ["cpus=1"]);
        assert_eq!(
            told(&["-smp", "sockets=2,cores=2"]),
            ["text:smp=text sockets=2,cores=2"]
        );
        assert_eq!(
            told(&["-m", "size=1G,slots=2"]),
            [
                "cpus=1",
                "memory-mib=1024",
                "text:memory=text size=1G,slots=2"
            ]
        );
        let long = "x".repeat(65);
        assert_eq!(
            told(&["-cpu", &long]),
            ["cpus=1".to_owned(), format!("text:cpu-model=text {long}")]
        );
        // The last one counts.
        assert_eq!(
            told(&["-kernel", "/a", "-kernel", "/b"]),
            ["cpus=1", "kernel=file /b"]
        );
    }
}
