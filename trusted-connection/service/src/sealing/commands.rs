//! `vrot-service seal`, `unseal` and `show-sealed`: files and standard streams.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result};
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::PcrSelection;
use cert_chain::operator::{Approval, PolicyKeyPublic, SealedData};
use printable::printable_json;
use program_output::console::print;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde_json::{Value, json};

use super::{ContentKey, Header, SealError, SealedTo, SealingTpm, stream};
use crate::command_line::{SealOptions, ShowSealedOptions, UnsealOptions};
use durable_file::{Existing, OutputFile};

/// A key, or an approval, is much shorter.
pub(super) const MAX_FILE: usize = 64 * 1024;
/// Nobody but the owner.
const MODE: u32 = 0o600;

/// Seals a file or standard input.
pub fn seal(options: &SealOptions) -> Result<()> {
    keep_secrets_out_of_dumps();
    let mut output = OutputFile::create(&options.to, MODE, Existing::replaced_if(options.replace))?;
    let mut tpm = SealingTpm::open(&options.tpm)?;
    let sealed_to = match &options.policy_key {
        Some(path) => SealedTo::Approved(read_policy_key(path)?),
        None if options.boot => {
            let pcrs = PcrSelection::new(options.pcrs.pcrs.iter().copied())
                .context("--pcrs cannot be used")?;
            SealedTo::Boot(tpm.boot(pcrs, options.pcrs.pcr_bank)?)
        }
        None => SealedTo::Vrot,
    };
    let key = ContentKey::generate()?;
    let object = tpm.seal(&key, &sealed_to)?;
    drop(tpm);
    let header = Header::new(sealed_to, object.parent, object.public, object.private);
    output
        .write_all(&header.to_bytes())
        .map_err(SealError::Write)?;
    let digest = header.digest();
    match &options.from {
        Some(path) => {
            let mut input = open(path)?;
            stream::seal(&key, &digest, &mut input, &mut output)
        }
        None => stream::seal(&key, &digest, &mut io::stdin().lock(), &mut output),
    }?;
    Ok(output.finish()?)
}

/// Opens sealed data.
pub fn unseal(options: &UnsealOptions) -> Result<()> {
    keep_secrets_out_of_dumps();
    // Before the TPM is asked: what cannot be written needs no secret.
    let output = (options.to.as_deref())
        .map(|path| OutputFile::create(path, MODE, Existing::replaced_if(options.replace)))
        .transpose()?;
    let mut input = open(&options.from)?;
    let header = read_header(&options.from, &mut input)?;
    let approvals = (options.approval.iter())
        .map(|path| read_approval(path))
        .collect::<Result<Vec<_>>>()?;
    let key = SealingTpm::open(&options.tpm)?.unseal(&header, &approvals)?;
    let digest = header.digest();
    match output {
        Some(mut output) => {
            stream::open(&key, &digest, &mut input, &mut output)?;
            Ok(output.finish()?)
        }
        None => {
            // What is given out cannot be taken back, so all is looked through before.
            let begin = input.stream_position().context(NOT_TWICE)?;
            stream::open(&key, &digest, &mut input, &mut io::sink())?;
            input.seek(io::SeekFrom::Start(begin)).context(NOT_TWICE)?;
            let mut out = io::stdout().lock();
            stream::open(&key, &digest, &mut input, &mut out)?;
            Ok(out.flush().map_err(SealError::Write)?)
        }
    }
}

const NOT_TWICE: &str =
    "the sealed data are no regular file, which could be read twice: give --to FILE";

/// Says what a file is sealed to.
pub fn show(options: &ShowSealedOptions) -> Result<()> {
    let header = read_header(&options.file, &mut open(&options.file)?)?;
    if let Some(folder) = &options.export {
        fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
        for (name, part) in [
            ("object.pub", &header.public),
            ("object.priv", &header.private),
        ] {
            // TPM2B_PUBLIC and TPM2B_PRIVATE.
            let length = u16::try_from(part.len())?.to_be_bytes();
            let path = folder.join(name);
            fs::write(&path, [length.as_slice(), part].concat())
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
    }
    let text = match options.json {
        true => printable_json(&format!("{:#}\n", to_json(&header))),
        false => to_text(&header),
    };
    print(&text).context("standard output cannot be written")
}

fn to_json(header: &Header) -> Value {
    let mut told = json!({
        "storage_key": header.parent,
        "data_offset": header.to_bytes().len(),
    });
    let to = match &header.sealed_to {
        SealedTo::Vrot => json!({ "sealed_to": "vrot" }),
        SealedTo::Boot(values) => json!({
            "sealed_to": "boot",
            "bank": values.bank(),
            "pcrs": values.to_hex(),
        }),
        SealedTo::Approved(key) => json!({
            "sealed_to": "approved-boots",
            "policy_key": key.name(),
        }),
    };
    if let (Some(told), Value::Object(to)) = (told.as_object_mut(), to) {
        told.extend(to);
    }
    told
}

fn to_text(header: &Header) -> String {
    let to = match &header.sealed_to {
        SealedTo::Vrot => String::new(),
        SealedTo::Boot(values) => {
            let lines = values.iter().map(|(pcr, value)| {
                let bank = values.bank();
                format!("  PCR {pcr} ({bank})  {value}\n")
            });
            format!("and to a boot with\n{}", lines.collect::<String>())
        }
        SealedTo::Approved(key) => format!("and to boots that the key {} approves\n", key.name()),
    };
    format!("sealed under the storage key {}\n{to}", header.parent)
}

/// What this process works on is not left behind in a file when it fails. What the kernel does not let it
/// say is no reason to do without the data.
fn keep_secrets_out_of_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let set = setrlimit(Resource::Core, none)
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    if let Err(error) = set {
        tracing::warn!(%error, "a core dump of this process would hold the data");
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn read_header(path: &Path, file: &mut impl Read) -> Result<Header> {
    Header::read(file).with_context(|| format!("{} cannot be used", path.display()))
}

fn read_policy_key(path: &Path) -> Result<PolicyKeyPublic> {
    let pem = read_bounded_text(path, MAX_FILE)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    PolicyKeyPublic::from_pem(&pem).with_context(|| format!("{} cannot be used", path.display()))
}

fn read_approval(path: &Path) -> Result<Approval<SealedData>> {
    let json = read_bounded(path, MAX_FILE)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    Approval::from_json(&json).with_context(|| format!("{} cannot be used", path.display()))
}
