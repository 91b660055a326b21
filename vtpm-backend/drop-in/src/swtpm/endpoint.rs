//! Where a VMM, or tools, reach the TPM.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use vtpm_backend::sockets::{Listener, SocketFile};

use crate::comma::Comma;
use crate::{descriptors, identity};

/// Where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Path(PathBuf, SocketFile),
    Tcp(SocketAddr),
    /// A descriptor that the caller made.
    Given(i32),
}

/// The control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Listening(Place),
    /// A connection that the caller made.
    Connected(i32),
}

/// Where commands come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Listening(Place),
    Connected(i32),
}

/// As swtpm has it, whatever the process's mask is.
const DEFAULT_MODE: u32 = 0o770;

impl Place {
    /// Reads it from what a channel's option says, if it says so.
    fn of(option: &'static str, kind: Option<&str>, comma: &mut Comma) -> Result<Option<Self>> {
        let path = comma.text("path")?;
        let port = comma.value("port")?;
        let address = comma.value::<IpAddr>("bindaddr")?;
        let file = SocketFile {
            mode: comma.mode()?.unwrap_or(DEFAULT_MODE),
            uid: comma
                .text("uid")?
                .as_deref()
                .map(identity::uid)
                .transpose()?,
            gid: comma
                .text("gid")?
                .as_deref()
                .map(identity::gid)
                .transpose()?,
        };
        match (kind, path, port) {
            (Some("unixio"), Some(path), None) => {
                let path = std::path::absolute(path)?;
                Ok(Some(Self::Path(path, file)))
            }
            (Some("tcp"), None, Some(port)) => {
                let address = address.unwrap_or(Ipv4Addr::LOCALHOST.into());
                Ok(Some(Self::Tcp(SocketAddr::new(address, port))))
            }
            (Some("unixio" | "tcp"), None, None) => Ok(None),
            (Some("unixio"), ..) => bail!("{option}: type=unixio needs path=, fd= or clientfd="),
            (Some("tcp"), ..) => bail!("{option}: type=tcp needs port= or fd="),
            (Some(kind), ..) => bail!("{option}: type={kind} is not known: give unixio or tcp"),
            (None, ..) => bail!("{option}: say type=unixio or type=tcp"),
        }
    }

    /// Listens there.
    pub(super) fn listen(&self) -> Result<Listener> {
        match self {
            Self::Path(path, file) => Listener::bind_for(path, *file)
                .with_context(|| format!("{} cannot be listened on", path.display())),
            Self::Tcp(address) => Listener::bind_tcp(*address)
                .with_context(|| format!("{address} cannot be listened on")),
            Self::Given(number) => Listener::given(descriptors::take(*number)?)
                .with_context(|| format!("descriptor {number} cannot be listened on")),
        }
    }
}

impl Control {
    pub(super) fn parse(text: &str) -> Result<(Self, bool)> {
        const OPTION: &str = "--ctrl";
        let mut comma = Comma::parse(OPTION, text)?;
        let kind = comma.text("type")?;
        let place = Place::of(OPTION, kind.as_deref(), &mut comma)?;
        let control = match (place, comma.value("fd")?, comma.value("clientfd")?) {
            (Some(place), None, None) => Self::Listening(place),
            (None, Some(number), None) => Self::Listening(Place::Given(number)),
            (None, None, Some(number)) => Self::Connected(number),
            _ => bail!("{OPTION}: give one of path=, port=, fd= and clientfd="),
        };
        let terminate = comma.flag("terminate")?;
        comma
            .end("type=, path=, port=, bindaddr=, fd=, clientfd=, mode=, uid=, gid=, terminate")?;
        Ok((control, terminate))
    }
}

impl Data {
    /// A port of this machine alone.
    pub(super) fn port(port: u16) -> Self {
        Self::Listening(Place::Tcp(SocketAddr::new(
            Ipv4Addr::LOCALHOST.into(),
            port,
        )))
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        const OPTION: &str = "--server";
        let mut comma = Comma::parse(OPTION, text)?;
        let kind = comma.text("type")?.unwrap_or_else(|| "tcp".to_owned());
        let place = Place::of(OPTION, Some(&kind), &mut comma)?;
        let data = match (place, comma.value("fd")?) {
            (Some(place), None) => Self::Listening(place),
            (None, Some(number)) => Self::Connected(number),
            _ => bail!("{OPTION}: give one of path=, port= and fd="),
        };
        ensure!(
            !comma.flag("disconnect")?,
            "{OPTION}: disconnect is not offered: a connection lasts until its client ends it"
        );
        comma.end("type=, path=, port=, bindaddr=, fd=, mode=, uid=, gid=")?;
        Ok(data)
    }
}

/// A connection that the caller made.
pub(super) fn connected(number: i32) -> Result<OwnedFd> {
    descriptors::take(number)
}
