//! Where the page is served.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket_file::make_room;
use tokio::net::{TcpListener, UnixListener};

/// A place that nobody beyond this machine reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address; with port 0, a port that is free.
    Loopback(SocketAddr),
    /// A Unix socket, for its owner alone.
    Socket(PathBuf),
}

/// A text that names no such place.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "`{0}` is neither a loopback address with a port (127.0.0.1:7080, [::1]:7080) nor the path of a \
     socket (/run/user/1000/vrot.sock). The page is not encrypted, so other machines reach it \
     through a tunnel: ssh -L 7080:127.0.0.1:7080 HOST"
)]
pub struct NotLoopback(String);

/// The page cannot be served there.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be served at `{at}`: {}", remedy(source))]
pub struct ListenError {
    at: Listen,
    #[source]
    source: io::Error,
}

/// What is listened on.
#[derive(Debug)]
pub(crate) enum Listener {
    Loopback(TcpListener),
    Socket(UnixListener),
}

impl Listen {
    /// Listens there; also says where that is, with the port that was free.
    pub(crate) async fn open(&self) -> Result<(Listener, Self), ListenError> {
        let opened = match self {
            Self::Loopback(address) => TcpListener::bind(address)
                .await
                .and_then(|tcp| Ok((Self::Loopback(tcp.local_addr()?), Listener::Loopback(tcp)))),
            Self::Socket(path) => bind(path).map(|socket| (self.clone(), Listener::Socket(socket))),
        };
        match opened {
            Ok((at, listener)) => Ok((listener, at)),
            Err(source) => Err(ListenError {
                at: self.clone(),
                source,
            }),
        }
    }
}

/// A socket that nobody listens on any more is replaced; anything else at that path stays. Until its
/// rights are set others may connect, who have no token.
fn bind(path: &Path) -> io::Result<UnixListener> {
    make_room(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AlreadyExists => {
            "something else is there; name another place with --listen (port 0 takes a free one)"
        }
        io::ErrorKind::NotFound => {
            "its folder is missing: make it, or name another place with --listen"
        }
        io::ErrorKind::PermissionDenied => "this user may not; name another place with --listen",
        _ => "the operating system refused",
    }
}

impl FromStr for Listen {
    type Err = NotLoopback;

    fn from_str(text: &str) -> Result<Self, NotLoopback> {
        if text.starts_with('/') {
            return Ok(Self::Socket(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            _ => Err(NotLoopback(text.to_owned())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "http://{address}/"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};

    use super::*;

    #[test]
    fn the_page_is_served_to_this_machine_only() -> Result<()> {
        assert!("127.0.0.1:0".parse::<Listen>().is_ok());
        assert!("[::1]:7080".parse::<Listen>().is_ok());
        assert!("/run/vrot/page.sock".parse::<Listen>().is_ok());
        for elsewhere in ["0.0.0.0:7080", "10.0.0.1:7080", "[::]:7080", "7080", "page"] {
            let refused = elsewhere.parse::<Listen>().err();
            let said = refused.with_context(|| elsewhere.to_owned())?.to_string();
            assert!(said.contains("ssh -L"), "{said}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_alone_and_only_one_that_nobody_serves_is_replaced() -> Result<()>
    {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("page.sock");
        let listen = Listen::Socket(path.clone());
        let first = listen.open().await?;
        let mode = fs::metadata(&path)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = listen.open().await.err().context("it is in use")?;
        assert!(refused.to_string().contains("--listen"), "{refused}");
        drop(first);
        drop(listen.open().await?);
        let nowhere = Listen::Socket(folder.path().join("none/page.sock"));
        let refused = nowhere.open().await.err().context("no folder")?;
        assert!(refused.to_string().contains("make it"), "{refused}");

        fs::remove_file(&path)?;
        fs::write(&path, "contents")?;
        assert!(listen.open().await.is_err());
        assert_eq!(fs::read_to_string(&path)?, "contents");
        Ok(())
    }
}
