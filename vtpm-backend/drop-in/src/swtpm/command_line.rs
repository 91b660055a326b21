//! The command line of `swtpm`, as `getopt_long` reads it: names may be abbreviated, and the last of
//! several counts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use swtpm_state::{Key, KeyOptions, Location, StoreOptions};
use vtpm_backend::server::Startup;

use vrot_handover::message::Lock;

use super::endpoint::{Control, Data};
use crate::anchored;
use crate::comma::Comma;
use crate::keys;

/// A TPM 2.0 for a VM, in place of swtpm.
#[derive(Debug, Parser)]
#[command(name = "swtpm", infer_long_args = true)]
pub(super) struct Program {
    /// Says which version this is.
    #[arg(long)]
    pub(super) version: bool,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serves a TPM on sockets.
    Socket(Box<Socket>),
    /// Not offered.
    Chardev {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
    /// Not offered.
    Cuse {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Args, Debug)]
#[command(infer_long_args = true, args_override_self = true)]
pub(super) struct Socket {
    /// Commands come to this TCP port of 127.0.0.1.
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// Commands come from this descriptor, a connected socket.
    #[arg(short, long, value_name = "FD")]
    fd: Option<i32>,
    /// Ends when the connection for commands is gone.
    #[arg(short, long)]
    pub(super) terminate: bool,
    /// Serves in the background; returns once it does.
    #[arg(short, long)]
    pub(super) daemon: bool,
    /// The control channel: `type=unixio,path=PATH[,mode=0600][,uid=UID][,gid=GID]`, or
    /// `type=tcp,port=PORT[,bindaddr=ADDRESS]`, or fd=FD of a socket that listens or clientfd=FD of one
    /// that is connected; with terminate it ends when its connection is gone.
    #[arg(long, value_name = "OPTIONS")]
    ctrl: Option<String>,
    /// Where commands come: as --ctrl, but for clientfd and terminate; fd is of a connected socket.
    #[arg(long, value_name = "OPTIONS")]
    server: Option<String>,
    /// Where the state is: dir=FOLDER or backend-uri=dir://FOLDER or backend-uri=file://FILE, then
    /// mode=0640, lock. Without it, the folder that the variable TPM_PATH names.
    #[arg(long, value_name = "OPTIONS")]
    tpmstate: Option<String>,
    /// The key that encrypts the state: file=FILE, fd=FD, pwdfile=FILE or pwdfd=FD, then
    /// mode=aes-cbc|aes-256-cbc, format=hex|binary, kdf=sha512|pbkdf2, remove=true.
    #[arg(long, value_name = "OPTIONS")]
    key: Option<KeyOptions>,
    /// The same for what a VMM carries.
    #[arg(long, value_name = "OPTIONS")]
    migration_key: Option<KeyOptions>,
    /// file=FILE or fd=FD, then level=N, prefix=TEXT, truncate. FILE may be -, for no log at all.
    #[arg(long, value_name = "OPTIONS")]
    log: Option<String>,
    /// Where the process's id is written: file=FILE or fd=FD.
    #[arg(long, value_name = "OPTIONS")]
    pid: Option<String>,
    /// not-need-init, startup-clear, startup-state or startup-none, disable-auto-shutdown.
    #[arg(long, value_name = "OPTIONS")]
    flags: Option<String>,
    /// action=kill or none. Either is taken, and the process is confined as ever.
    #[arg(long, value_name = "OPTIONS")]
    seccomp: Option<String>,
    /// incoming: the state is locked when the VM arrives; release-lock-outgoing: it is given free when
    /// the VM leaves.
    #[arg(long, value_name = "OPTIONS")]
    migration: Option<String>,
    /// Not offered.
    #[arg(long, value_name = "OPTIONS")]
    locality: Option<String>,
    /// Becomes this user.
    #[arg(short, long, value_name = "USER")]
    pub(super) runas: Option<String>,
    /// Has no files but those below this folder.
    #[arg(short = 'R', long, value_name = "FOLDER")]
    pub(super) chroot: Option<PathBuf>,
    /// A TPM 2.0; there is no other.
    #[arg(long)]
    pub(super) tpm2: bool,
    /// Needs a libtpms with profiles.
    #[arg(long, value_name = "OPTIONS")]
    profile: Option<String>,
    /// What this program can, in JSON.
    #[arg(long)]
    pub(super) print_capabilities: bool,
    /// Which parts of the state there are, in JSON.
    #[arg(long)]
    pub(super) print_states: bool,
    /// Which profiles there are, in JSON.
    #[arg(long)]
    pub(super) print_profiles: bool,
    /// What the TPM says of itself, in JSON.
    #[arg(long, value_name = "FLAGS", value_parser = number)]
    pub(super) print_info: Option<u64>,
}

/// Where the log goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Log {
    /// Standard error, if it is not said.
    pub(super) to: Option<Destination>,
    pub(super) level: u32,
    pub(super) prefix: String,
    pub(super) truncate: bool,
}

