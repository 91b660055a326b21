//! Host evidence, as a guest asks for it.

use anyhow::{Result, ensure};
use attestation::{HostLayer, HostLeaf};
use cert_chain::Digest32;
use tpm_wire::ResponseCode;
use tpm_wire::host_commands::{HOST_EVIDENCE_READ, HOST_EVIDENCE_REQUEST};

use super::vmm::{Commands, command};

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
