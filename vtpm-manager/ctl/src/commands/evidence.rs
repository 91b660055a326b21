//! Evidence of VMs, which the host makes without their guests.

use api_types::wire::EvidenceRequest;
use attestation::EvidenceSet;
use serde_json::json;

use crate::arguments::EvidenceArguments;
use crate::client::Client;
use crate::error::CtlError;
use crate::files;
use crate::output::Output;

/// Asks for a set, and keeps it.
pub(crate) fn run(
    arguments: &EvidenceArguments,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let request = EvidenceRequest {
        nonce: arguments.nonce.to_string(),
        vms: (!arguments.vms.is_empty()).then(|| arguments.vms.clone()),
    };
    let request = serde_json::to_vec(&request).map_err(|error| CtlError::Response(error.into()))?;
    let bytes = client.post_message("/v1/evidence", request)?;
    let set = EvidenceSet::from_cbor(&bytes).map_err(|error| CtlError::Response(error.into()))?;
    files::write(&arguments.save, &bytes)?;
    let unquoted: Vec<_> = (set.unquoted.iter())
        .map(|unquoted| json!({ "vm": unquoted.vm, "reason": unquoted.reason }))
        .collect();
    let told = json!({
        "file": arguments.save.display().to_string(),
        "vms": set.vms.len(),
        "unquoted": unquoted,
    });
    output.result(&told, || {
        let mut text = format!(
            "{}: evidence of {} VMs",
            arguments.save.display(),
            set.vms.len()
        );
        for unquoted in &set.unquoted {
            text.push_str(&format!("\n{unquoted}"));
        }
        text
    })
}
