//! Descriptors for all connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Listeners, logs, the TPM and what a library opens.
const OTHERS: u64 = 64;
/// A connection that is forwarded has two ends.
const OF_A_CONNECTION: u64 = 2;

/// Raises this process's limit of open files to what so many connections need, as far as the system
/// lets it; says so where that is less.
pub fn allow_open_files(connections: usize) {
    let wanted = u64::try_from(connections)
        .unwrap_or(u64::MAX)
        .saturating_mul(OF_A_CONNECTION)
        .saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    let (Some(current), maximum) = (limit.current, limit.maximum) else {
        return;
    };
    if current >= wanted {
        return;
    }
    let allowed = wanted.min(maximum.unwrap_or(u64::MAX));
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(allowed.max(current)),
            maximum,
        },
    );
    if raised.is_err() || allowed < wanted {
        tracing::warn!(
            connections,
            needed = wanted,
            allowed = allowed.max(current),
            "this process may not open as many files as its connections need; LimitNOFILE= of its unit, \
             or `ulimit -Hn`, allows more"
        );
    }
}
