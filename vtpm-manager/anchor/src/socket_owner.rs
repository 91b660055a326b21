//! Whose a TCP connection on this machine is.
//!
//! Asked of the kernel (sock_diag(7)), which looks the one socket up. Kernels without that have
//! the whole list of sockets as a text (proc_net_tcp(5)), which takes milliseconds to make.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// User of the socket `local` → `remote`; none, if there is no such socket.
pub(super) fn owner(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    match ask(local, remote) {
        Ok(owner) => Ok(owner),
        Err(error) => {
            tracing::trace!(%error, "no sock_diag");
            Ok(in_table(
                &fs::read_to_string("/proc/net/tcp")?,
                local,
                remote,
            ))
        }
    }
}

/// `struct nlmsghdr` (netlink(7)).
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`
const REQUEST: usize = 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `struct inet_diag_msg`: family, state, two timers, `inet_diag_sockid`, three numbers, the user.
const UID: usize = HEADER + 4 + 48 + 12;
/// No such socket.
const ENOENT: i32 = -2;

fn ask(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let request = request(local, remote)?;
    send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    read(answer.get(..length).unwrap_or_default())
}

fn request(local: SocketAddr, remote: SocketAddr) -> io::Result<Vec<u8>> {
    /// `AF_INET`, `IPPROTO_TCP`, no extensions, padding.
    const FAMILY_AND_PROTOCOL: [u8; 4] = [2, 6, 0, 0];
    const ALL_STATES: u32 = u32::MAX;
    const ANY_INTERFACE: u32 = 0;
    const NO_COOKIE: u32 = u32::MAX;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (local.ip(), remote.ip()) else {
        return Err(io::Error::other("the addresses are not IPv4"));
    };
    let length = u32::try_from(HEADER + REQUEST).unwrap_or(u32::MAX);
    let request = [
        &length.to_ne_bytes()[..],
        &SOCK_DIAG_BY_FAMILY.to_ne_bytes(),
        &NLM_F_REQUEST.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &0u32.to_ne_bytes(),
        &FAMILY_AND_PROTOCOL,
        &ALL_STATES.to_ne_bytes(),
        &local.port().to_be_bytes(),
        &remote.port().to_be_bytes(),
        &source.octets(),
        &[0; 12],
        &destination.octets(),
        &[0; 12],
        &ANY_INTERFACE.to_ne_bytes(),
        &NO_COOKIE.to_ne_bytes(),
        &NO_COOKIE.to_ne_bytes(),
    ];
    Ok(request.concat())
}

fn read(answer: &[u8]) -> io::Result<Option<u32>> {
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_ne_bytes)
    };
    let kind = answer
        .get(4..6)
        .and_then(|kind| kind.try_into().ok())
        .map(u16::from_ne_bytes);
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => Ok(word(UID)),
        Some(NLMSG_ERROR) => match word(HEADER).map(u32::cast_signed) {
            Some(ENOENT) => Ok(None),
            Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        },
        _ => Err(io::Error::other("an answer that is none of sock_diag")),
    }
}

/// User of the socket `local` → `remote` in the text of `/proc/net/tcp` (proc_net_tcp(5)):
/// number, local and remote address, state, queues, timer, retransmissions, user.
fn in_table(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let wanted = (written(local)?, written(remote)?);
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let found = (fields.next()?, fields.next()?);
        if found != (wanted.0.as_str(), wanted.1.as_str()) {
            return None;
        }
        fields.nth(4)?.parse().ok()
    })
}

/// An address as the kernel writes it: the four bytes as one number of this machine.
fn written(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(host) = address.ip() else {
        return None;
    };
    let number = u32::from_ne_bytes(host.octets());
    Some(format!("{number:08X}:{:04X}", address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_has_this_user_at_either_end_and_a_stranger_s_has_none() -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (here, there) = (client.local_addr()?, client.peer_addr()?);
        let user = Some(nix::unistd::geteuid().as_raw());
        assert_eq!(owner(here, there)?, user);
        let table = fs::read_to_string("/proc/net/tcp")?;
        assert_eq!(in_table(&table, here, there), user);
        // No socket of this machine has port 1.
        assert_eq!(owner(SocketAddr::from(([127, 0, 0, 1], 1)), there)?, None);
        Ok(())
    }

    #[test]
    fn a_socket_s_user_is_found_by_both_its_ends() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: 0100007F:0911 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
             1: 0100007F:D431 0100007F:0911 01 00000000:00000000 00:00000000 00000000  1000        0 2\n";
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(in_table(table, at(0xd431), at(0x0911)), Some(1000));
        assert_eq!(in_table(table, at(0x0911), at(0xd431)), None);
        assert_eq!(in_table("", at(1), at(2)), None);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error_or_nobody() {
        for length in 0..UID {
            let answer = vec![0; length];
            assert!(!matches!(read(&answer), Ok(Some(_))));
        }
    }
}
