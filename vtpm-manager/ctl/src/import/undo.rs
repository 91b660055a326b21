//! Gives a place back to swtpm as it was.

use api_types::wire::{HostView, VrotView};
use cert_chain::{HostName, VmId};
use swtpm_state::{StateKind, StateStore, StoreError};

use super::note::Note;
use super::places::Place;
use super::report::Outcome;
use super::{ImportError, OPENED, has_vrot};
use crate::arguments::ImportArguments;
use crate::client::{Client, HOST};
use crate::error::CtlError;

/// Of a vRoT that has never been started.
const NEVER_STARTED: &str = "assigned";

/// The vRoT goes first: there must not be two of one TPM.
pub(super) fn undo(
    place: &Place,
    arguments: &ImportArguments,
    client: &Client,
) -> Result<Outcome, CtlError> {
    let vm = place.vm()?;
    let note = retired(place)?;
    if let Some(note) = &note {
        is_of_this_host(place, note, vm, client)?;
    }
    let vrot = has_vrot(client, vm)?;
    let of_this_place = match &vrot {
        Some(vrot) if !vrot.imported => return Err(ImportError::Another { vm }.into()),
        Some(vrot) => is_made_of_it(vrot, note.as_ref())?,
        None => false,
    };
    if !arguments.even_if_used {
        match &vrot {
            Some(vrot) if vrot.state != NEVER_STARTED => {
                let state = vrot.state.clone();
                return Err(ImportError::Used { vm, state }.into());
            }
            _ if !of_this_place => return Err(ImportError::Unsure { vm }.into()),
            _ => {}
        }
    }
    if arguments.dry_run {
        return Ok(Outcome::WouldBeUndone);
    }
    if let Some(vrot) = vrot {
        client.delete(&format!("/v1/vrots/{}", vrot.vrot))?;
    }
    StateStore::reinstate(&place.location)?;
    Ok(Outcome::Undone)
}

/// The name of the host of this manager.
pub(super) fn host_name(client: &Client) -> Result<HostName, CtlError> {
    let host: HostView = client.get(HOST)?;
    let enrolment = host.enrolment.ok_or(ImportError::NotEnrolled)?;
    Ok(enrolment.host)
}

/// Another host may have the TPM as a live vRoT, of which this one's manager knows nothing.
fn is_of_this_host(place: &Place, note: &Note, vm: VmId, client: &Client) -> Result<(), CtlError> {
    let here = host_name(client)?;
    if note.host != here || note.vm != vm {
        return Err(ImportError::Elsewhere {
            place: place.location.clone(),
            host: note.host.clone(),
            vm: note.vm,
        }
        .into());
    }
    Ok(())
}

/// Whether a vRoT is known to be the one that was made of the place.
fn is_made_of_it(vrot: &VrotView, note: Option<&Note>) -> Result<bool, ImportError> {
    match note.and_then(|note| note.vrot) {
        Some(made) if made == vrot.vrot => Ok(true),
        Some(_) => Err(ImportError::Another { vm: vrot.vm }),
        None => Ok(false),
    }
}

/// What the note of a place says that was taken over: a vRoT is deleted only for the place from which it was
/// made. A linear file has no room for one.
fn retired(place: &Place) -> Result<Option<Note>, CtlError> {
    let opened = StateStore::open(&place.location, OPENED, None);
    match opened.and_then(|store| store.load(StateKind::Permanent)) {
        Err(StoreError::Retired { note, .. }) => Ok(Note::parse(&note)),
        Err(error) if error.says_retired() => Ok(None),
        Err(error @ StoreError::Io { .. }) => Err(error.into()),
        Ok(_) | Err(_) => Err(StoreError::NotRetired {
            path: place.location.path().to_owned(),
        }
        .into()),
    }
}
