//! Descriptors for all connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::places::{Limits, MAX_LEAVING};

/// Listeners, logs, the TPM and what a library opens.
const OTHERS: u64 = 64;
/// A connection that is forwarded has two ends; of one that a thread serves there are two handles.
const OF_A_CONNECTION: u64 = 2;

/// Raises this process's limit of open files to what the connections of its listeners need, as far as the
/// system lets it; says so where that is less.
pub fn allow_open_files(listeners: &[Limits]) {
    let wanted = needed(listeners);
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
            connections = listeners.iter().fold(0, |all: usize, limits| all
                .saturating_add(limits.connections)),
            needed = wanted,
            allowed = allowed.max(current),
            "this process may not open as many files as its connections need; LimitNOFILE= of its unit, \
             or `ulimit -Hn`, allows more"
        );
    }
}

fn needed(listeners: &[Limits]) -> u64 {
    let connections = listeners.iter().fold(0, |all: usize, limits| {
        let at_a_time = limits.connections.saturating_add(MAX_LEAVING);
        all.saturating_add(at_a_time)
    });
    u64::try_from(connections)
        .unwrap_or(u64::MAX)
        .saturating_mul(OF_A_CONNECTION)
        .saturating_add(OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_has_files_for_its_connections_and_for_those_that_give_way() {
        let limits = |connections| Limits {
            connections,
            of_a_peer: 8,
        };
        assert_eq!(needed(&[limits(4096)]), 2 * (4096 + 64) + 64);
        let both = needed(&[limits(4096), limits(64)]);
        assert_eq!(both, 2 * (4096 + 64 + 64 + 64) + 64);
    }
}
