//! A vRoT as a row of the page.

use api_types::Timestamp;
use api_types::wire::{CertificateState, LaunchState, TpmTransport, VrotView};
use cert_chain::{Generation, VmId, VrotId};
use serde::Serialize;

use crate::text::{shown, shown_if};

/// What the page shows of a vRoT without being asked for more.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) vrot: VrotId,
    vm: VmId,
    tenant: String,
    name: Option<String>,
    generation: Generation,
    transport: TpmTransport,
    state: String,
    since: Timestamp,
    note: Option<String>,
    imported: bool,
    /// Since when it may have lost state.
    lost: Option<Timestamp>,
    certificate: CertificateState,
    not_after: Option<Timestamp>,
    renewal_problem: Option<String>,
    launch: LaunchState,
    launch_required: bool,
    attached: Option<bool>,
    degraded: bool,
}

impl From<&VrotView> for Row {
    fn from(view: &VrotView) -> Self {
        let backend = view.backend.as_ref();
        Self {
            vrot: view.vrot,
            vm: view.vm,
            tenant: shown(view.tenant.as_str()),
            name: shown_if(view.name.as_ref()),
            generation: view.generation,
            transport: view.transport,
            state: shown(&view.state),
            since: view.since,
            note: shown_if(view.note.as_ref()),
            imported: view.imported,
            lost: view.state_loss.map(|loss| loss.at),
            certificate: view.vik_certificate,
            not_after: view.vik_not_after,
            renewal_problem: shown_if(view.renewal_problem.as_ref()),
            launch: view.launch.state,
            launch_required: view.launch.required,
            attached: backend.map(|backend| backend.attached),
            degraded: backend.is_some_and(|backend| backend.degraded),
        }
    }
}
