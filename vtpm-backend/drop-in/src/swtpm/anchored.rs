//! Serving where this host has its TPMs anchored: the process stands for a vRoT that the manager
//! starts, and ends with it.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use vrot_handover::stand_in::{StandIn, VmmSocket};

use super::command_line::Socket;
use super::daemon;
use super::endpoint::{Control, Place, connected};
use super::serve::{start_log, write_pid_to};
use crate::{anchored, identity};

/// Serves until a signal, the VMM's end or the vRoT's ends it.
pub(super) fn run(socket: &Socket, manager: &Path) -> Result<()> {
    socket.check_refused()?;
    let control = socket.control()?;
    let (control, ends_with_control) = control.context(
        "say where a VMM attaches: --ctrl type=unixio,path=PATH. Where this host has its TPMs \
         anchored, there is no other way",
    )?;
    ensure!(
        socket.data()?.is_none(),
        "--server, --port and --fd are not offered where this host has its TPMs anchored: a VMM \
         attaches by --ctrl"
    );
    if let Control::Listening(Place::Tcp(_)) = control {
        bail!("--ctrl: type=tcp is not offered where this host has its TPMs anchored");
    }
    let folder = anchored::folder(socket.state()?.0)?;
    let flags = socket.flags()?;
    ensure!(
        !flags.on && !flags.disable_auto_shutdown,
        "--flags is not offered where this host has its TPMs anchored: the VMM switches the TPM on, \
         and it is shut down in order"
    );
    ensure!(
        socket.chroot.is_none(),
        "--chroot is not offered where this host has its TPMs anchored"
    );
    ensure!(
        !socket.migration()?.incoming || anchored::has_vrot(&folder),
        "{}: a VM arrives from another host, but its TPM is sealed to the physical TPM of that host \
         and cannot follow. Nothing was started; start the VM anew, with a TPM that is set up here, or \
         have both hosts keep their TPMs as swtpm does",
        folder.display()
    );
    let (log, pid) = (socket.log()?, socket.pid()?);
    if socket.daemon && !daemon::is_in_background() {
        return daemon::start();
    }
    if let Some(user) = &socket.runas {
        identity::run_as(user)?;
    }
    start_log(log.as_ref())?;
    let lock = socket.lock()?;
    let stand_in = StandIn::start(manager, &folder, lock)
        .inspect_err(|error| tracing::error!("{error}"))
        .with_context(|| format!("the vRoT of {} is not started", folder.display()))?;
    tracing::info!(vrot = %stand_in.vrot().vrot, vm = %stand_in.vrot().vm, "the manager serves it");
    let listener = match &control {
        Control::Listening(place) => Some(place.listen()?),
        Control::Connected(_) => None,
    };
    let vmms = match (&listener, &control) {
        (None, Control::Connected(number)) => {
            VmmSocket::Connected(UnixStream::from(connected(*number)?))
        }
        (Some(listener), _) => {
            let listener = listener.as_fd().try_clone_to_owned()?;
            VmmSocket::Listening(UnixListener::from(listener))
        }
        (None, Control::Listening(_)) => bail!("there is no socket for a VMM"),
    };
    let pid_file = pid.map(|to| write_pid_to(&to)).transpose()?.flatten();
    if socket.daemon {
        daemon::detach(log.is_some())?;
    }
    let ended = stand_in.serve(vmms, ends_with_control || socket.terminate);
    drop((listener, pid_file));
    let ending = ended.inspect_err(|error| tracing::error!("{error}"))?;
    tracing::info!(?ending, "the vRoT is stopped");
    Ok(())
}
