//! Becoming another user (`--runas`), or having another root (`--chroot`).

use std::ffi::CString;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{Gid, Group, Uid, User, chdir, chroot, getgid, initgroups, setresgid, setresuid};

/// A user by name or number: its number, and its group's.
fn user(text: &str) -> Result<(Uid, Gid, Option<CString>)> {
    if let Ok(number) = text.parse() {
        // As swtpm does: the group of the same number.
        return Ok((Uid::from_raw(number), Gid::from_raw(number), None));
    }
    let found =
        User::from_name(text).with_context(|| format!("user {text:?} cannot be looked up"))?;
    let found = found.with_context(|| format!("there is no user {text:?}"))?;
    Ok((found.uid, found.gid, Some(CString::new(found.name)?)))
}

/// The number of a user that is given by name or number.
pub(crate) fn uid(text: &str) -> Result<u32> {
    Ok(user(text)?.0.as_raw())
}

/// The same of a group.
pub(crate) fn gid(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let found = Group::from_name(text);
    let found = found.with_context(|| format!("group {text:?} cannot be looked up"))?;
    let found = found.with_context(|| format!("there is no group {text:?}"))?;
    Ok(found.gid.as_raw())
}

/// Becomes this user for good.
pub(crate) fn run_as(text: &str) -> Result<()> {
    let (uid, gid, name) = user(text)?;
    if uid == Uid::current() && uid == Uid::effective() && (name.is_none() || gid == getgid()) {
        return Ok(());
    }
    let failed = || format!("this process cannot become user {text:?}: only root may do that");
    match name {
        Some(name) => initgroups(&name, gid).with_context(failed)?,
        None => nix::unistd::setgroups(&[gid]).with_context(failed)?,
    }
    // The user last: it has no right to change the others.
    setresgid(gid, gid, gid).with_context(failed)?;
    setresuid(uid, uid, uid).with_context(failed)
}

/// Has no files but those below this folder.
pub(crate) fn change_root(folder: &Path) -> Result<()> {
    let failed = || format!("{} cannot become this process's root", folder.display());
    chroot(folder).with_context(failed)?;
    chdir("/").with_context(failed)
}

/// User and group of this process, by name where they have one.
pub(crate) fn current() -> (String, String) {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let user = User::from_uid(uid).ok().flatten();
    let group = Group::from_gid(gid).ok().flatten();
    (
        user.map_or_else(|| uid.to_string(), |user| user.name),
        group.map_or_else(|| gid.to_string(), |group| group.name),
    )
}
