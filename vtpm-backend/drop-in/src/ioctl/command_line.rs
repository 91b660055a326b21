//! The command line of `swtpm_ioctl`, as `getopt_long_only` reads it: long names may have one dash, and
//! may be abbreviated.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use program_output::console::{complain, print};
use swtpm_state::StateKind;

use super::channel::Place;
use crate::swtpm::number;

/// What is to be done, and with which TPM.
#[derive(Debug)]
pub(super) struct Invocation {
    pub(super) place: Place,
    pub(super) action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Capabilities,
    Init,
    Stop,
    Shutdown,
    Established,
    ResetEstablished(u8),
    StoreVolatile,
    Cancel,
    SetLocality(u8),
    Hash(String),
    Save(StateKind, PathBuf),
    Load(StateKind, PathBuf),
    Configuration,
    BufferSize(u32),
    Info(u64),
    LockStorage(u32),
}

/// Requests on the control channel of a TPM that runs.
#[derive(Debug, Parser)]
#[command(
    name = "swtpm_ioctl",
    infer_long_args = true,
    args_override_self = true
)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[command(group(ArgGroup::new("what").args([
    "c", "i", "stop", "s", "e", "r", "v", "cancel", "l", "h", "g", "b", "save", "load", "info",
    "lock_storage", "version", "help",
])))]
struct Options {
    /// Not offered: a character device. TPMs of this host are reached with --unix or --tcp.
    #[arg(long, value_name = "DEVICE")]
    tpm_device: Option<PathBuf>,
    /// The TPM at this address; 127.0.0.1 and 6546 where a part is missing.
    #[arg(long, value_name = "[HOST]:[PORT]")]
    tcp: Option<String>,
    /// The TPM at this socket.
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Says which requests the TPM knows.
    #[arg(short)]
    c: bool,
    /// Switches the TPM on, with its volatile state if there is one, which is used up.
    #[arg(short)]
    i: bool,
    /// Switches the TPM off.
    #[arg(long)]
    stop: bool,
    /// Switches the TPM off and ends it.
    #[arg(short)]
    s: bool,
    /// Says whether a dynamic launch took place.
    #[arg(short)]
    e: bool,
    /// Forgets about it, from this locality.
    #[arg(short, value_name = "LOCALITY")]
    r: Option<String>,
    /// Keeps the volatile state.
    #[arg(short)]
    v: bool,
    /// Has the TPM give up the command that it is at.
    #[arg(short = 'C')]
    cancel: bool,
    /// Sets the locality of commands.
    #[arg(short, value_name = "LOCALITY")]
    l: Option<String>,
    /// Measures data as a dynamic launch does; - for standard input.
    #[arg(short, value_name = "DATA", allow_hyphen_values = true)]
    h: Option<String>,
    /// Says which keys are in use.
    #[arg(short)]
    g: bool,
    /// Sets the size of the buffers; 0 asks for it.
    #[arg(short, value_name = "SIZE")]
    b: Option<u32>,
    /// Writes a part of the state (permanent, volatile or savestate) to a file.
    #[arg(long, num_args = 1..=2, value_names = ["PART", "FILE"])]
    save: Option<Vec<String>>,
    /// Gives the TPM a part of the state from a file.
    #[arg(long, num_args = 1..=2, value_names = ["PART", "FILE"])]
    load: Option<Vec<String>>,
    /// Says what the TPM says of itself, in JSON.
    #[arg(long, value_name = "FLAGS", value_parser = number)]
    info: Option<u64>,
    /// Locks the state that was given free; tries so many more times, 10 ms apart.
    #[arg(long, value_name = "RETRIES")]
    lock_storage: Option<u32>,
    /// Says which version this is.
    #[arg(long)]
    version: bool,
    /// Shows this.
    #[arg(long)]
    help: bool,
    /// Where the TPM or the file is, if no option says it.
    #[arg(value_name = "FILE")]
    rest: Vec<String>,
}

/// swtpm's own.
const DEFAULT_PORT: u16 = 6546;
/// Names of several letters, which may come with one dash.
const LONG: [&str; 11] = [
    "tpm-device",
    "tcp",
    "unix",
    "stop",
    "save",
    "load",
    "info",
    "lock-storage",
    "version",
    "help",
    "lock",
];

impl Invocation {
    /// Reads the command line; or, where help was asked for or it is wrong, says so, and this is how to
    /// end.
    pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, ExitCode> {
        let options = Options::try_parse_from(with_two_dashes(arguments)).map_err(|error| {
            complain(format_args!("swtpm_ioctl: {error}"));
            ExitCode::FAILURE
        })?;
        if options.version || options.help {
            let text = match options.version {
                true => crate::version("TPM emulator control tool"),
                false => help(),
            };
            return Err(match print(&text) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            });
        }
        options.invocation().map_err(|problem| {
            complain(format_args!("swtpm_ioctl: {problem}"));
            ExitCode::FAILURE
        })
    }
}

fn help() -> String {
    use clap::CommandFactory;
    format!("{}\n", Options::command().render_help())
}

/// `-stop` as `--stop`: long names with one dash, where `getopt_long_only` takes them for such.
fn with_two_dashes(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    arguments.map(|argument| {
        let name = argument.to_str().and_then(|text| text.strip_prefix('-'));
        let name = name.filter(|name| name.len() > 1 && !name.starts_with('-'));
        let is_long = name.is_some_and(|name| {
            let name = name.split('=').next().unwrap_or(name);
            LONG.iter().any(|long| long.starts_with(name))
        });
        match (is_long, name) {
            (true, Some(name)) => format!("--{name}").into(),
            _ => argument,
        }
    })
}

