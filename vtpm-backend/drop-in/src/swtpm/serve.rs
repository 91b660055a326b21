//! Serving: from the command line to the loop.

use std::fs::{File, OpenOptions};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use backend_link::transport::Transport;
use nix::unistd::dup2_stderr;
use program_output::log;
use swtpm_state::{Location, StateStore};
use tracing_subscriber::filter::LevelFilter;
use vtpm_backend::engine::Libtpms;
use vtpm_backend::sandbox::{self, Files};
use vtpm_backend::server::{Ending, Keeper, Server, load_state};
use vtpm_backend::stand_alone::LocalState;
use vtpm_backend::termination::Termination;

use super::command_line::{Destination, Log, Socket};
use super::daemon;
use super::endpoint::{Control, Data, connected};
use crate::outputs::{PidFile, log_file, write_pid};
use crate::{descriptors, identity};

/// 10 ms apart: the one before may be about to end.
const LOCK_RETRIES: u32 = 50;

/// Serves until a signal, or what the command line says, ends it.
pub(super) fn run(socket: &Socket) -> Result<()> {
    // What is wrong with the command line is said before anything happens.
    socket.check_refused()?;
    let control = socket.control()?;
    let data = socket.data()?;
    let (location, options) = socket.state()?;
    let flags = socket.flags()?;
    let migration = socket.migration()?;
    let (log, pid) = (socket.log()?, socket.pid()?);
    ensure!(
        control.is_some() || data.is_some(),
        "say where the TPM is reached: --ctrl type=unixio,path=PATH"
    );
    if socket.daemon && !daemon::is_in_background() {
        return daemon::start();
    }
    // As another user from here on: nothing is opened with rights that it has not.
    if let Some(folder) = &socket.chroot {
        identity::change_root(folder)?;
    }
    if let Some(user) = &socket.runas {
        identity::run_as(user)?;
    }
    start_log(log.as_ref())?;
    let (state_key, migration_key) = socket.keys()?;

    let mut engine = Libtpms::new()?;
    if flags.disable_auto_shutdown {
        engine.leave_shutting_down_to_guests();
    }
    let mut store = StateStore::open(&location, options, state_key)?;
    if !migration.incoming {
        store.lock(LOCK_RETRIES)?;
    }
    let mut store = LocalState::new(store, migration_key)?;
    if migration.incoming {
        store.lock_later();
    } else {
        load_state(&mut engine, &store)?;
    }
    if migration.release_lock_outgoing {
        store.unlock_when_given_away();
    }
    let (terminates, control) = match control {
        Some((control, terminates)) => (terminates, Some(control)),
        None => (false, None),
    };
    let data = data.map(|data| match data {
        Data::Listening(place) => place.listen().map(Opened::Listener),
        Data::Connected(number) => connected(number).map(Opened::Stream),
    });
    let data = data.transpose()?;
    // The control channel last: once its socket is there, all is.
    let control = control.map(|control| match control {
        Control::Listening(place) => place.listen().map(Opened::Listener),
        Control::Connected(number) => connected(number).map(Opened::Stream),
    });
    let control = control.transpose()?;
    let pid_file = pid.map(|to| write_pid_to(&to)).transpose()?.flatten();

    let mut removed: Vec<std::path::PathBuf> = Vec::new();
    removed.extend(pid_file.as_ref().map(|file| file.path().to_owned()));
    for opened in [&data, &control].into_iter().flatten() {
        removed.extend(opened.path().map(Path::to_owned));
    }
    let mut server = Server::new(engine, Keeper::Store(store), Termination::watch()?)?;
    let prefix = log.as_ref().map(|log| log.prefix.clone());
    let stderr = log::Stderr::at_once().context("there is no standard error to log to")?;
    server.log_to(stderr.with_prefix(prefix.as_deref().unwrap_or_default()));
    server.end_with(Ending {
        with_shutdown: true,
        with_control: terminates,
        with_data: socket.terminate,
    });
    server.leave_starting_to_others();
    match control {
        Some(Opened::Listener(listener)) => server.listen_for_whoever_connects(listener),
        Some(Opened::Stream(stream)) => server.serve_vmm(stream),
        None => {}
    }
    match data {
        Some(Opened::Listener(listener)) => server.listen_for_host(listener),
        Some(Opened::Stream(stream)) => server.serve_host(stream),
        None => {}
    }
    if flags.on {
        server
            .switch_on(flags.startup)
            .context("the TPM cannot be switched on")?;
    }
    if socket.daemon {
        daemon::detach(log.is_some_and(|log| log.to.is_some()))?;
    }
    let removed: Vec<&Path> = removed.iter().map(std::path::PathBuf::as_path).collect();
    let files = match &location {
        Location::Folder(folder) => Files::Folder(folder),
        Location::File(_) => Files::Open,
    };
    sandbox::enter_and_remove(files, Transport::Emulator, &removed, || {
        server.start_threads()
    })?;
    tracing::debug!("ready");
    server.run().context("the TPM cannot be served any more")?;
    drop(pid_file);
    Ok(())
}

/// A socket that listens, or one that is connected.
enum Opened {
    Listener(vtpm_backend::sockets::Listener),
    Stream(std::os::fd::OwnedFd),
}

impl Opened {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Listener(listener) => listener.path(),
            Self::Stream(_) => None,
        }
    }
}

/// Has the log go where it is to go: to standard error, which becomes that place.
pub(super) fn start_log(log: Option<&Log>) -> Result<()> {
    let level = match log {
        Some(log) => match &log.to {
            Some(Destination::File(path)) if path == Path::new("-") => {
                dup2_stderr(OpenOptions::new().write(true).open("/dev/null")?)?;
                LevelFilter::OFF
            }
            Some(Destination::File(path)) => {
                dup2_stderr(log_file(path, log.truncate)?)?;
                level(log.level)
            }
            Some(Destination::Descriptor(number)) => {
                dup2_stderr(descriptors::take(*number)?)?;
                level(log.level)
            }
            None => level(log.level),
        },
        None => LevelFilter::WARN,
    };
    log::start_without_thread(level, log::Format::Text);
    log::on_panic(|_| {});
    Ok(())
}

/// As swtpm counts: from 5 on libtpms's own messages, from 20 on all that it has.
fn level(number: u32) -> LevelFilter {
    match number {
        0 => LevelFilter::OFF,
        1..5 => LevelFilter::INFO,
        5..20 => LevelFilter::DEBUG,
        20.. => LevelFilter::TRACE,
    }
}

pub(super) fn write_pid_to(to: &Destination) -> Result<Option<PidFile>> {
    match to {
        Destination::File(path) => PidFile::write(&std::path::absolute(path)?).map(Some),
        Destination::Descriptor(number) => {
            write_pid(File::from(descriptors::take(*number)?))
                .with_context(|| format!("descriptor {number} cannot be written to"))?;
            Ok(None)
        }
    }
}
