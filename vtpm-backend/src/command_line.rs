//! The command line of `vtpm-backend`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use backend_link::admission::VmmAdmission;
use backend_link::instance::Instance;
use backend_link::runtime_folder::{MANAGER_SOCKET, VHOST_USER_SOCKET, VMM_SOCKET};
use backend_link::transport::Transport;
use clap::{ArgGroup, Parser, ValueEnum};
use program_output::log;
use swtpm_state::{Key, KeyOptions, KeySource, Location, StateStore, StoreOptions};
use vhost_user_tpm::{Device, Frontend, VirtioI2c, VirtioTpm};

use crate::engine::Libtpms;
use crate::lost_memory;
use crate::managed::ManagerLink;
use crate::sandbox::{self, Files};
use crate::server::{Keeper, Server, load_state};
use crate::sockets::Listener;
use crate::stand_alone::LocalState;
use crate::termination::Termination;
use crate::zygote::{self, Spawn};

/// One virtualized root of trust: a TPM 2.0 for one VM.
///
/// Stand-alone (`--control` or `--vhost-user`, and `--state`) it keeps its state on the disk in
/// swtpm's form, unsealed. With
/// `--runtime` it serves a manager, which seals the state to the host's TPM. With `--zygote` it
/// starts such backends for the manager at its standard input.
#[derive(Debug, Parser)]
#[command(version)]
#[command(group(ArgGroup::new("mode").required(true).multiple(true)
    .args(["control", "vhost_user", "runtime", "zygote"])))]
pub struct Arguments {
    /// Stand-alone: the control channel's socket, for a VMM (or tpm2-tss, see --data).
    #[arg(long, value_name = "PATH", requires = "state", conflicts_with_all = ["runtime", "zygote"])]
    control: Option<PathBuf>,
    /// Stand-alone: the socket for a VMM that shares its guest's memory (vhost-user). With
    /// --control as well, the host can reset the TPM there (CMD_INIT, `swtpm_ioctl -i`): no VMM and
    /// no guest can over this socket.
    #[arg(long, value_name = "PATH", requires = "state", requires = "device", conflicts_with_all = ["runtime", "zygote"])]
    vhost_user: Option<PathBuf>,
    /// Stand-alone: the device that the guest finds behind --vhost-user.
    #[arg(long, value_name = "KIND", requires = "vhost_user")]
    device: Option<DeviceKind>,
    /// Stand-alone: a socket for TPM commands of tools on this host. tpm2-tss reaches it as
    /// `swtpm:path=PATH`, if the control channel is at PATH.ctrl.
    #[arg(long, value_name = "PATH", requires = "control")]
    data: Option<PathBuf>,
    /// Stand-alone: the place for the state, which is made if it is not there: a folder, dir://FOLDER or
    /// file://FILE, as swtpm uses them. swtpm and this program exclude each other there.
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["runtime", "zygote"])]
    state: Option<Location>,
    /// Stand-alone: the key under which the state is encrypted on the disk, as swtpm has it:
    /// file=FILE or pwdfile=FILE, then mode=aes-128-cbc or aes-256-cbc, format=hex or binary,
    /// kdf=pbkdf2 or sha512, with commas between.
    #[arg(long, value_name = "OPTIONS", requires = "state")]
    state_key: Option<KeyOptions>,
    /// Stand-alone: the key for what a VMM carries, when it moves or saves a VM; as --state-key.
    #[arg(long, value_name = "OPTIONS", requires = "state")]
    migration_key: Option<KeyOptions>,
    /// Stand-alone: a command that takes longer, in milliseconds, is answered TPM_RC_RETRY meanwhile, and
    /// its answer is kept for the guest's next try. For VMMs that give a command up, as
    /// cloud-hypervisor does after 100 ms: 80.
    #[arg(long, value_name = "MS", requires = "state", value_parser = clap::value_parser!(u32).range(10..=60_000))]
    answer_within_ms: Option<u32>,
    /// Managed: the folder for the sockets of VMM (control.sock) and manager (manager.sock).
    #[arg(long, value_name = "DIR", conflicts_with = "zygote")]
    runtime: Option<PathBuf>,
    /// Managed: a file that is locked for as long as the backend lives. If it is locked already,
    /// the vRoT is served by another process, and this one ends.
    #[arg(long, value_name = "FILE", requires = "runtime")]
    lock: Option<PathBuf>,
    /// Managed: starts a backend for each runtime folder that it is told, until standard input
    /// (a socket) ends.
    #[arg(long)]
    zygote: bool,
    /// Managed: a user, by number, whose VMMs may attach besides those of root and of the
    /// manager's user. May be given more than once.
    #[arg(long = "vmm-uid", value_name = "UID", requires = "runtime")]
    vmm_uids: Vec<u32>,
    /// What to log: error, warn, info, debug or trace. Stand-alone, the log goes to standard error;
    /// otherwise to the manager.
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        env = "VTPM_BACKEND_LOG"
    )]
    pub log_level: tracing_subscriber::filter::LevelFilter,
}

impl Arguments {
    /// How log lines look: those that a manager gets have their time and level from it.
    pub fn log_format(&self) -> log::Format {
        match self.state {
            Some(_) => log::Format::Text,
            None => log::Format::Bare,
        }
    }
}

impl Arguments {
    fn transport(&self) -> Transport {
        match self.device {
            None => Transport::Emulator,
            Some(DeviceKind::VirtioTpm) => Transport::VirtioTpm,
            Some(DeviceKind::VirtioI2c) => Transport::VirtioI2c,
        }
    }
}

