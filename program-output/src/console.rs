//! Standard output and standard error of a command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use printable::Printable;

/// The exit status of a command that was called wrongly.
const USAGE: u8 = 2;

/// Writes a result to standard output. A reader that closed its end, as `head` does, has read what
/// it wanted: that is no error. Everything else is, above all a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes one line to standard error, which repeats nothing that a terminal would obey. If that
/// fails, the exit status alone tells of the failure.
pub fn complain(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{}", Printable(&text.to_string()));
}

/// The arguments of this program; or, where help was asked for or they are wrong, that is said, and
/// this is how to end.
pub fn arguments<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|asked| {
        if asked.use_stderr() {
            let _ = repeating_harmlessly::<A>(asked).print();
            return ExitCode::from(USAGE);
        }
        match asked.print().and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                complain(format_args!("standard output cannot be written: {error}"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        }
    })
}

/// A usage error repeats arguments, which a script may have from elsewhere. The same error about the
/// same arguments, as [`Printable`] shows them.
fn repeating_harmlessly<A: Parser>(error: clap::Error) -> clap::Error {
    let shown = std::env::args_os().map(|a| Printable(&a.to_string_lossy()).to_string());
    A::try_parse_from(shown).err().unwrap_or(error)
}