/// A file that may come as a descriptor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Destination {
    File(PathBuf),
    Descriptor(i32),
}

/// How the TPM is when nobody has attached yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) on: bool,
    pub(super) startup: Option<Startup>,
    pub(super) disable_auto_shutdown: bool,
}

/// When the state's lock is taken and given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Migration {
    pub(super) incoming: bool,
    pub(super) release_lock_outgoing: bool,
}

/// A number, in decimal digits or in hexadecimal ones after `0x`.
pub(crate) fn number(text: &str) -> Result<u64, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => u64::from_str(text),
    }
}

impl Socket {
    /// The control channel, and whether its end ends the process.
    pub(super) fn control(&self) -> Result<Option<(Control, bool)>> {
        self.ctrl.as_deref().map(Control::parse).transpose()
    }

    /// Where commands come, if not from the VMM's own descriptor.
    pub(super) fn data(&self) -> Result<Option<Data>> {
        let given = [
            self.server.as_deref().map(Data::parse).transpose()?,
            self.port.map(Data::port),
            self.fd.map(Data::Connected),
        ];
        let mut given = given.into_iter().flatten();
        let data = given.next();
        ensure!(
            given.next().is_none(),
            "give one of --server, --port and --fd"
        );
        Ok(data)
    }

    /// Where the state is, and how it is used.
    pub(super) fn state(&self) -> Result<(Location, StoreOptions)> {
        const OPTION: &str = "--tpmstate";
        let mut options = StoreOptions::default();
        let Some(text) = &self.tpmstate else {
            let folder = std::env::var_os("TPM_PATH");
            let folder = folder.context("say where the state is: --tpmstate dir=FOLDER")?;
            return Ok((Location::Folder(std::path::absolute(folder)?), options));
        };
        let mut comma = Comma::parse(OPTION, text)?;
        let location = match (comma.text("dir")?, comma.value("backend-uri")?) {
            (Some(folder), None) => Location::Folder(folder.into()),
            (None, Some(location)) => location,
            _ => bail!("{OPTION}: give one of dir= and backend-uri="),
        };
        if let Some(mode) = comma.mode()? {
            options.mode = mode;
            options.force_mode = true;
        }
        // The state is locked in any case, and what a guest was answered is on the disk.
        comma.flag("lock")?;
        comma.flag("fsync")?;
        ensure!(
            !comma.flag("backup")?,
            "{OPTION}: backup is not offered: leave it out"
        );
        comma.end("dir=, backend-uri=, mode=, lock, fsync")?;
        Ok((absolute(location)?, options))
    }

    /// The keys of state and migration.
    pub(super) fn keys(&self) -> Result<(Option<Key>, Option<Key>)> {
        let read = |options: &Option<KeyOptions>, name: &str| {
            let key = options.as_ref().map(keys::read).transpose();
            key.with_context(|| name.to_owned())
        };
        Ok((
            read(&self.key, "--key")?,
            read(&self.migration_key, "--migration-key")?,
        ))
    }

    /// What the key of the state is where the state is elsewhere; that of migration is read and not used.
    pub(super) fn lock(&self) -> Result<Option<Lock>> {
        let lock = |options: &Option<KeyOptions>, name: &str| {
            let lock = options.as_ref().map(anchored::lock).transpose();
            lock.with_context(|| name.to_owned())
        };
        lock(&self.migration_key, "--migration-key")?;
        lock(&self.key, "--key")
    }

