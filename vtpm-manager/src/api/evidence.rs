//! Evidence of VMs, which the host makes without their guests.

use api_types::wire::{EVIDENCE_SET, EvidenceRequest};
use api_types::{PROBLEM_JSON, Problem, VrotKey};
use attestation::Nonce;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use cert_chain::VrotId;

use super::problem::{Body, ProblemResponse};
use super::vrots::Managed;
use crate::manager::ManagerError;

/// Has VMs quoted with a nonce, without their guests: an evidence set in CBOR
/// (`attestation/evidence.cddl`).
#[utoipa::path(post, path = "/v1/evidence", tag = "evidence", request_body = EvidenceRequest,
    responses((status = 200, body = Vec<u8>, content_type = EVIDENCE_SET),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn make(
    State(manager): Managed,
    Body(request): Body<EvidenceRequest>,
) -> Result<Response, ProblemResponse> {
    let nonce: Nonce = (request.nonce.parse())
        .map_err(|error| ProblemResponse::bad_request(format!("nonce: {error}")))?;
    let registry = manager.fleet().registry();
    let vrots = match request.vms {
        None => registry.all(),
        Some(vms) if vms.is_empty() => {
            let detail = "vms: name at least one VM, or leave it out for all";
            return Err(ProblemResponse::bad_request(detail));
        }
        Some(vms) => (vms.into_iter())
            .map(|vm| registry.find(VrotKey::from(VrotId::from_uuid(*vm.as_uuid()))))
            .collect::<Result<_, ManagerError>>()?,
    };
    let set = manager.fleet().evidence_set(&nonce, vrots).await?;
    let headers = [(CONTENT_TYPE, EVIDENCE_SET), (CACHE_CONTROL, "no-store")];
    Ok((headers, set.to_cbor()).into_response())
}
