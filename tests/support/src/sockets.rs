//! Sockets of programs that take one client at a time.

use std::fs;
use std::path::Path;

/// Whether a process listens there, which it does a moment after the file has appeared. To connect would
/// be to be a client.
pub fn is_listened_at(path: &Path) -> bool {
    /// `__SO_ACCEPTCON`, proc_net_unix(5)
    const LISTENS: &str = "00010000";
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some(LISTENS) && fields.nth(3).is_some_and(|at| path.ends_with(at))
    })
}