    /// Where the log goes; to standard error, where that is not said.
    pub(super) fn log(&self) -> Result<Option<Log>> {
        let Some(text) = &self.log else {
            return Ok(None);
        };
        let mut comma = Comma::parse("--log", text)?;
        let log = Log {
            to: destination(&mut comma)?,
            level: comma.value("level")?.unwrap_or(1),
            prefix: comma.text("prefix")?.unwrap_or_default(),
            truncate: comma.flag("truncate")?,
        };
        comma.end("file=, fd=, level=, prefix=, truncate")?;
        Ok(Some(log))
    }

    /// Where the process's id is written.
    pub(super) fn pid(&self) -> Result<Option<Destination>> {
        let Some(text) = &self.pid else {
            return Ok(None);
        };
        let mut comma = Comma::parse("--pid", text)?;
        let to = destination(&mut comma)?;
        comma.end("file=, fd=")?;
        to.map(Some).context("--pid: give one of file= and fd=")
    }

    /// How the TPM is at first.
    pub(super) fn flags(&self) -> Result<Flags> {
        const OPTION: &str = "--flags";
        let mut comma = Comma::parse(OPTION, self.flags.as_deref().unwrap_or_default())?;
        let clear = comma.flag("startup-clear")?;
        let state = comma.flag("startup-state")?;
        let none = comma.flag("startup-none")?;
        ensure!(
            !comma.flag("startup-deactivated")?,
            "{OPTION}: startup-deactivated is for a TPM 1.2, which is not offered"
        );
        let startup = match (clear, state, none) {
            (true, false, false) => Some(Startup::Clear),
            (false, true, false) => Some(Startup::State),
            (false, false, _) => None,
            _ => bail!("{OPTION}: give one of startup-clear, startup-state and startup-none"),
        };
        let flags = Flags {
            // Who has the TPM started does not wait for a CMD_INIT.
            on: comma.flag("not-need-init")? || startup.is_some(),
            startup,
            disable_auto_shutdown: comma.flag("disable-auto-shutdown")?,
        };
        comma.end(
            "not-need-init, startup-clear, startup-state, startup-none, disable-auto-shutdown",
        )?;
        Ok(flags)
    }

    /// When the state's lock is taken and given back.
    pub(super) fn migration(&self) -> Result<Migration> {
        let text = self.migration.as_deref().unwrap_or_default();
        let mut comma = Comma::parse("--migration", text)?;
        let migration = Migration {
            incoming: comma.flag("incoming")?,
            release_lock_outgoing: comma.flag("release-lock-outgoing")?,
        };
        comma.end("incoming, release-lock-outgoing")?;
        Ok(migration)
    }

    /// Refuses what is understood and not offered.
    pub(super) fn check_refused(&self) -> Result<()> {
        ensure!(
            self.locality.is_none(),
            "--locality is not offered: the control channel alone sets localities"
        );
        ensure!(
            self.profile.is_none(),
            "--profile is not offered: the installed libtpms has no profiles"
        );
        let text = self.seccomp.as_deref().unwrap_or_default();
        let mut comma = Comma::parse("--seccomp", text)?;
        if let Some(action) = comma.text("action")? {
            let is_known = ["kill", "none", "log"].contains(&action.as_str());
            ensure!(is_known, "--seccomp: action is kill, log or none");
        }
        comma.end("action=")
    }
}

fn destination(comma: &mut Comma) -> Result<Option<Destination>> {
    match (comma.text("file")?, comma.value("fd")?) {
        (Some(path), None) => Ok(Some(Destination::File(path.into()))),
        (None, Some(number)) => Ok(Some(Destination::Descriptor(number))),
        (None, None) => Ok(None),
        _ => bail!("--log and --pid take one of file= and fd="),
    }
}

fn absolute(location: Location) -> Result<Location> {
    Ok(match location {
        Location::Folder(path) => Location::Folder(std::path::absolute(path)?),
        Location::File(path) => Location::File(std::path::absolute(path)?),
    })
}

/// The command line, for manual pages and for the completion of shells.
pub fn command_line() -> clap::Command {
    <Program as clap::CommandFactory>::command()
}
