//! `vrot-service evidence`: fresh evidence for one nonce, for a program in the VM that passes it on.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use attestation::{Binding, Evidence, Nonce};

use crate::attester::quoting::{EvidenceFiles, EvidenceRequest, Quoter};
use crate::attester::{AttesterError, Host, VmTpm};
use durable_file::{Existing, OutputFile};

/// Has a TPM quote and this host answer for one nonce. It uses the TPM beside a service that runs.
pub fn make(
    quoter: &mut Quoter<impl VmTpm>,
    host: &dyn Host,
    nonce: Nonce,
    binding: Binding,
) -> Result<Evidence, AttesterError> {
    let request = EvidenceRequest {
        nonce,
        binding,
        tls_key: None,
    };
    let quoted = quoter.quote(vec![request])?;
    let layer = host.layer(&quoted.request)?;
    let mut evidence = quoted.complete(&layer)?;
    evidence.next().ok_or(AttesterError::NoRequest)
}

/// Makes evidence, and writes it to a file or to standard output.
pub fn write(
    tpm: impl VmTpm,
    host: &dyn Host,
    files: EvidenceFiles,
    nonce: Nonce,
    binding: Binding,
    output: Option<&Path>,
) -> Result<()> {
    if output.is_none() && io::stdout().is_terminal() {
        bail!("evidence is binary: give --output FILE, or have a program read standard output");
    }
    let evidence = make(&mut Quoter::new(tpm, files), host, nonce, binding)?;
    write_bytes(&evidence.to_cbor(), output)
}

/// Writes public bytes to a file, in whose place they come, or to standard output.
pub(crate) fn write_bytes(bytes: &[u8], output: Option<&Path>) -> Result<()> {
    let Some(path) = output else {
        let mut out = io::stdout().lock();
        return out
            .write_all(bytes)
            .and_then(|()| out.flush())
            .context("standard output cannot be written");
    };
    Ok(OutputFile::create(path, 0o666, Existing::Replace)?.finish_with(bytes)?)
}
