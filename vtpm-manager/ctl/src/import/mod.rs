//! Takes the TPMs of VMs over from swtpm, one by one, and gives them back.
//!
//! A place is locked, so that no swtpm runs there; then it is retired, so that none runs there later;
//! then the manager makes a vRoT of its state. What fails, fails for its own place: that is given back
//! as it was, and the others go on.

mod note;
mod places;
mod report;
mod undo;

use std::fs::File;

use api_types::wire::{ImportRequest, TpmState, VrotView};
use cert_chain::{HostName, Tenant, VmId};
use program_output::console::complain;
use swtpm_state::{Key, KeyOptions, KeySource, Location, StateKind, StateStore, StoreOptions};
use zeroize::Zeroizing;

use crate::arguments::ImportArguments;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Output;
use note::Note;
use places::Place;
use report::{Entry, Outcome};

/// What is there is used, and nothing is made.
const OPENED: StoreOptions = StoreOptions {
    create: false,
    mode: 0o640,
    force_mode: false,
    follow_link: false,
};

/// Why a place was not taken over, or not given back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    /// The place does not say which VM's it is.
    #[error("which VM it is cannot be told from {place}: give --vm UUID")]
    WhichVm {
        /// The place.
        place: Location,
    },
    /// There is no TPM.
    #[error("there is no permanent state of a TPM 2.0 in {place}: nothing to import")]
    Empty {
        /// The place.
        place: Location,
    },
    /// Its VM is saved, and not off.
    #[error(
        "{place} also has a volatile state: its VM is not off. Start it with swtpm and shut it down first"
    )]
    NotOff {
        /// The place.
        place: Location,
    },
    /// A key is behind a descriptor.
    #[error("give file= or pwdfile= for --key")]
    KeySource,
    /// Whether the manager has made the vRoT is not known.
    #[error(
        "whether VM {vm} has its vRoT now is not known, so {place} stays out of use: the manager may still make \
         it. `vtpmctl show {vm}` says `being made` until that is decided. Once there is none, `vtpmctl import \
         --undo --even-if-used {place}` gives the place back"
    )]
    Unknown {
        /// The VM.
        vm: VmId,
        /// The place.
        place: Location,
        /// Why not.
        #[source]
        source: Box<CtlError>,
    },
    /// The vRoT has run.
    #[error(
        "the vRoT of VM {vm} has run since (it is {state}): what the VM changed in it would be lost. \
         --even-if-used undoes that all the same"
    )]
    Used {
        /// The VM.
        vm: VmId,
        /// Its state.
        state: String,
    },
    /// There is no sign that the vRoT of the place, and no other, ends with this.
    #[error(
        "that this host has the vRoT that was made of this place, unused, cannot be told: VM {vm} has none, or the \
         place does not name it. If the TPM was used since, or is used elsewhere, there would be two of it. \
         --even-if-used gives the place back all the same, and deletes the imported vRoT of the VM if there is one"
    )]
    Unsure {
        /// The VM.
        vm: VmId,
    },
    /// Another host has it, or another VM.
    #[error("the TPM in {place} was taken over by host {host} for VM {vm}: undo it there")]
    Elsewhere {
        /// The place.
        place: Location,
        /// The host.
        host: HostName,
        /// The VM.
        vm: VmId,
    },
    /// This host has no name.
    #[error("this host is not enrolled: nothing is imported or given back (`vtpmctl host enrol`)")]
    NotEnrolled,
    /// The VM has another vRoT.
    #[error(
        "VM {vm} has a vRoT that was not imported, or not from this place: delete it first if it is not needed"
    )]
    Another {
        /// The VM.
        vm: VmId,
    },
    /// Not everything was done.
    #[error("{failed} of {all} places failed: see the list")]
    Some {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
}

/// Takes places over, or gives them back.
pub(crate) fn run(
    arguments: &ImportArguments,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    let places = places::find(arguments)?;
    let all = places.len();
    let mut entries = Vec::with_capacity(all);
    for (number, place) in places.into_iter().enumerate() {
        output.progress(&format!("[{}/{all}] {}", number + 1, place.location));
        let outcome = match (arguments.undo, &arguments.tenant) {
            (true, _) => undo::undo(&place, arguments, client),
            (false, Some(tenant)) => import(&place, tenant, arguments, client),
            (false, None) => Err(CtlError::Argument("--tenant is needed".to_owned())),
        };
        if let Err(CtlError::Unreachable { .. }) = &outcome {
            // So it would be for all the others.
            return outcome.map(drop);
        }
        entries.push(Entry::new(&place, outcome));
    }
    output.result(&entries, || report::table(&entries))?;
    match entries.iter().filter(|entry| entry.has_failed()).count() {
        0 => Ok(()),
        failed => Err(ImportError::Some { failed, all }.into()),
    }
}

