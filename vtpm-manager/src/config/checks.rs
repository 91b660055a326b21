//! Values that make no sense, by themselves or beside others: what is wrong, and what to write.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `sun_path` of unix(7) has 108 bytes with a terminating zero; the longest name below it is
/// `/<vRoT id>/tpm.sock.ctrl`.
pub const MAX_RUNTIME_DIR: usize = 107 - 1 - 36 - 1 - "tpm.sock.ctrl".len();
/// No guest waits as long.
pub(super) const LONGEST_DEADLINE_MS: u32 = 5000;

/// The socket is not one of the manager's own files, and state that must survive does not lie
/// where a boot begins with nothing.
pub(super) fn check_apart(
    state_dir: &Path,
    runtime_dir: &Path,
    socket: &Path,
) -> Result<(), String> {
    if state_dir == runtime_dir {
        return Err(format!(
            "cannot be made: `state_dir` and `runtime_dir` are both {}, and what must survive a \
             boot cannot lie among what must not: write two folders",
            state_dir.display()
        ));
    }
    if socket.starts_with(state_dir) || socket == runtime_dir {
        return Err(format!(
            "is {}: write a path that is neither the runtime folder nor in the state folder",
            socket.display()
        ));
    }
    Ok(())
}

/// Nobody but `owner` (the manager) and root can put a file of their own into it. A folder that is not there
/// yet is made so.
pub(super) fn check_folder(folder: &Path, owner: u32) -> Result<(), String> {
    let Ok(found) = std::fs::symlink_metadata(folder) else {
        return Ok(());
    };
    let shown = folder.display();
    if !found.is_dir() {
        return Err(format!(
            "is {shown}, which is no folder: write the path of one"
        ));
    }
    if found.uid() != 0 && found.uid() != owner {
        return Err(format!(
            "is {shown}, which belongs to user {}: give it to the manager's user, {owner}",
            found.uid()
        ));
    }
    if found.mode() & 0o022 != 0 {
        return Err(format!(
            "is {shown}, in which others can write: take that right from them with \
             `chmod go-w {shown}`"
        ));
    }
    Ok(())
}

pub(super) fn check_evidence(per_minute: u32) -> Result<(), String> {
    match per_minute {
        0 => Err("is 0, with which no VM could attest: write at least 1".to_owned()),
        _ => Ok(()),
    }
}

pub(super) fn check_answer_within(milliseconds: Option<u32>) -> Result<(), String> {
    const SENSIBLE: std::ops::RangeInclusive<u32> = 10..=60_000;
    match milliseconds {
        Some(milliseconds) if !SENSIBLE.contains(&milliseconds) => Err(format!(
            "is {milliseconds}: write {} to {} milliseconds, or leave it out for VMMs that wait",
            SENSIBLE.start(),
            SENSIBLE.end()
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_callers(uids: &[u32]) -> Result<(), String> {
    if uids.contains(&u32::MAX) {
        return Err(format!(
            "names {}, which stands for no user (setresuid(2)): leave it out",
            u32::MAX
        ));
    }
    Ok(())
}
