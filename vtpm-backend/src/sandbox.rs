//! Taking away what a vRoT does not need, before the first guest byte.
//!
//! Nothing may be executed, traced, dumped or connected to; files can be opened in a
//! stand-alone backend's own state folder at most, and otherwise not at all. A backend whose VMM
//! shares its guest's memory may make three calls more, on descriptors that it was handed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use backend_link::transport::Transport;

use crate::privileges::{PrivilegeError, give_up_capabilities};

/// Which files remain within reach.
#[derive(Clone, Copy, Debug)]
pub enum Files<'p> {
    /// None.
    None,
    /// Those in this folder.
    Folder(&'p Path),
    /// Those that are open already.
    Open,
}

/// Why the process is not confined. It must not go on then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Rights cannot be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// The kernel refused a setting.
    #[error("the process cannot be confined: {setting}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// The system calls cannot be limited.
    #[error("the system calls cannot be limited")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter cannot be built.
    #[error("the filter of system calls cannot be built")]
    Filter(#[from] seccompiler::BackendError),
    /// File access cannot be limited.
    #[error("file access cannot be limited")]
    Landlock(#[from] landlock::RulesetError),
    /// A thread does not start.
    #[error("a thread of the backend does not start")]
    Thread(#[source] io::Error),
    /// A folder that is to stay within reach cannot be opened.
    #[error("the folder that stays within reach cannot be opened")]
    Folder(#[from] landlock::PathFdError),
}

/// Confines this process for the rest of its life, to what it takes to serve a VM this way. `threads`
/// starts what runs beside this thread, with no more rights than it has.
pub fn enter(
    files: Files<'_>,
    transport: Transport,
    threads: impl FnOnce() -> io::Result<()>,
) -> Result<(), SandboxError> {
    enter_and_remove(files, transport, &[], threads)
}

/// The same, but for these files, sockets and the like, which the process removes when it ends: for
/// that it may remove files of their folders.
pub fn enter_and_remove(
    files: Files<'_>,
    transport: Transport,
    removed: &[&Path],
    threads: impl FnOnce() -> io::Result<()>,
) -> Result<(), SandboxError> {
    let setting = |setting| move |source| SandboxError::Setting { setting, source };
    give_up_capabilities()?;
    prctl::set_no_new_privs().map_err(setting("no new privileges"))?;
    prctl::set_dumpable(false).map_err(setting("no core dumps, no tracing"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(setting("no core dumps"))?;
    restrict_files(files, removed)?;
    // They have no more rights than this one from their start, and get the same filter.
    foreign_descriptors::start(1)
        .and_then(|()| threads())
        .map_err(SandboxError::Thread)?;
    let filter = system_calls(files, transport)?;
    seccompiler::apply_filter_all_threads(&filter)?;
    Ok(())
}

fn restrict_files(files: Files<'_>, removed: &[&Path]) -> Result<(), SandboxError> {
    let abi = ABI::V3;
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    for path in removed {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(folder)?, AccessFs::RemoveFile))?;
    }
    let status = match files {
        Files::None | Files::Open => ruleset.restrict_self()?,
        Files::Folder(folder) => ruleset
            .add_rule(PathBeneath::new(
                PathFd::new(folder)?,
                AccessFs::from_all(abi),
            ))?
            .restrict_self()?,
    };
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no landlock: only the system call filter keeps files shut");
    }
    Ok(())
}

/// What the loop, libtpms with its OpenSSL, and the allocator call.
const ALWAYS: &[i64] = &[
    libc_numbers::READ,
    libc_numbers::WRITE,
    libc_numbers::CLOSE,
    libc_numbers::POLL,
    libc_numbers::PPOLL,
    libc_numbers::ACCEPT4,
    libc_numbers::RECVMSG,
    libc_numbers::RECVFROM,
    libc_numbers::SENDTO,
    libc_numbers::SENDMSG,
    libc_numbers::GETSOCKOPT,
    libc_numbers::MMAP,
    libc_numbers::MUNMAP,
    libc_numbers::MREMAP,
    libc_numbers::MPROTECT,
    libc_numbers::MADVISE,
    libc_numbers::MLOCK,
    libc_numbers::BRK,
    libc_numbers::FUTEX,
    libc_numbers::GETRANDOM,
    libc_numbers::CLOCK_GETTIME,
    libc_numbers::CLOCK_NANOSLEEP,
    libc_numbers::NANOSLEEP,
    libc_numbers::GETPID,
    libc_numbers::GETTID,
    libc_numbers::GETEUID,
    libc_numbers::SCHED_YIELD,
    libc_numbers::RT_SIGRETURN,
    libc_numbers::RT_SIGPROCMASK,
    libc_numbers::RT_SIGACTION,
    libc_numbers::SIGALTSTACK,
    libc_numbers::RESTART_SYSCALL,
    libc_numbers::EXIT,
    libc_numbers::EXIT_GROUP,
];

/// Into the file that was opened before: whether all that was answered is durable.
const NO_FILES: &[i64] = &[libc_numbers::PWRITE64];

/// For state on the disk.
const FILES: &[i64] = &[
    libc_numbers::OPENAT,
    libc_numbers::FSYNC,
    libc_numbers::RENAME,
    libc_numbers::RENAMEAT,
    libc_numbers::FTRUNCATE,
    libc_numbers::UNLINK,
    libc_numbers::UNLINKAT,
    libc_numbers::STATX,
    libc_numbers::FSTAT,
    libc_numbers::NEWFSTATAT,
    libc_numbers::LSEEK,
    libc_numbers::FCHMOD,
    libc_numbers::PREAD64,
    libc_numbers::PWRITE64,
];

/// To know what a VMM handed over: memory, or an eventfd. Memory is mapped by what the allocator
/// calls as well.
const VHOST_USER: &[i64] = &[
    libc_numbers::FSTAT,
    libc_numbers::FSTATFS,
    libc_numbers::PREADV2,
];

fn system_calls(files: Files<'_>, transport: Transport) -> Result<BpfProgram, SandboxError> {
    let more: &[i64] = match files {
        Files::None => NO_FILES,
        Files::Folder(_) | Files::Open => FILES,
    };
    let shared_memory = match transport.is_vhost_user() {
        true => VHOST_USER,
        false => &[],
    };
    let mut rules: BTreeMap<_, _> = ALWAYS
        .iter()
        .chain(more)
        .chain(shared_memory)
        .map(|number| (*number, Vec::new()))
        .collect();
    // How a process aborts: it sends itself a signal. No other process can be sent one.
    let own = u64::from(std::process::id());
    let itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)?;
    rules.insert(libc_numbers::TGKILL, vec![SeccompRule::new(vec![itself])?]);
    rules.insert(libc_numbers::FCNTL, file_controls(files)?);
    let mut device_controls = vec![with_command(FIONBIO)?, with_command(FIOCLEX)?];
    if transport.is_vhost_user() {
        device_controls.push(with_command(FIONREAD)?);
    }
    rules.insert(libc_numbers::IOCTL, device_controls);
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    // An error instead of an end of the process: libraries have other ways where a call is not
    // there, and without its vRoT a VM cannot open its encrypted disk.
    let denied = SeccompAction::Errno(nix::errno::Errno::EPERM as u32);
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

const FIONBIO: u64 = nix::libc::FIONBIO;
const FIOCLEX: u64 = nix::libc::FIOCLEX;
const FIONREAD: u64 = nix::libc::FIONREAD;

/// Not those by which a descriptor has a signal of one's choice sent to a process of one's choice
/// (`F_SETOWN`, `F_SETSIG`, `O_ASYNC`).
fn file_controls(files: Files<'_>) -> Result<Vec<SeccompRule>, SandboxError> {
    use nix::libc::{F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_OFD_SETLK, F_SETFD, F_SETFL, O_ASYNC};
    const IS_ASYNC: u64 = O_ASYNC as u64;
    const SET_FLAGS: u64 = F_SETFL as u64;
    let mut rules = Vec::new();
    for command in [F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC] {
        rules.push(with_command(u64::from(command.unsigned_abs()))?);
    }
    // The state's lock.
    if !matches!(files, Files::None) {
        rules.push(with_command(u64::from(F_OFD_SETLK.unsigned_abs()))?);
    }
    rules.push(SeccompRule::new(vec![
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SET_FLAGS)?,
        SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(IS_ASYNC),
            0,
        )?,
    ])?);
    Ok(rules)
}

