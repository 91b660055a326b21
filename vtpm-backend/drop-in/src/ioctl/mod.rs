//! `swtpm_ioctl`: requests on the control channel of a TPM that runs, ours or swtpm's.

mod channel;
mod command_line;
mod state;

pub use command_line::command_line;

use std::fs;
use std::io::{self, Read};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use program_output::console::{complain, print};

use channel::Channel;
use command_line::{Action, Invocation};

/// The program.
pub fn main() -> ExitCode {
    let invocation = match Invocation::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(end) => return end,
    };
    match run(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("swtpm_ioctl: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// `PTM_CAP_…` that are asked before what they stand for is used.
const HAS_GET_INFO: u64 = 1 << 14;

fn run(invocation: Invocation) -> Result<()> {
    let Invocation { place, action } = invocation;
    let mut channel = Channel::connect(&place)?;
    match action {
        Action::Capabilities => {
            let capabilities = channel.capabilities()?;
            say(&format!("ptm capability is 0x{capabilities:x}"))
        }
        Action::Init => channel.order("PTM_INIT", 2, &1u32.to_be_bytes()),
        Action::Stop => channel.order("PTM_STOP", 14, &[]),
        Action::Shutdown => channel.order("PTM_SHUTDOWN", 3, &[]),
        Action::Established => {
            let bit = channel.established()?;
            say(&format!("tpmEstablished is {}", u8::from(bit)))
        }
        Action::ResetEstablished(locality) => {
            channel.order("PTM_RESET_TPMESTABLISHED", 11, &padded(locality))
        }
        Action::StoreVolatile => channel.order("PTM_STORE_VOLATILE", 10, &[]),
        Action::Cancel => channel.order("PTM_CANCEL_TPM_CMD", 9, &[]),
        Action::SetLocality(locality) => channel.order("PTM_SET_LOCALITY", 5, &padded(locality)),
        Action::Hash(data) => hash(&mut channel, &data),
        Action::Save(kind, path) => {
            let blob = state::load(&mut channel, kind)?;
            state::write(&path, &blob)
        }
        Action::Load(kind, path) => {
            let blob = state::read(&path)?;
            state::save(&mut channel, kind, &blob)
        }
        Action::Configuration => {
            let flags = channel.configuration()?;
            say(&format!("ptm configuration flags: 0x{flags:x}"))
        }
        Action::BufferSize(wanted) => {
            let [current, minimum, maximum] = channel.buffer_size(wanted)?;
            say(&format!(
                "TPM buffersize: {current}\nminimum size  : {minimum}\nmaximum size  : {maximum}"
            ))
        }
        Action::Info(flags) => {
            let capabilities = channel.capabilities()?;
            ensure!(
                capabilities & HAS_GET_INFO != 0,
                "this TPM cannot be asked for that (PTM_GET_INFO)"
            );
            say(&channel.info(flags)?)
        }
        Action::LockStorage(retries) => {
            channel.order("PTM_LOCK_STORAGE", 19, &retries.to_be_bytes())
        }
    }
}

fn say(text: &str) -> Result<()> {
    Ok(print(&format!("{text}\n"))?)
}

/// A locality, with what swtpm's structure has after it.
fn padded(locality: u8) -> [u8; 4] {
    [locality, 0, 0, 0]
}

/// The most bytes that are measured at once; swtpm's own limit is 4096.
const HASH_CHUNK: usize = 2048;
/// More than anybody measures with a command.
const HASH_MOST: u64 = 64 * 1024 * 1024;

/// A dynamic launch's measurement.
fn hash(channel: &mut Channel, data: &str) -> Result<()> {
    let mut measured = data.as_bytes().to_vec();
    if data == "-" {
        measured.clear();
        let read = io::stdin().take(HASH_MOST + 1).read_to_end(&mut measured);
        let read = read.context("standard input cannot be read")?;
        ensure!(
            u64::try_from(read).is_ok_and(|read| read <= HASH_MOST),
            "standard input has more than {HASH_MOST} bytes"
        );
    }
    channel.order("PTM_HASH_START", 6, &[])?;
    for chunk in measured.chunks(HASH_CHUNK) {
        let length = u32::try_from(chunk.len()).context("a chunk is too long")?;
        let body = [&length.to_be_bytes(), chunk].concat();
        channel.order("PTM_HASH_DATA", 7, &body)?;
    }
    channel.order("PTM_HASH_END", 8, &[])
}

/// Whether something is there that is not to be written over as if it were a plain file.
pub(crate) fn is_plain_or_absent(path: &std::path::Path) -> bool {
    fs::symlink_metadata(path).map_or(true, |found| found.file_type().is_file())
}
