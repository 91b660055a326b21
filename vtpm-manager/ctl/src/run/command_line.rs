//! QEMU's command line, as far as it says which VM this is and whether it fits.
//!
//! It comes from whoever launches the VM, who could as well launch another one: what is read from it
//! protects from mistakes, not from the launcher.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use cert_chain::VmId;

use super::measured;
use super::options::{entries, options};
use crate::parts::Parts;

/// Why a command line cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandLineError {
    /// It has a TPM already.
    #[error(
        "QEMU's arguments have a TPM already, `{option} {value}`: leave it out, `vtpmctl run` adds \
         the vRoT"
    )]
    HasTpm {
        /// Which option.
        option: String,
        /// Its value.
        value: String,
    },
    /// It would go into the background.
    #[error(
        "`-daemonize` puts QEMU into the background, and its vRoT would be stopped at once: leave it \
         out, or use `vtpmctl start`, `vtpmctl qemu-args` and `vtpmctl stop`"
    )]
    Daemonize,
    /// An option without its value.
    #[error("QEMU's argument `{option}` lacks its value")]
    NoValue {
        /// The option.
        option: String,
    },
    /// `-uuid` is none.
    #[error("QEMU's argument `-uuid {value}` is no UUID of a VM")]
    Uuid {
        /// What it is.
        value: String,
        /// Why it is none.
        #[source]
        source: cert_chain::identifiers::IdentifierError,
    },
    /// Two VMs are named.
    #[error("`--vm {said}` and QEMU's `-uuid {found}` are two VMs: leave `--vm` out")]
    OtherVm {
        /// By `--vm`.
        said: VmId,
        /// By `-uuid`.
        found: VmId,
    },
    /// None is named.
    #[error(
        "which VM is this? Say `--vm UUID`, or QEMU's `-uuid UUID`; for a VM that is run once only, \
         `--delete`"
    )]
    WhichVm,
    /// Nobody is named whose it is.
    #[error(
        "{} has no vRoT yet: say with `--tenant` whose it is to be",
        describe(vm)
    )]
    NoTenant {
        /// The VM, if it was named.
        vm: Option<VmId>,
    },
    /// What is to be thrown away was there before.
    #[error(
        "`--delete` is for a VM that is run once, and VM {vm} has a vRoT already: leave `--delete` \
         out, or delete that one first: `vtpmctl delete {vm}`"
    )]
    DeleteKnown {
        /// The VM.
        vm: VmId,
    },
}

/// A command line that can be run with a vRoT.
#[derive(Debug)]
pub(super) struct CommandLine<'a> {
    words: &'a [OsString],
    uuid: Option<VmId>,
}

impl<'a> CommandLine<'a> {
    /// Reads one, the program first.
    pub(super) fn parse(words: &'a [OsString]) -> Result<Self, CommandLineError> {
        let mut uuid = None;
        for (option, value) in options(words.get(1..).unwrap_or_default()) {
            match option.as_str() {
                "daemonize" => return Err(CommandLineError::Daemonize),
                "tpmdev" => return Err(has_tpm(&option, &needed(&option, value)?)),
                "device" => {
                    let value = needed(&option, value)?;
                    if is_tpm(&value) {
                        return Err(has_tpm(&option, &value));
                    }
                }
                "uuid" => {
                    let value = needed(&option, value)?;
                    let vm = value.parse();
                    uuid = Some(vm.map_err(|source| CommandLineError::Uuid { value, source })?);
                }
                _ => {}
            }
        }
        Ok(Self { words, uuid })
    }

    /// The VM of `-uuid`.
    pub(super) fn uuid(&self) -> Option<VmId> {
        self.uuid
    }

    /// What the VM is launched with.
    pub(super) fn parts(&self) -> Parts {
        measured::parts(self.words.get(1..).unwrap_or_default())
    }

    /// The command, to which the TPM's arguments are added.
    pub(super) fn command(&self) -> Command {
        let mut words = self.words.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new(""), OsString::as_os_str));
        command.args(words);
        command
    }
}

fn needed(option: &str, value: Option<&OsString>) -> Result<String, CommandLineError> {
    let value = value.ok_or_else(|| CommandLineError::NoValue {
        option: format!("-{option}"),
    })?;
    Ok(value.to_string_lossy().into_owned())
}

/// `tpm-crb,tpmdev=…`, `driver=tpm-crb,…`, or JSON (qemu(1), `-device`).
fn is_tpm(device: &str) -> bool {
    let driver = match serde_json::from_str::<serde_json::Value>(device) {
        Ok(json) => json
            .get("driver")
            .and_then(|driver| Some(driver.as_str()?.to_owned())),
        Err(_) => {
            let mut all = entries(device, "driver").into_iter();
            all.find(|(key, _)| key == "driver")
                .map(|(_, driver)| driver)
        }
    };
    driver.is_some_and(|driver| driver.starts_with("tpm-"))
}

fn has_tpm(option: &str, value: &str) -> CommandLineError {
    CommandLineError::HasTpm {
        option: format!("-{option}"),
        value: value.to_owned(),
    }
}

fn describe(vm: &Option<VmId>) -> String {
    vm.map_or_else(|| "this VM".to_owned(), |vm| format!("VM {vm}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "1f0e9d8c-7b6a-4958-8776-655443322110";

    fn words(line: &[&str]) -> Vec<OsString> {
        std::iter::once("qemu")
            .chain(line.iter().copied())
            .map(OsString::from)
            .collect()
    }

    fn refusal(line: &[&str]) -> String {
        let words = words(line);
        CommandLine::parse(&words)
            .map(|_| ())
            .map_err(|error| error.to_string())
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn the_vm_is_that_of_uuid() {
        for line in [
            &["-nographic", "-uuid", VM, "disk.img"][..],
            &["--uuid", VM],
            &["-S", "-name", "-uuid", "-uuid", VM],
        ] {
            let words = words(line);
            let found = CommandLine::parse(&words)
                .ok()
                .and_then(|parsed| parsed.uuid());
            assert_eq!(
                found.map(|vm| vm.to_string()).as_deref(),
                Some(VM),
                "{line:?}"
            );
        }
    }

    #[test]
    fn a_second_tpm_and_the_background_are_refused() {
        for line in [
            &["-tpmdev", "emulator,id=tpm0,chardev=c"][..],
            &["-device", "tpm-crb,tpmdev=tpm0"],
            &["--device", "driver=tpm-tis,tpmdev=tpm0"],
            &["-device", r#"{"driver":"tpm-crb","tpmdev":"tpm0"}"#],
        ] {
            assert!(refusal(line).contains("have a TPM already"), "{line:?}");
        }
        assert!(refusal(&["-daemonize"]).contains("background"));
        assert!(refusal(&["-uuid"]).contains("lacks its value"));
        assert!(refusal(&["-uuid", "x"]).contains("`-uuid x`"));
    }

    #[test]
    fn what_only_looks_like_an_option_is_a_value() {
        assert_eq!(
            refusal(&["-append", "-tpmdev", "-device", "virtio-net-pci"]),
            ""
        );
        assert_eq!(refusal(&["-kernel", "-daemonize"]), "");
    }
}
