//! Whose VMMs may attach, by the names or numbers of users.

use std::path::Path;

use backend_link::admission::VmmAdmission;
use nix::unistd::{Group, User};
use serde::Deserialize;

use super::error::ConfigError;
use crate::backend::Vmms;

/// A user or a group.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum NameOrNumber {
    Name(String),
    Number(u32),
}

/// The group matters only where there are users to let in.
pub(super) fn vmms(
    users: &[NameOrNumber],
    group: &NameOrNumber,
    config: &Path,
) -> Result<Vmms, ConfigError> {
    if users.is_empty() {
        return Ok(Vmms::default());
    }
    let uids = users.iter().map(|who| who.user("vmm_users", config));
    let of_group = |name: &str| Some(Group::from_name(name).ok().flatten()?.gid.as_raw());
    Ok(Vmms {
        admission: VmmAdmission {
            uids: uids.collect::<Result<_, _>>()?,
        },
        gid: Some(group.number("vmm_group", config, of_group)?),
    })
}

impl NameOrNumber {
    /// Number of a user.
    pub(super) fn user(&self, field: &'static str, config: &Path) -> Result<u32, ConfigError> {
        let user = |name: &str| User::from_name(name).ok().flatten();
        self.number(field, config, |name| Some(user(name)?.uid.as_raw()))
    }

    /// Its number; a name is looked up.
    fn number(
        &self,
        field: &'static str,
        config: &Path,
        of_name: impl Fn(&str) -> Option<u32>,
    ) -> Result<u32, ConfigError> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Name(name) => of_name(name).ok_or_else(|| ConfigError::Nobody {
                config: config.to_owned(),
                field,
                name: name.clone(),
            }),
        }
    }
}