/// What a guest finds behind a vhost-user socket.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeviceKind {
    /// A TPM whose driver puts commands into a queue (device 62; ChromeOS, crosvm).
    VirtioTpm,
    /// A TPM at address 0x2e of an I2C bus (device 34; QEMU's vhost-user-i2c-pci).
    VirtioI2c,
}

/// Serves until the manager or a signal (SIGTERM, SIGINT) ends it.
pub fn run(arguments: &Arguments) -> Result<()> {
    match (&arguments.state, &arguments.runtime) {
        (Some(state), _) => stand_alone(state, arguments),
        (_, Some(runtime)) => {
            let spawn = Spawn {
                runtime: runtime.clone(),
                lock: arguments.lock.clone(),
                admission: VmmAdmission {
                    uids: arguments.vmm_uids.clone(),
                },
                uid: None,
                transport: arguments.transport(),
            };
            managed(&spawn, |threads| {
                Ok(sandbox::enter(Files::None, spawn.transport, threads)?)
            })
        }
        _ if arguments.zygote => zygote::run(spawned),
        _ => {
            anyhow::bail!("give --control or --vhost-user with --state, or --runtime, or --zygote")
        }
    }
}

fn stand_alone(state: &Location, arguments: &Arguments) -> Result<()> {
    let read = |options: &Option<KeyOptions>| options.as_ref().map(read_key).transpose();
    let state_key = read(&arguments.state_key)?;
    let migration_key = read(&arguments.migration_key)?;
    let mut engine = Libtpms::new()?;
    let options = StoreOptions {
        mode: STATE_MODE,
        ..StoreOptions::default()
    };
    let mut store = StateStore::open(state, options, state_key)?;
    store.lock(LOCK_RETRIES)?;
    let store = LocalState::new(store, migration_key)?;
    load_state(&mut engine, &store)?;
    // The sockets of VMMs last: once they are there, all are.
    let data = arguments.data.as_deref().map(listen).transpose()?;
    let control = arguments.control.as_deref().map(listen).transpose()?;
    let vhost_user = arguments.vhost_user.as_deref().map(listen).transpose()?;
    let mut server = Server::new(engine, Keeper::Store(store), Termination::watch()?)?;
    server.log_to(log::Stderr::at_once().context("there is no standard error to log to")?);
    if let Some(milliseconds) = arguments.answer_within_ms {
        server.answer_within(Duration::from_millis(milliseconds.into()));
    }
    if let Some(control) = control {
        server.listen_for_vmm(control, VmmAdmission::default());
    }
    if let Some(data) = data {
        server.listen_for_host(data);
    }
    let transport = arguments.transport();
    if let (Some(listener), Some(frontend)) = (vhost_user, frontend(transport)) {
        lost_memory::explain()?;
        server.listen_for_device(listener, frontend, VmmAdmission::default());
    }
    let files = match state {
        Location::Folder(folder) => Files::Folder(folder),
        Location::File(_) => Files::Open,
    };
    sandbox::enter(files, transport, || server.start_threads())?;
    tracing::info!("ready");
    Ok(server.run()?)
}

/// Nobody's but its user's; swtpm's default lets the group read.
const STATE_MODE: u32 = 0o600;
/// 10 ms apart: the one before may be about to end.
const LOCK_RETRIES: u32 = 50;

fn read_key(options: &KeyOptions) -> Result<Key> {
    let KeySource::File(path) = &options.source else {
        anyhow::bail!("a key cannot be read from a descriptor here: give file= or pwdfile=");
    };
    let file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let key = options.read(file);
    key.with_context(|| format!("{} holds no key that can be used", path.display()))
}

/// What a guest finds behind a vhost-user socket; nothing, if its VMM speaks the TPM emulator
/// protocol.
fn frontend(transport: Transport) -> Option<Frontend> {
    let device: Box<dyn Device + Send> = match transport {
        Transport::Emulator => return None,
        Transport::VirtioTpm => Box::new(VirtioTpm),
        Transport::VirtioI2c => Box::new(VirtioI2c::default()),
    };
    Some(Frontend::new(device))
}

fn spawned(spawn: &Spawn) -> Result<()> {
    managed(spawn, |threads| spawn.confine(threads))
}

fn managed(
    spawn: &Spawn,
    confine: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> Result<()>,
) -> Result<()> {
    let Spawn {
        runtime,
        lock,
        admission,
        transport,
        ..
    } = spawn;
    // Before it listens, so that a manager never reaches a second backend of this vRoT.
    let instance = lock.as_deref().map(Instance::take).transpose()?;
    let engine = Libtpms::new()?;
    let socket = runtime.join(MANAGER_SOCKET);
    let link = ManagerLink::bind(&socket, instance)
        .with_context(|| format!("{} cannot be listened on", socket.display()))?;
    let keeper = Keeper::Manager(Box::new(link));
    let mut server = Server::new(engine, keeper, Termination::watch()?)?;
    match frontend(*transport) {
        None => server.listen_for_vmm(listen(&runtime.join(VMM_SOCKET))?, admission.clone()),
        Some(frontend) => {
            let listener = listen(&runtime.join(VHOST_USER_SOCKET))?;
            lost_memory::explain()?;
            server.listen_for_device(listener, frontend, admission.clone());
        }
    }
    confine(&mut || server.start_threads())?;
    tracing::info!("waiting for the manager");
    // A confined backend has no standard error any more: what fails is told while the link lives.
    server
        .run()
        .inspect_err(|error| tracing::error!(%error, "the backend cannot go on"))
        .with_context(|| format!("serving in {}", runtime.display()))
}

fn listen(path: &Path) -> Result<Listener> {
    Listener::bind(path).with_context(|| format!("{} cannot be listened on", path.display()))
}
