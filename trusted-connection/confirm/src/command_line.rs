//! The commands of `vrot-confirm`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use attestation::Nonce;
use bounded_file::read_bounded_text;
use clap::{Parser, Subcommand};
use printable::Printable;
use program_output::console::{complain, print};
use rustls_pki_types::UnixTime;
use serde_json::json;
use socket_file::make_room;
use tss_context::TpmAddress;

use crate::device_certificate::DeviceCertificate;
use crate::ending::end_well;
use crate::hardening::harden;
use crate::key_file::KeyFile;
use crate::request::{Answer, RequestJson};
use crate::server::Server;
use crate::terminal::Tty;
use crate::virtual_terminal::{SwitchLock, may_switch, number};
use crate::{ask, enrol};

/// Shows a text on a terminal of its own, takes a person's PIN, and has this device's TPM sign what was shown.
///
/// Exit status: 0 if it was done or confirmed, 1 if the person declined, 2 if there is no answer.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a PIN, and have the TPM make a key that only this PIN opens.
    ///
    /// Register the name that this prints with each service that is to accept confirmations.
    Enrol {
        /// The device's TPM.
        #[arg(long, value_name = "DEVICE", default_value = "/dev/tpmrm0")]
        tpm: TpmAddress,
        /// Where the PIN is typed.
        #[arg(long, value_name = "TTY", default_value = "/dev/tty")]
        terminal: PathBuf,
        /// Where to keep the key. It is of use in this TPM and with the PIN alone.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take requests on a socket and show them, one at a time.
    Serve {
        /// The device's TPM.
        #[arg(long, value_name = "DEVICE", default_value = "/dev/tpmrm0")]
        tpm: TpmAddress,
        /// The virtual terminal, which no other program uses: /dev/tty12, say.
        #[arg(long, value_name = "TTY")]
        terminal: PathBuf,
        /// Allow a terminal that is no virtual one of this machine: a serial line, or a pseudoterminal, of which
        /// whoever made it sees all. Nothing brings it to the front.
        #[arg(long)]
        any_terminal: bool,
        /// The key, from `vrot-confirm enrol`.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The device's certificate, in PEM: certificate.pem in the folder of its identity.
        #[arg(long, value_name = "FILE")]
        certificate: PathBuf,
        /// The socket. Who is in this process's group may ask.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
    },
    /// Ask for a confirmation, and wait for the answer.
    Ask {
        /// The daemon's socket.
        #[arg(long, value_name = "PATH", default_value = "/run/vrot-confirm/socket")]
        socket: PathBuf,
        /// The text.
        #[arg(long, value_name = "FILE")]
        text: PathBuf,
        /// The service that wants to know.
        #[arg(long, value_name = "NAME")]
        service: String,
        /// The service's nonce, in hexadecimal.
        #[arg(long, value_name = "HEX")]
        nonce: Nonce,
        /// Where to write the confirmation.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// More than a text has; how long one may be, the daemon says.
const MAX_TEXT_FILE: usize = 64 * 1024;
const CANNOT_PRINT: &str = "the result cannot be written to standard output";

/// Carries a command out.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        Command::Enrol {
            tpm,
            terminal,
            key,
            json,
        } => {
            harden().context("the PIN cannot be protected in memory")?;
            let name = enrol::enrol(&mut open(terminal)?, tpm, key)?;
            let text = match json {
                true => format!("{}\n", json!({ "key": name.to_string(), "file": key })),
                false => {
                    format!("{name}\nregister this key with the services that are to know it\n")
                }
            };
            print(&text).context(CANNOT_PRINT)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve {
            tpm,
            terminal,
            any_terminal,
            key,
            certificate,
            socket,
        } => {
            harden().context("the PIN cannot be protected in memory")?;
            let key = KeyFile::read(key)?;
            let certificate = DeviceCertificate::read(certificate, &key)?;
            if let Err(error) = certificate.check(UnixTime::now()) {
                complain(format_args!("vrot-confirm: {error}"));
            }
            let tty = open(terminal)?;
            match number(tty.device())? {
                Some(_) => ensure!(
                    may_switch()?,
                    "{} cannot be brought to the front by this user: CAP_SYS_TTY_CONFIG is needed",
                    terminal.display()
                ),
                None => ensure!(
                    *any_terminal,
                    "{} is no virtual terminal of this machine (/dev/tty1 to /dev/tty63): give one, or \
                     --any-terminal",
                    terminal.display()
                ),
            }
            let lock = SwitchLock::beside(socket);
            end_well(&tty, lock.clone()).context("signals cannot be waited for")?;
            let listener = listen(socket)?;
            // One that was killed in mid-request left it locked.
            lock.release(tty.device())
                .with_context(|| format!("{} cannot be let go", terminal.display()))?;
            let server = Server {
                terminal: Mutex::new(tty),
                is_asking: AtomicBool::new(false),
                lock,
                tpm: tpm.clone(),
                key,
                certificate,
            };
            server.serve(&listener)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Ask {
            socket,
            text,
            service,
            nonce,
            out,
        } => {
            let shown = read_bounded_text(text, MAX_TEXT_FILE)
                .with_context(|| format!("{} cannot be read as UTF-8", text.display()))?;
            let request = RequestJson {
                // A file's last line ends like the others.
                text: shown.trim_end_matches('\n').to_owned(),
                service: service.clone(),
                nonce: nonce.to_string(),
            };
            take(ask::ask(socket, &request)?, out)
        }
    }
}

fn take(answer: Answer, out: &Path) -> Result<ExitCode> {
    match answer {
        Answer::Confirmed { confirmation } => {
            let confirmation = hex::decode(confirmation).context("the answer is malformed")?;
            fs::write(out, confirmation)
                .with_context(|| format!("{} cannot be written", out.display()))?;
            print(&format!(
                "confirmed: {}\n",
                Printable(&out.display().to_string())
            ))
            .context(CANNOT_PRINT)?;
            Ok(ExitCode::SUCCESS)
        }
        Answer::Declined => {
            complain(format_args!("vrot-confirm: the person declined"));
            Ok(ExitCode::from(1))
        }
        Answer::Busy => bail!("another request is being shown: ask again"),
        Answer::Refused { reason } => bail!("{reason}"),
    }
}

fn open(terminal: &Path) -> Result<Tty> {
    Tty::open(terminal).with_context(|| {
        format!(
            "{} cannot be used as a terminal by this user",
            terminal.display()
        )
    })
}

/// A socket for the group. What an earlier daemon left is replaced; one that answers is not.
fn listen(socket: &Path) -> Result<UnixListener> {
    let at = socket.display();
    make_room(socket).with_context(|| format!("{at} cannot be listened at"))?;
    let listener = UnixListener::bind(socket).with_context(|| format!("{at} cannot be made"))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))
        .with_context(|| format!("{at} cannot be given to its group"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_place_of_the_socket_is_left_alone_and_the_socket_of_a_dead_daemon_is_not()
    -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("socket");
        fs::write(&path, "contents")?;
        let refused = listen(&path).err().context("a file was replaced")?;
        assert!(format!("{refused:#}").contains("no socket"), "{refused:#}");
        assert_eq!(fs::read_to_string(&path)?, "contents");

        fs::remove_file(&path)?;
        let living = listen(&path)?;
        assert!(listen(&path).is_err());
        drop(living);
        listen(&path)?;
        Ok(())
    }
}
