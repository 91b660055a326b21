//! What is said in a place that was taken over: for people, and for whoever gives it back.

use std::fmt;

use cert_chain::{HostName, VmId, VrotId};
use serde::{Deserialize, Serialize};
use swtpm_state::Location;

/// Where the TPM of a place is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The host that took it over.
    pub(super) host: HostName,
    /// The VM that it is the TPM of.
    pub(super) vm: VmId,
    /// The vRoT that was made of it; none until that is known.
    pub(super) vrot: Option<VrotId>,
}

impl Note {
    /// As it is written into the place: a line for people, and a line of JSON.
    pub(super) fn text(&self, place: &Location) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{self} `vtpmctl import --undo {place}` gives it back there.\n{json}")
    }

    /// Reads it; none if it is somebody else's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.lines().last()?).ok()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, vm, .. } = self;
        write!(f, "It is the vRoT of VM {vm} on host {host} now.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() -> anyhow::Result<()> {
        let place = Location::Folder("/srv/a\nb".into());
        for vrot in [None, Some(VrotId::random())] {
            let note = Note {
                host: "host-1.demo.example".parse()?,
                vm: VmId::random(),
                vrot,
            };
            assert_eq!(Note::parse(&note.text(&place)), Some(note));
        }
        assert_eq!(Note::parse("By vRoT 1 of host 2."), None);
        assert_eq!(Note::parse(""), None);
        Ok(())
    }
}
