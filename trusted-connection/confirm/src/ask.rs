//! `vrot-confirm ask`: a request on the daemon's socket, for scripts and services' agents.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::request::{Answer, MAX_ANSWER, RequestJson};

/// Asks, and waits for the answer.
pub(crate) fn ask(socket: &Path, request: &RequestJson) -> Result<Answer> {
    let at = socket.display();
    let stream = UnixStream::connect(socket).with_context(|| {
        format!("{at}: does vrot-confirm run, and is this user in the group that may ask?")
    })?;
    let line = serde_json::to_string(request)?;
    // A daemon with too many connections says so without reading, and closes.
    let sent = (&stream).write_all(format!("{line}\n").as_bytes());
    let mut answer = Vec::new();
    BufReader::new((&stream).take(MAX_ANSWER)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        sent.with_context(|| format!("{at} takes no request"))?;
        bail!("{at}: no answer: vrot-confirm ended before it gave one. Ask again");
    }
    serde_json::from_slice(&answer)
        .with_context(|| format!("{at}: no answer. The daemon's log says why"))
}