fn import(
    place: &Place,
    tenant: &Tenant,
    arguments: &ImportArguments,
    client: &Client,
) -> Result<Outcome, CtlError> {
    let location = &place.location;
    let vm = place.vm()?;
    let key = arguments.key.as_ref().map(read_key).transpose()?;
    let mut store = StateStore::open(location, OPENED, key)?;
    if !arguments.dry_run {
        store.lock(0)?;
    }
    let state = store.load(StateKind::Permanent)?;
    let state = state.ok_or_else(|| ImportError::Empty {
        place: location.clone(),
    })?;
    if store.size(StateKind::Volatile)?.is_some() {
        return Err(ImportError::NotOff {
            place: location.clone(),
        }
        .into());
    }
    if has_vrot(client, vm)?.is_some() {
        return Err(CtlError::Argument(format!(
            "VM {vm} has a vRoT on this host already: delete it first, or leave this place alone"
        )));
    }
    if arguments.dry_run {
        return Ok(Outcome::WouldBeImported);
    }
    let request = ImportRequest {
        vm,
        tenant: tenant.clone(),
        name: None,
        state: TpmState::new(hex::encode(&state)),
    };
    drop(state);
    let mut note = Note {
        host: undo::host_name(client)?,
        vm,
        vrot: None,
    };
    store.retire(&note.text(location))?;
    let body = serde_json::to_vec(&request).map(Zeroizing::new);
    drop(request);
    let body = body.map_err(|error| CtlError::Response(error.into()))?;
    let answer = client.post_message("/v1/vrots/import", body.to_vec());
    match answer.and_then(|answer| crate::client::parse::<VrotView>(&answer)) {
        Ok(vrot) => {
            note.vrot = Some(vrot.vrot);
            if let Err(error) = store.renew_note(&note.text(location)) {
                let error = api_types::WithCauses(&error);
                complain(format_args!(
                    "vtpmctl: its vRoT is not noted in {location}, so --undo will ask for --even-if-used: {error}"
                ));
            }
            Ok(Outcome::Imported { vrot: vrot.vrot })
        }
        Err(error) => {
            drop(store);
            Err(give_back(location, vm, client, error))
        }
    }
}

/// The code of the one server's error that says that an order was not begun.
const NOT_BEGUN: &str = "store-stalled";

/// Whether nothing was ordered, or what was ordered will never be done. A server's error and an answer that
/// does not come may mean that it goes on.
fn is_refusal(error: &CtlError) -> bool {
    match error {
        CtlError::Unreachable { .. } => true,
        CtlError::Refused(problem) => {
            (400..500).contains(&problem.status) || problem.code() == NOT_BEGUN
        }
        _ => false,
    }
}

/// The place is as it was if the vRoT is certainly not made; otherwise it stays out of use: there must not be
/// two of one TPM.
fn give_back(location: &Location, vm: VmId, client: &Client, error: CtlError) -> CtlError {
    let unknown = |source| {
        CtlError::from(ImportError::Unknown {
            vm,
            place: location.clone(),
            source: Box::new(source),
        })
    };
    if !is_refusal(&error) {
        return unknown(error);
    }
    let vrot = match &error {
        CtlError::Unreachable { .. } => Ok(None),
        _ => has_vrot(client, vm),
    };
    match vrot {
        Ok(None) => match StateStore::reinstate(location) {
            Ok(()) => error,
            Err(not_given_back) => not_given_back.into(),
        },
        Ok(Some(_)) => unknown(error),
        Err(error) => unknown(error),
    }
}

/// The vRoT of a VM, if it has one.
fn has_vrot(client: &Client, vm: VmId) -> Result<Option<VrotView>, CtlError> {
    match client.get(&format!("/v1/vrots/{vm}")) {
        Ok(vrot) => Ok(Some(vrot)),
        Err(CtlError::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_key(options: &KeyOptions) -> Result<Key, CtlError> {
    let KeySource::File(path) = &options.source else {
        return Err(ImportError::KeySource.into());
    };
    let file = File::open(path).map_err(|source| CtlError::File {
        path: path.clone(),
        action: "opened",
        source,
    })?;
    options.read(file).map_err(|source| CtlError::Input {
        path: path.clone(),
        source: source.into(),
    })
}