impl Options {
    fn invocation(mut self) -> Result<Invocation, String> {
        if self.tpm_device.is_some() {
            return Err("character devices are not offered: give --unix or --tcp".to_owned());
        }
        let action = self.action()?.ok_or("no valid command: --help has them")?;
        let place = match (self.unix, self.tcp) {
            (Some(path), None) => Place::Unix(path),
            (None, Some(address)) => tcp(&address)?,
            (Some(_), Some(_)) => return Err("give one of --unix and --tcp".to_owned()),
            (None, None) => {
                return Err("say where the TPM is: --unix PATH or --tcp :PORT".to_owned());
            }
        };
        Ok(Invocation { place, action })
    }

    fn action(&mut self) -> Result<Option<Action>, String> {
        let plain = [
            (self.c, Action::Capabilities),
            (self.i, Action::Init),
            (self.stop, Action::Stop),
            (self.s, Action::Shutdown),
            (self.e, Action::Established),
            (self.v, Action::StoreVolatile),
            (self.cancel, Action::Cancel),
            (self.g, Action::Configuration),
        ];
        if let Some((_, action)) = plain.into_iter().find(|(given, _)| *given) {
            return Ok(Some(action));
        }
        if let Some(text) = &self.r {
            return Ok(Some(Action::ResetEstablished(locality(text)?)));
        }
        if let Some(text) = &self.l {
            return Ok(Some(Action::SetLocality(locality(text)?)));
        }
        if let Some(data) = self.h.take() {
            return Ok(Some(Action::Hash(data)));
        }
        if let Some(values) = self.save.take() {
            let (kind, path) = self.part_and_file("--save", values)?;
            return Ok(Some(Action::Save(kind, path)));
        }
        if let Some(values) = self.load.take() {
            let (kind, path) = self.part_and_file("--load", values)?;
            return Ok(Some(Action::Load(kind, path)));
        }
        let rest = [
            self.b.map(Action::BufferSize),
            self.info.map(Action::Info),
            self.lock_storage.map(Action::LockStorage),
        ];
        Ok(rest.into_iter().flatten().next())
    }

    /// The file may come right after the part, or at the end.
    fn part_and_file(
        &mut self,
        option: &str,
        values: Vec<String>,
    ) -> Result<(StateKind, PathBuf), String> {
        let mut values = values.into_iter().chain(std::mem::take(&mut self.rest));
        let part = values.next().unwrap_or_default();
        let kind = match part.as_str() {
            "permanent" => StateKind::Permanent,
            "volatile" => StateKind::Volatile,
            "savestate" => StateKind::SaveState,
            _ => {
                return Err(format!(
                    "{option}: there is no part {part:?} of the state; there are permanent, volatile \
                     and savestate"
                ));
            }
        };
        let path = values.next().ok_or(format!("{option}: name a file"))?;
        Ok((kind, path.into()))
    }
}

fn locality(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| *number <= 4);
    number.ok_or(format!("locality {text:?} is outside of 0 to 4"))
}

fn tcp(address: &str) -> Result<Place, String> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let port = match port {
        "" => DEFAULT_PORT,
        port => port
            .parse()
            .map_err(|_| format!("--tcp: {port:?} is no port"))?,
    };
    let host = match host {
        "" => "127.0.0.1",
        host => host,
    };
    Ok(Place::Tcp(host.to_owned(), port))
}

/// The command line, for manual pages and for the completion of shells.
pub fn command_line() -> clap::Command {
    <Options as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(line: &str) -> Option<Action> {
        let arguments = ["swtpm_ioctl"].into_iter().chain(line.split(' '));
        let invocation = Invocation::parse(arguments.map(OsString::from)).ok()?;
        Some(invocation.action)
    }

    #[test]
    fn names_may_have_one_dash_and_be_abbreviated_and_requests_come_one_at_a_time() {
        assert_eq!(action("--unix s -s"), Some(Action::Shutdown));
        assert_eq!(action("--unix s --stop"), Some(Action::Stop));
        assert_eq!(action("-unix s -stop"), Some(Action::Stop));
        assert_eq!(
            action("--tcp :7 -h abc"),
            Some(Action::Hash("abc".to_owned()))
        );
        assert_eq!(action("--unix s -h -"), Some(Action::Hash("-".to_owned())));
        assert_eq!(action("--unix s -l 4"), Some(Action::SetLocality(4)));
        assert_eq!(action("--unix s -info 0x20"), Some(Action::Info(32)));
        assert_eq!(action("--unix s -lock-s 3"), Some(Action::LockStorage(3)));
        let save = Action::Save(StateKind::Volatile, "f".into());
        assert_eq!(action("--unix s --save volatile f"), Some(save));
        let load = Action::Load(StateKind::Permanent, "f".into());
        assert_eq!(action("--load permanent --unix s f"), Some(load));
        for wrong in [
            "--unix s",
            "-s",
            "--unix s -l 5",
            "--unix s -s -i",
            "--unix s --save nonsense f",
            "--unix s --save volatile",
            "--tpm-device /dev/tpm0 -s",
            "--unix s --tcp :1 -s",
            "--tcp :65536 -s",
        ] {
            assert_eq!(action(wrong), None, "{wrong}");
        }
    }
}
