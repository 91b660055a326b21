//! Gives a place back to swtpm as it was.

use swtpm_state::{StateKind, StateStore, StoreError, StoreOptions};

use super::places::Place;
use super::report::Outcome;
use super::{ImportError, has_vrot};
use crate::arguments::ImportArguments;
use crate::client::Client;
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
    require_retired(place)?;
    let vrot = has_vrot(client, vm)?;
    if let Some(vrot) = &vrot
        && !vrot.imported
    {
        return Err(ImportError::Another { vm }.into());
    }
    if let Some(vrot) = &vrot
        && vrot.state != NEVER_STARTED
        && !arguments.even_if_used
    {
        return Err(ImportError::Used {
            vm,
            state: vrot.state.clone(),
        }
        .into());
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

/// A vRoT is deleted only for a place from which it was made.
fn require_retired(place: &Place) -> Result<(), CtlError> {
    let options = StoreOptions {
        create: false,
        ..StoreOptions::default()
    };
    let opened = StateStore::open(&place.location, options, None);
    match opened.and_then(|store| store.load(StateKind::Permanent)) {
        Err(error) if error.says_retired() => Ok(()),
        Err(error @ StoreError::Io { .. }) => Err(error.into()),
        Ok(_) | Err(_) => Err(StoreError::NotRetired {
            path: place.location.path().to_owned(),
        }
        .into()),
    }
}
