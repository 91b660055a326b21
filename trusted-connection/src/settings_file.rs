//! Where programs that people call look for their settings.

use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file that was given; without one the user's own, or else that for everybody.
///
/// # Errors
///
/// Where there is none: the places that were looked at.
pub fn find(given: Option<&Path>, name: &str) -> Result<PathBuf, Vec<PathBuf>> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let folder = |name: &str| {
        let folder = env::var_os(name).map(PathBuf::from);
        folder.filter(|folder| folder.is_absolute())
    };
    let own = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    let places: Vec<PathBuf> = (own.into_iter())
        .chain([PathBuf::from("/etc")])
        .map(|folder| folder.join("vrot").join(name))
        .collect();
    let found = places.iter().find(|place| may_be_there(place)).cloned();
    found.ok_or(places)
}

/// Whatever cannot be looked at may be there, and reading it tells why it cannot: were it passed over, what
/// it demands would not count.
fn may_be_there(place: &Path) -> bool {
    match place.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}
