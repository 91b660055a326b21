//! How TCP is used for connections that carry little for a long time.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Without a word for so long, a peer is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(120);
/// And again, until it answers.
const BETWEEN: Duration = Duration::from_secs(20);
/// So often before it counts as gone.
const PROBES: u32 = 6;

/// Has small pieces of data sent at once, and a peer found out that is gone without a word; one that is
/// merely silent is kept for as long as it likes.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, IDLE)?;
    sockopt::set_tcp_keepintvl(stream, BETWEEN)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}
