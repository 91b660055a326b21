//! Why the folder that a launcher keeps for a VM is not served.

use cert_chain::{VmId, VrotId};

/// Why a folder gets no vRoT.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// It comes from elsewhere.
    #[error(
        "the folder `{path}` is that of vRoT {vrot} on host `{host}`, whose state is sealed to that \
         host's TPM and did not come along; this host is `{here}`, and nothing was reset. Run the VM on \
         `{host}`; or, if it may have a new and empty TPM here, remove `vrot.json` from the folder and \
         set it up again"
    )]
    OtherHost {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
        /// The host that the file names.
        host: String,
        /// This one.
        here: String,
    },
    /// Its vRoT is gone.
    #[error(
        "the folder `{path}` is that of vRoT {vrot}, which was deleted on this host: it does not come \
         back. If the VM may have a new and empty TPM, remove `vrot.json` from the folder and set it up \
         again"
    )]
    Deleted {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// The vRoT was not made for a folder, or for another one.
    #[error(
        "`vrot.json` in `{path}` is not the file of vRoT {vrot}, or the secret that the launcher gave \
         (`--key`, `--pwdfile-fd`) is not the one of its set-up: the folder is not served"
    )]
    Stranger {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// The file is a copy.
    #[error(
        "the folder `{path}` is a copy: vRoT {vrot} belongs to the folder that was last seen at \
         `{original}`, and two VMs never share one. A cloned VM gets a TPM of its own when `vrot.json` \
         is removed from its folder and it is set up again. If this folder was restored from a backup \
         and the other is gone, let an operator say so with `vtpmctl accept-folder {vrot}`"
    )]
    Copied {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
        /// Where its folder was seen.
        original: String,
    },
    /// The VM has a vRoT that belongs to no folder, or to another.
    #[error(
        "VM {vm} has vRoT {vrot} already, {whose}: nothing was set up for `{path}`. Use that, or delete \
         it with `vtpmctl delete {vrot}`"
    )]
    VmTaken {
        /// The folder.
        path: String,
        /// The VM.
        vm: VmId,
        /// Its vRoT.
        vrot: VrotId,
        /// In which folder.
        whose: String,
    },
    /// The same, and the vRoT is none of the caller's business.
    #[error(
        "VM {vm} is taken: nothing was set up for `{path}`. The VM's number is that of a vRoT which \
         this user did not set up"
    )]
    VmOfAnother {
        /// The folder.
        path: String,
        /// The VM.
        vm: VmId,
    },
    /// It is not known which one's place this would take.
    #[error(
        "vRoTs {first} and {second} were both seen in the folder `{path}` last: nothing was set up. \
         Start the one whose folder was moved, or delete one with `vtpmctl delete`"
    )]
    Ambiguous {
        /// The folder.
        path: String,
        /// One vRoT.
        first: VrotId,
        /// Another.
        second: VrotId,
    },
    /// The folder was there before, and is another one now.
    #[error(
        "the folder that was at `{path}` is gone, and its vRoT {vrot} is kept (`vanished` in the \
         manager's configuration): nothing was set up in the new folder. If the old one is not needed \
         any more, delete it with `vtpmctl delete {vrot}`"
    )]
    Kept {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// A folder is started that lost its file.
    #[error(
        "the folder `{path}` had vRoT {vrot}, and `vrot.json` is missing from it: nothing was started, \
         for another vRoT would be an empty TPM. Restore the folder, or set it up again with \
         swtpm_setup"
    )]
    FileMissing {
        /// The folder.
        path: String,
        /// The vRoT.
        vrot: VrotId,
    },
    /// A VM has its vRoT.
    #[error(
        "vRoT {vrot} runs, and a VMM is attached to it: it is not started anew under that VM. End the VM \
         first, or stop the vRoT with `vtpmctl stop {vrot}`"
    )]
    InUse {
        /// The vRoT.
        vrot: VrotId,
    },
    /// Its vRoT does not run any more.
    #[error("the vRoT was stopped while the manager was restarted")]
    NotRunning,
}
