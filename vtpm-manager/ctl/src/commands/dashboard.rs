//! The page that shows hosts, served until somebody ends it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use vrot_dashboard::{Listen, Page, Token};

use crate::arguments::DashboardArguments;
use crate::error::CtlError;
use crate::files;
use crate::output::Output;

/// Where the page is, and who may look.
#[derive(Serialize)]
struct Opened<'a> {
    /// The address, unless it is a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<&'a Path>,
}

pub(crate) fn run(
    arguments: &DashboardArguments,
    socket: &Path,
    output: &Output,
) -> Result<(), CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CtlError::Response(error.into()))?;
    runtime.block_on(serve(arguments, socket, output))
}

async fn serve(
    arguments: &DashboardArguments,
    socket: &Path,
    output: &Output,
) -> Result<(), CtlError> {
    let hosts = match arguments.host.as_slice() {
        [] => vec![socket.to_owned()],
        hosts => hosts.to_vec(),
    };
    let mut interrupted = signal(SignalKind::interrupt()).map_err(CtlError::Signals)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(CtlError::Signals)?;
    let token = Token::new()?;
    let page = Page::open(&arguments.listen, &hosts, token.clone()).await?;
    let token_file = arguments.token_file.as_deref();
    let _kept = token_file
        .map(|path| TokenFile::write(path, &token))
        .transpose()?;
    tell(&page, &token, token_file, output)?;
    tokio::select! {
        never = page.serve() => match never {},
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    Ok(())
}

fn tell(
    page: &Page,
    token: &Token,
    token_file: Option<&Path>,
    output: &Output,
) -> Result<(), CtlError> {
    let (url, socket) = match page.at() {
        at @ Listen::Loopback(_) => (Some(at.to_string()), None),
        Listen::Socket(path) => (None, Some(path.as_path())),
    };
    let opened = Opened {
        url,
        socket,
        token: token_file.is_none().then(|| token.expose()),
        token_file,
    };
    output.result(&opened, || {
        let at = match &opened.socket {
            Some(path) => format!(
                "{0}\n         (from another machine: ssh -L 7080:{0} HOST, then http://127.0.0.1:7080/)",
                path.display()
            ),
            None => opened.url.clone().unwrap_or_default(),
        };
        let shown = match token_file {
            Some(path) => format!("in {}", path.display()),
            None => token.expose().to_owned(),
        };
        format!("page     {at}\ntoken    {shown}\n\nThe page asks for the token. Both end with this command (Ctrl-C).")
    })
}

/// The token in a file, which goes with this value.
struct TokenFile(PathBuf);

impl TokenFile {
    fn write(path: &Path, token: &Token) -> Result<Self, CtlError> {
        let line = zeroize::Zeroizing::new(format!("{}\n", token.expose()));
        files::write_for_owner(path, line.as_bytes())?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // The token is worth nothing any more; one that stays is replaced by the next one.
        let _ = fs::remove_file(&self.0);
    }
}
