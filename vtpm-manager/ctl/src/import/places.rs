//! Which places are meant, and whose they are.

use std::fs;
use std::path::{Path, PathBuf};

use cert_chain::VmId;
use swtpm_state::Location;

use super::ImportError;
use crate::arguments::ImportArguments;
use crate::error::CtlError;

/// A place where swtpm keeps the TPM of a VM.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) location: Location,
    vm: Option<VmId>,
}

/// In which libvirt keeps a TPM 2.0, below a folder that has the VM's UUID as its name.
const LIBVIRT: &str = "tpm2";

impl Place {
    fn new(location: Location, vm: Option<VmId>) -> Self {
        let found = || location.path().ancestors().take(2).find_map(id);
        Self {
            vm: vm.or_else(found),
            location,
        }
    }

    /// Whose it is.
    pub(super) fn vm(&self) -> Result<VmId, CtlError> {
        let unknown = || ImportError::WhichVm {
            place: self.location.clone(),
        };
        Ok(self.vm.ok_or_else(unknown)?)
    }
}

/// All places that were named, by themselves or by the folder that they are in.
pub(super) fn find(arguments: &ImportArguments) -> Result<Vec<Place>, CtlError> {
    if let Some(folder) = &arguments.all {
        return below(folder);
    }
    if arguments.vm.is_some() && arguments.places.len() > 1 {
        let problem = "--vm names one VM, and there are several places";
        return Err(CtlError::Argument(problem.to_owned()));
    }
    let places = arguments.places.iter().cloned();
    Ok(places
        .map(|location| Place::new(location, arguments.vm))
        .collect())
}

fn below(folder: &Path) -> Result<Vec<Place>, CtlError> {
    let failed = |source| CtlError::File {
        path: folder.to_owned(),
        action: "read",
        source,
    };
    let mut folders: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    folders.retain(|path| path.is_dir() && id(path).is_some());
    folders.sort();
    if folders.is_empty() {
        return Err(CtlError::Argument(format!(
            "there is no folder in `{}` whose name is a UUID",
            folder.display()
        )));
    }
    let places = folders.into_iter().map(|path| {
        let vm = id(&path);
        let inner = path.join(LIBVIRT);
        let path = if inner.is_dir() { inner } else { path };
        Place::new(Location::Folder(path), vm)
    });
    Ok(places.collect())
}

/// The UUID that is the name of this folder.
fn id(path: &Path) -> Option<VmId> {
    path.file_name()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_is_told_by_the_folder_or_the_one_that_it_is_in() {
        let vm = "71097de4-f31e-4b41-9c47-30bb990ea49b";
        for (path, expected) in [
            (format!("/var/lib/libvirt/swtpm/{vm}/tpm2"), true),
            (format!("/srv/{vm}"), true),
            (format!("/srv/{vm}/"), true),
            (format!("/srv/{vm}/a/b"), false),
            ("/srv/vm".to_owned(), false),
        ] {
            let place = Place::new(Location::Folder(path.clone().into()), None);
            let found = place.vm().map(|found| found.to_string() == vm);
            assert_eq!(found.unwrap_or_default(), expected, "{path}");
        }
    }
}