/// The second argument says what is to be done.
fn with_command(command: u64) -> Result<SeccompRule, SandboxError> {
    let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command)?;
    Ok(SeccompRule::new(vec![condition])?)
}

mod libc_numbers {
    //! System call numbers, by name.
    use nix::libc;

    macro_rules! numbers {
        ($($name:ident = $number:ident,)*) => {
            $(pub(super) const $name: i64 = libc::$number;)*
        };
    }

    numbers! {
        READ = SYS_read, WRITE = SYS_write, CLOSE = SYS_close, POLL = SYS_poll, PPOLL = SYS_ppoll,
        ACCEPT4 = SYS_accept4, RECVMSG = SYS_recvmsg, RECVFROM = SYS_recvfrom,
        SENDTO = SYS_sendto, SENDMSG = SYS_sendmsg, GETSOCKOPT = SYS_getsockopt,
        PWRITE64 = SYS_pwrite64, FCNTL = SYS_fcntl, IOCTL = SYS_ioctl, MMAP = SYS_mmap, MUNMAP = SYS_munmap,
        MREMAP = SYS_mremap, MPROTECT = SYS_mprotect, MADVISE = SYS_madvise, MLOCK = SYS_mlock, BRK = SYS_brk,
        FUTEX = SYS_futex, GETRANDOM = SYS_getrandom, CLOCK_GETTIME = SYS_clock_gettime,
        CLOCK_NANOSLEEP = SYS_clock_nanosleep, NANOSLEEP = SYS_nanosleep, GETPID = SYS_getpid,
        GETTID = SYS_gettid, GETEUID = SYS_geteuid, SCHED_YIELD = SYS_sched_yield,
        RT_SIGRETURN = SYS_rt_sigreturn, RT_SIGPROCMASK = SYS_rt_sigprocmask,
        RT_SIGACTION = SYS_rt_sigaction, SIGALTSTACK = SYS_sigaltstack,
        RESTART_SYSCALL = SYS_restart_syscall, TGKILL = SYS_tgkill, EXIT = SYS_exit,
        EXIT_GROUP = SYS_exit_group, UNLINK = SYS_unlink, UNLINKAT = SYS_unlinkat,
        STATX = SYS_statx, NEWFSTATAT = SYS_newfstatat, OPENAT = SYS_openat, FSYNC = SYS_fsync, RENAME = SYS_rename,
        RENAMEAT = SYS_renameat, FTRUNCATE = SYS_ftruncate, FCHMOD = SYS_fchmod, PREAD64 = SYS_pread64, FSTAT = SYS_fstat, LSEEK = SYS_lseek,
        FSTATFS = SYS_fstatfs, PREADV2 = SYS_preadv2,
    }
}
