//! The command line of `swtpm_setup`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use swtpm_state::{
    Key, KeyForm, KeyFormat, KeyOptions, KeySize, KeySource, Location, PassphraseKdf,
};

use vrot_handover::message::Lock;

use super::configuration::Configuration;
use super::keys::RSA_SIZES;
use crate::{anchored, keys};

/// Makes the state of a TPM 2.0 for a VM, with endorsement keys and certificates, in place of swtpm_setup.
#[derive(Debug, Parser)]
#[command(
    name = "swtpm_setup",
    infer_long_args = true,
    args_override_self = true
)]
pub(super) struct Options {
    /// Where the state is: FOLDER, dir://FOLDER or file://FILE.
    #[arg(long, alias = "tpmstate", value_name = "PLACE")]
    tpm_state: Option<Location>,
    /// A TPM 2.0; there is no other.
    #[arg(long)]
    tpm2: bool,
    /// Makes endorsement keys, one of RSA and one over P-384.
    #[arg(long)]
    createek: bool,
    /// Has endorsement keys certified.
    #[arg(long)]
    pub(super) create_ek_cert: bool,
    /// Has the platform certified.
    #[arg(long)]
    pub(super) create_platform_cert: bool,
    /// Makes a storage key.
    #[arg(long)]
    pub(super) create_spk: bool,
    /// The storage key is over P-384.
    #[arg(long)]
    pub(super) ecc: bool,
    /// Endorsement keys may sign: no standard knows such keys.
    #[arg(long)]
    pub(super) allow_signing: bool,
    /// Endorsement keys may decrypt, as they may unless --allow-signing is given.
    #[arg(long)]
    pub(super) decryption: bool,
    /// Certificates cannot be written over.
    #[arg(long)]
    pub(super) lock_nvram: bool,
    /// Replaces a state that is there.
    #[arg(long)]
    overwrite: bool,
    /// Keeps a state that is there, and makes nothing.
    #[arg(long)]
    not_overwrite: bool,
    /// Changes the PCR banks of a state that is there.
    #[arg(long)]
    pub(super) reconfigure: bool,
    /// Which PCR banks are active, with commas between; - for all. By default those of the
    /// configuration, or sha256.
    #[arg(long, value_name = "BANKS", allow_hyphen_values = true)]
    pcr_banks: Option<String>,
    /// Bits of the RSA key: 2048, 3072, 4096 or max.
    #[arg(long, value_name = "BITS")]
    rsa_keysize: Option<String>,
    /// The name that certificates give the VM.
    #[arg(long, value_name = "ID")]
    pub(super) vmid: Option<String>,
    /// The configuration, by default swtpm_setup.conf in the user's folder or in /etc.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where to say what is done, by default to standard output.
    #[arg(long, value_name = "FILE")]
    pub(super) logfile: Option<PathBuf>,
    /// A key for the state, in hexadecimal digits.
    #[arg(long, value_name = "FILE")]
    keyfile: Option<PathBuf>,
    /// The same from a descriptor.
    #[arg(long, value_name = "FD")]
    keyfile_fd: Option<i32>,
    /// A passphrase for the state.
    #[arg(long, value_name = "FILE")]
    pwdfile: Option<PathBuf>,
    /// The same from a descriptor.
    #[arg(long, value_name = "FD")]
    pwdfile_fd: Option<i32>,
    /// aes-128-cbc, which is the default, or aes-256-cbc.
    #[arg(long, value_name = "CIPHER")]
    cipher: Option<KeySize>,
    /// Leaves copies of the endorsement keys' certificates in this folder.
    #[arg(long, value_name = "FOLDER")]
    pub(super) write_ek_cert_files: Option<PathBuf>,
    /// Becomes this user.
    #[arg(long, value_name = "USER")]
    pub(super) runas: Option<String>,
    /// Writes a configuration of your own: overwrite, skip-if-exist, root, with commas between.
    #[arg(long, value_name = "HOW", num_args = 0..=1)]
    pub(super) create_config_files: Option<Option<String>>,
    /// What this program can, in JSON.
    #[arg(long)]
    pub(super) print_capabilities: bool,
    /// Which profiles there are, in JSON.
    #[arg(long)]
    pub(super) print_profiles: bool,
    /// Says which version this is.
    #[arg(long)]
    pub(super) version: bool,
    /// Says nothing more.
    #[arg(long)]
    display: bool,
    /// Not needed: the TPM runs in this process.
    #[arg(long, value_name = "PROGRAM")]
    tpm: Option<String>,
    /// Not needed.
    #[arg(long = "swtpm_ioctl", value_name = "PROGRAM")]
    swtpm_ioctl: Option<String>,
    /// Not needed.
    #[arg(long, value_name = "FILE")]
    tcsd_system_ps_file: Option<String>,
    /// Needs a libtpms with profiles.
    #[arg(long, value_name = "JSON")]
    profile: Option<String>,
    /// Needs a libtpms with profiles.
    #[arg(long, value_name = "NAME")]
    profile_name: Option<String>,
    /// Needs a libtpms with profiles.
    #[arg(long, value_name = "FILE")]
    profile_file: Option<String>,
    /// Needs a libtpms with profiles.
    #[arg(long, value_name = "FD")]
    profile_file_fd: Option<String>,
    /// Needs a libtpms with profiles.
    #[arg(long, value_name = "HOW")]
    profile_remove_disabled: Option<String>,
    /// Of a TPM 1.2, which is not offered.
    #[arg(long)]
    take_ownership: bool,
    /// Of a TPM 1.2, which is not offered.
    #[arg(long, value_name = "PASSWORD")]
    ownerpass: Option<String>,
    /// Of a TPM 1.2, which is not offered.
    #[arg(long)]
    owner_well_known: bool,
    /// Of a TPM 1.2, which is not offered.
    #[arg(long, value_name = "PASSWORD")]
    srkpass: Option<String>,
    /// Of a TPM 1.2, which is not offered.
    #[arg(long)]
    srk_well_known: bool,
}

