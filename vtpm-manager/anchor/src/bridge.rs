//! swtpm's Unix sockets for a software stack that knows TCP only.
//!
//! tss-esapi 7 cannot name a Unix socket (`swtpm:path=`), though the library under it could. So
//! two listeners on the loopback interface pass each connection on. Only this process may use
//! them: the kernel says whose every connecting socket is ([`socket_owner`]), and others are cut
//! off. It serves software TPMs; a hardware TPM is opened as a device.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tpm_wire::read_frame;

use super::{leftovers, socket_owner};

/// Two loopback ports that lead to a TPM's two Unix sockets, for as long as this lives.
pub(super) struct Bridge {
    address: SocketAddrV4,
    stop: Arc<AtomicBool>,
    threads: Vec<(SocketAddr, JoinHandle<()>)>,
}

/// Every try takes another loopback address at random; all of 127.0.0.0/8 is this machine.
const ATTEMPTS: u32 = 16;
/// The largest command or response (`TPM_PT_MAX_COMMAND_SIZE` of libtpms), and then some.
const BUFFER: usize = 8192;
/// The software stack connects when it has something to send; who sends nothing is cut off.
const SILENCE: Duration = Duration::from_secs(10);

impl Bridge {
    /// Bridges to the data socket `path` and to the control socket `path.ctrl`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // An absent TPM is told here, by name, rather than by the software stack.
        leftovers::flush(|command| exchange(path, command)).map_err(|error| {
            io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
        })?;
        let (data, control) = listeners()?;
        let SocketAddr::V4(address) = data.local_addr()? else {
            return Err(io::Error::other("the loopback address is not IPv4"));
        };
        let mut bridge = Self {
            address,
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
        };
        bridge.serve("tpm-data", data, path.to_owned(), pass_command)?;
        bridge.serve("tpm-control", control, control_path(path), pass_control)?;
        Ok(bridge)
    }

    /// Where the software stack finds the data channel; the control channel is one port above.
    pub(super) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    fn serve(
        &mut self,
        name: &str,
        listener: TcpListener,
        path: PathBuf,
        pass: fn(&mut TcpStream, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let address = listener.local_addr()?;
        let stop = Arc::clone(&self.stop);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                for connection in listener.incoming() {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let path = path.clone();
                    // The software stack opens a connection per command, and its sockets are
                    // inherited by every process that is started meanwhile: so the end of a
                    // connection may be long in coming, and must not keep other connections waiting.
                    thread::spawn(move || {
                        let passed = connection
                            .and_then(only_this_user)
                            .and_then(|mut stack| pass(&mut stack, &path));
                        if let Err(error) = passed {
                            tracing::debug!(%error, path = %path.display(), "TPM connection");
                        }
                    });
                }
            })?;
        self.threads.push((address, thread));
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for (address, thread) in self.threads.drain(..) {
            // Wakes the listener. If that fails it is not listening any more.
            drop(TcpStream::connect(address));
            if thread.join().is_err() {
                tracing::error!("a thread of the TPM bridge has panicked");
            }
        }
    }
}

fn control_path(path: &Path) -> PathBuf {
    let mut control = path.as_os_str().to_owned();
    control.push(".ctrl");
    control.into()
}

fn listeners() -> io::Result<(TcpListener, TcpListener)> {
    let mut last = io::Error::other("no loopback port is free");
    for _ in 0..ATTEMPTS {
        let mut random = [0; 3];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("no random numbers"))?;
        let [a, b, c] = random;
        // Neither the network's nor the broadcast address.
        let host = Ipv4Addr::new(127, a, b, c.clamp(1, 254));
        let pair = TcpListener::bind((host, 0)).and_then(|data| {
            let next = data.local_addr()?.port().checked_add(1);
            let next = next.ok_or_else(|| io::Error::other("no port above"))?;
            Ok((data, TcpListener::bind((host, next))?))
        });
        match pair {
            Ok(pair) => return Ok(pair),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Cuts off connections of other users.
fn only_this_user(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(SILENCE))?;
    let peer = stream.peer_addr()?;
    let local = stream.local_addr()?;
    let owner = socket_owner::owner(peer, local)?;
    if owner == Some(nix::unistd::geteuid().as_raw()) {
        Ok(stream)
    } else {
        stream.shutdown(Shutdown::Both)?;
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("a connection from {peer} belongs to user {owner:?}"),
        ))
    }
}

/// Passes one command and its response; the software stack closes the connection after them.
fn pass_command(stack: &mut TcpStream, path: &Path) -> io::Result<()> {
    stack.set_nodelay(true)?;
    // Some connections are opened only to see whether that works.
    let Some(command) = read_frame(stack, BUFFER)? else {
        return Ok(());
    };
    stack.write_all(&exchange(path, &command)?)?;
    stack.shutdown(Shutdown::Both)
}

/// Has the TPM carry out one command.
fn exchange(path: &Path, command: &[u8]) -> io::Result<Vec<u8>> {
    let mut tpm = UnixStream::connect(path)?;
    tpm.write_all(command)?;
    Ok(read_frame(&mut tpm, BUFFER)?.ok_or(io::ErrorKind::UnexpectedEof)?)
}

/// Passes one control request and its response; each fits into one read.
fn pass_control(stack: &mut TcpStream, path: &Path) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let length = stack.read(&mut buffer)?;
    let mut tpm = UnixStream::connect(path)?;
    tpm.write_all(buffer.get(..length).unwrap_or_default())?;
    let length = tpm.read(&mut buffer)?;
    stack.write_all(buffer.get(..length).unwrap_or_default())?;
    stack.shutdown(Shutdown::Both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_this_user_is_let_in() -> io::Result<()> {
        let (listener, _control) = listeners()?;
        let _client = TcpStream::connect(listener.local_addr()?)?;
        only_this_user(listener.accept()?.0).map(drop)
    }

    #[test]
    fn an_absent_tpm_is_named() {
        let error = Bridge::open(Path::new("/nonexistent/tpm.sock")).err();
        assert!(error.is_some_and(|error| error.to_string().contains("/nonexistent/tpm.sock")));
    }
}
