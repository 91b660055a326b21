//! Host evidence, as a guest asks for it.

use std::fs;

use anyhow::{Result, ensure};
use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use attestation::evidence_set::VerifiedSet;
use attestation::{EvidenceSet, HostLayer, HostLeaf};
use cert_chain::{Digest32, HashAlgorithm, TrustAnchors};
use rustls_pki_types::UnixTime;
use tpm_wire::ResponseCode;
use tpm_wire::host_commands::{HOST_EVIDENCE_READ, HOST_EVIDENCE_REQUEST};

use super::Host;
use super::vmm::{Commands, command};

/// A verifier's.
pub(crate) const NONCE: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";

/// `TPM_RC_RETRY`
const RETRY: u32 = ResponseCode::RETRY.raw();

/// Response code and evidence, whichever comes first.
pub(crate) fn evidence(vmm: &mut impl Commands, digest: &Digest32) -> Result<(u32, Vec<u8>)> {
    let request = [&[0, 32], digest.as_bytes().as_slice()].concat();
    let ticket = vmm.succeed(&command(HOST_EVIDENCE_REQUEST, &request))?;
    let mut layer = Vec::new();
    loop {
        let offset = u32::try_from(layer.len())?;
        let parameters = [&ticket[..8], &offset.to_be_bytes()].concat();
        let (code, response) = vmm.execute(&command(HOST_EVIDENCE_READ, &parameters))?;
        match code {
            0 => {}
            RETRY => continue,
            code => return Ok((code, layer)),
        }
        let total = u32::from_be_bytes([response[0], response[1], response[2], response[3]]);
        layer.extend_from_slice(&response[6..]);
        if layer.len() >= usize::try_from(total)? {
            return Ok((0, layer));
        }
    }
}

/// What the host states about the vRoT of a guest that asks.
pub(crate) fn leaf(vmm: &mut impl Commands) -> Result<HostLeaf> {
    let (code, layer) = evidence(vmm, &Digest32::of(b"a quote of the VM"))?;
    ensure!(code == 0, "response code 0x{code:x}");
    Ok(minicbor::decode(&HostLayer::from_cbor(&layer)?.leaf)?)
}

/// Gives a host this event log.
pub(crate) fn log_into(host: &Host, log: &LogWriter) -> Result<()> {
    Ok(fs::write(host.path("event-log"), log.bytes())?)
}

/// Gives a host an event log that accounts for its PCRs, into which nothing was measured.
pub(crate) fn empty_log_into(host: &Host) -> Result<()> {
    let mut log = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    log.measure(16, EventType::S_CRTM_VERSION, b"of no PCR that is quoted");
    log_into(host, &log)
}

/// What is verified of a set that was asked for with [`NONCE`].
pub(crate) fn verified(host: &Host, set: &EvidenceSet) -> Result<VerifiedSet> {
    let anchors = TrustAnchors::from_pem(&fs::read_to_string(host.path("issuer/root.pem"))?)?;
    Ok(set.verify(&NONCE.parse()?, &anchors, UnixTime::now())?)
}