/// What becomes of a state that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Refuse,
    Keep,
    Replace,
    Change,
}

impl Options {
    /// Refuses what is understood and not offered.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.tpm2,
            "a TPM 1.2 is not offered: add --tpm2 for a TPM 2.0"
        );
        let is_of_tpm12 = self.take_ownership
            || self.owner_well_known
            || self.srk_well_known
            || self.ownerpass.is_some()
            || self.srkpass.is_some();
        ensure!(
            !is_of_tpm12,
            "--take-ownership and passwords of owner and storage key are for a TPM 1.2: a TPM 2.0 is owned \
             by its guest"
        );
        let profiles = [
            &self.profile,
            &self.profile_name,
            &self.profile_file,
            &self.profile_file_fd,
            &self.profile_remove_disabled,
        ];
        ensure!(
            profiles.into_iter().all(Option::is_none),
            "profiles are not offered: the installed libtpms has none"
        );
        Ok(())
    }

    /// Where the state is.
    pub(super) fn state(&self) -> Result<Location> {
        let location = self.tpm_state.clone();
        location.context("say where the state is: --tpm-state FOLDER")
    }

    /// What becomes of a state that is there.
    pub(super) fn existing(&self) -> Result<Existing> {
        Ok(
            match (self.overwrite, self.not_overwrite, self.reconfigure) {
                (false, false, false) => Existing::Refuse,
                (true, false, false) => Existing::Replace,
                // As swtpm_setup has it, that counts more.
                (_, true, false) => Existing::Keep,
                (false, _, true) => Existing::Change,
                (true, _, true) => bail!("give one of --overwrite and --reconfigure"),
            },
        )
    }

    pub(super) fn makes_endorsement_keys(&self) -> bool {
        self.createek || self.create_ek_cert || self.create_platform_cert
    }

    /// The key of the state.
    pub(super) fn key(&self) -> Result<Option<Key>> {
        let options = self.key_options()?;
        options.as_ref().map(keys::read).transpose()
    }

    /// What the key is where the state is elsewhere.
    pub(super) fn lock(&self) -> Result<Option<Lock>> {
        let options = self.key_options()?;
        options.as_ref().map(anchored::lock).transpose()
    }

    fn key_options(&self) -> Result<Option<KeyOptions>> {
        let passphrase = KeyForm::Passphrase(PassphraseKdf::default());
        let hex = KeyForm::Key(KeyFormat::default());
        let file = |path: &PathBuf| KeySource::File(path.clone());
        let given = [
            self.keyfile.as_ref().map(|path| (file(path), hex)),
            self.keyfile_fd.map(|fd| (KeySource::Descriptor(fd), hex)),
            self.pwdfile.as_ref().map(|path| (file(path), passphrase)),
            self.pwdfile_fd
                .map(|fd| (KeySource::Descriptor(fd), passphrase)),
        ];
        let mut given = given.into_iter().flatten();
        let Some((source, form)) = given.next() else {
            return Ok(None);
        };
        ensure!(
            given.next().is_none(),
            "give one of --keyfile, --keyfile-fd, --pwdfile and --pwdfile-fd"
        );
        Ok(Some(KeyOptions {
            source,
            form,
            size: self.cipher.unwrap_or_default(),
            remove: false,
        }))
    }

    /// The banks that the command line says; nothing for all.
    pub(super) fn banks_said(&self) -> Option<&str> {
        let said = self.pcr_banks.as_deref();
        said.filter(|banks| !banks.is_empty() && *banks != "-")
    }

    /// The banks that are to be active; nothing for all.
    pub(super) fn banks(&self, configuration: &Configuration) -> Option<String> {
        let wanted = self.pcr_banks.clone().filter(|banks| !banks.is_empty());
        let wanted = wanted.or_else(|| configuration.get("active_pcr_banks"));
        let wanted = wanted.unwrap_or_else(|| "sha256".to_owned());
        (wanted != "-").then_some(wanted)
    }

    /// How long RSA keys are.
    pub(super) fn rsa_key_size(&self, configuration: &Configuration) -> Result<u64> {
        let given = self.rsa_keysize.clone();
        let given = given.or_else(|| configuration.get("rsa_keysize"));
        match given.as_deref() {
            None => Ok(2048),
            // What every libtpms has.
            Some("max") => Ok(3072),
            Some(text) => {
                let bits = text.parse().ok().filter(|bits| RSA_SIZES.contains(bits));
                bits.with_context(|| {
                    format!("--rsa-keysize {text:?} is none: give 2048, 3072 or max")
                })
            }
        }
    }
}

/// The command line, for manual pages and for the completion of shells.
pub fn command_line() -> clap::Command {
    <Options as clap::CommandFactory>::command()
}
