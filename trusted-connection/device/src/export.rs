//! Evidence in the forms that others' tools read, so that nobody needs to believe ours.
//!
//! Nothing is verified here.

use std::path::{Path, PathBuf};
use std::{fs, io};

use attestation::merkle::PathError;
use attestation::{BootRecord, Evidence, host_qualifying_data, vm_qualifying_data};
use cert_chain::public_area::PublicAreaError;
use cert_chain::{Digest32, PublicArea, pem};

/// The qualifying data of the two quotes, in hexadecimal, as the evidence's other parts give
/// them: what `tpm2_checkquote -q` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QualifyingData {
    /// Of the VM's quote.
    pub vm: String,
    /// Of the host's quote.
    pub host: String,
}

/// Why evidence could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A key in the evidence cannot be read.
    #[error("the {which} in the evidence is no public area")]
    Key {
        /// Which key.
        which: &'static str,
        /// Why.
        #[source]
        source: PublicAreaError,
    },
    /// The VM layer names a path that leads nowhere.
    #[error("the evidence has an impossible path from its challenge to the VM's quote")]
    Path(#[source] PathError),
    /// A file cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the parts of `evidence` as files into `folder`, and returns their paths.
///
/// `chain.pem` holds the certificates, leaf first; `vik.pem` and `host-ik.pem` the public keys;
/// `*-quote.attest` and `*-quote.sig` the marshalled `TPMS_ATTEST` and `TPMT_SIGNATURE`;
/// `*-eventlog.bin` the event logs, that of the VM if the evidence has one; `issuer-crl.pem` the revocation lists, if it carries any.
pub fn export(evidence: &Evidence, folder: &Path) -> Result<Vec<PathBuf>, ExportError> {
    let chain: String = evidence
        .vm
        .chain
        .iter()
        .map(|der| pem::encode_certificate(der))
        .collect();
    let mut files = vec![
        ("chain.pem", chain.into_bytes()),
        ("vik.pem", public_key("vIK", &evidence.vm.vik_public)?),
        ("vm-quote.attest", evidence.vm.attest.to_vec()),
        ("vm-quote.sig", evidence.vm.signature.to_vec()),
        (
            "host-ik.pem",
            public_key("host IK", &evidence.host.host_ik_public)?,
        ),
        ("host-quote.attest", evidence.host.attest.to_vec()),
        ("host-quote.sig", evidence.host.signature.to_vec()),
        ("host-eventlog.bin", evidence.host.event_log.to_vec()),
    ];
    if let Some(log) = evidence.vm.boot.log() {
        files.push(("vm-eventlog.bin", log.to_vec()));
    }
    let crls: String = evidence.crls.iter().map(pem::encode_crl).collect();
    if !crls.is_empty() {
        files.push(("issuer-crl.pem", crls.into_bytes()));
    }
    let parts = files.into_iter();
    write_parts(parts.map(|(name, bytes)| (name.to_owned(), bytes)), folder)
}

/// A file's name, and what is in it.
pub(crate) type Part = (String, Vec<u8>);

/// Writes files into `folder`, and returns their paths.
pub(crate) fn write_parts(
    parts: impl IntoIterator<Item = Part>,
    folder: &Path,
) -> Result<Vec<PathBuf>, ExportError> {
    fs::create_dir_all(folder).map_err(|source| ExportError::Write {
        path: folder.to_owned(),
        source,
    })?;
    parts
        .into_iter()
        .map(|(name, bytes)| {
            let path = folder.join(name);
            match fs::write(&path, bytes) {
                Ok(()) => Ok(path),
                Err(source) => Err(ExportError::Write { path, source }),
            }
        })
        .collect()
}

/// Computes the qualifying data of both quotes.
pub fn qualifying_data(evidence: &Evidence) -> Result<QualifyingData, ExportError> {
    let (vm, host) = (&evidence.vm, &evidence.host);
    let ik = read_key("host IK", &host.host_ik_public)?.name();
    Ok(QualifyingData {
        vm: vm_qualifying_data(
            &vm.request_root().map_err(ExportError::Path)?,
            vm.tree_size,
            &as_shown(&vm.boot),
        )
        .to_string(),
        host: host_qualifying_data(
            &host.root,
            host.tree_size,
            &ik,
            &Digest32::of(&host.event_log),
        )
        .to_string(),
    })
}

fn public_key(which: &'static str, tpmt_public: &[u8]) -> Result<Vec<u8>, ExportError> {
    let key = read_key(which, tpmt_public)?.subject_public_key_info();
    Ok(pem::encode_public_key(&key).into_bytes())
}

fn read_key(which: &'static str, tpmt_public: &[u8]) -> Result<PublicArea, ExportError> {
    PublicArea::parse(tpmt_public).map_err(|source| ExportError::Key { which, source })
}

/// The record with the digest that its log has, whatever it says.
fn as_shown(boot: &BootRecord) -> BootRecord {
    match boot.log() {
        Some(log) => BootRecord::of_log(log.to_vec()),
        None => BootRecord::PcrsAlone,
    }
}
