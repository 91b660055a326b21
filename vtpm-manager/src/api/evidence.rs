//! Evidence of VMs, which the host makes without their guests.

use api_types::wire::{EVIDENCE_SET, EvidenceRequest, PcrsView};
use api_types::{PROBLEM_JSON, Problem, VrotKey};
use attestation::Nonce;
use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use cert_chain::VrotId;

use super::problem::{Body, Path, ProblemResponse};
use super::vrots::{Id, Managed, key};
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

/// What a VM's PCRs hold now: its vRoT quotes them between two commands of its guest. The manager's word, for
/// people who look at the host; evidence is what verifiers believe.
#[utoipa::path(get, path = "/v1/vrots/{id}/pcrs", tag = "evidence", params(Id),
    responses((status = 200, body = PcrsView),
        (status = "default", body = Problem, content_type = PROBLEM_JSON)))]
pub(super) async fn pcrs(
    State(manager): Managed,
    Path(id): Path<String>,
) -> Result<Json<PcrsView>, ProblemResponse> {
    let vrot = manager.fleet().find(key(&id)?)?;
    let pcrs = manager.fleet().quoted_pcrs(&vrot).await?;
    Ok(Json(PcrsView {
        bank: pcrs.bank(),
        pcrs: pcrs.to_hex(),
    }))
}
