//! A host as the page shows it.

use std::path::Path;

use api_types::Timestamp;
use api_types::wire::{FaultView, HostView, LogView, StoreView};
use cert_chain::TpmName;
use serde::Serialize;

use crate::text::{shown, shown_if};

/// What the page shows of a host.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostCard {
    /// Where its manager listens.
    socket: String,
    /// Why nothing newer is known, if the manager does not answer.
    unreachable: Option<String>,
    /// The newest that it told.
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<Told>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    name: Option<String>,
    not_after: Option<Timestamp>,
    ik: Option<TpmName>,
    tpm: String,
    tpm_problem: Option<String>,
    event_log_problem: Option<String>,
    isolation: String,
    store: StoreView,
    log: LogView,
    last_fault: Option<FaultView>,
}

impl HostCard {
    /// Of a host whose manager was not asked yet.
    pub(crate) fn of(socket: &Path) -> Self {
        Self {
            socket: shown(&socket.display().to_string()),
            unreachable: None,
            told: None,
        }
    }

    /// The manager answered.
    pub(crate) fn answered(&mut self, view: HostView) {
        self.unreachable = None;
        self.told = Some(view.into());
    }

    /// It did not, for this reason.
    pub(crate) fn failed(&mut self, problem: &str) {
        self.unreachable = Some(shown(problem));
    }
}

impl From<HostView> for Told {
    fn from(view: HostView) -> Self {
        let enrolment = view.enrolment.as_ref();
        let mut store = view.store;
        store.state = shown(&store.state);
        for text in [
            &mut store.refusal,
            &mut store.problem,
            &mut store.policy,
            &mut store.boot,
        ] {
            *text = shown_if(text.as_ref());
        }
        Self {
            name: enrolment.map(|enrolment| shown(&enrolment.host.to_string())),
            not_after: enrolment.map(|enrolment| enrolment.not_after),
            ik: view.keys.map(|keys| keys.ik),
            tpm: shown(&view.tpm),
            tpm_problem: shown_if(view.tpm_problem.as_ref()),
            event_log_problem: shown_if(view.event_log.problem.as_ref()),
            isolation: shown(&view.isolation),
            store,
            log: view.log,
            last_fault: view.last_fault.map(|fault| FaultView {
                time: fault.time,
                place: shown(&fault.place),
            }),
        }
    }
}
