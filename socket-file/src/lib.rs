//! The file of a socket that a process is about to listen on.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Makes room for a socket at this path: removes one that a dead process left. One at which a process
/// listens stays, and whatever is no socket. Nobody is waited for.
pub fn make_room(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something is there that is no socket, and it is left alone: move it away",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let dialer = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&dialer, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        // As many wait there as may; or a process has it, for packets or datagrams.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        // Nothing says that its process is dead.
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use anyhow::Result;
    use rustix::net::{bind, listen};

    use super::*;

    fn in_use(path: &Path) -> bool {
        make_room(path).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    #[test]
    fn a_socket_whose_process_takes_no_clients_is_in_use_and_nobody_waits_for_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("socket");
        let busy = UnixListener::bind(&path)?;
        listen(&busy, 0)?;
        let _waits = UnixStream::connect(&path)?;
        assert!(in_use(&path) && path.exists());
        drop(busy);
        make_room(&path)?;
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn a_socket_for_packets_is_in_use_as_long_as_its_process_lives() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("socket");
        let kind = SocketType::SEQPACKET;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, 1)?;
        assert!(in_use(&path) && path.exists());
        drop(socket);
        make_room(&path)?;
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn what_is_no_socket_is_left_alone() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("precious");
        make_room(&path)?;
        fs::write(&path, "contents")?;
        let refused = make_room(&path).err().map(|error| error.to_string());
        assert!(refused.is_some_and(|error| error.contains("no socket")));
        assert_eq!(fs::read_to_string(&path)?, "contents");
        Ok(())
    }
}
