//! Event logs, which a guest's and a host's firmware write.

use attestation::EventLog;

use super::Target;
use crate::host_boot_log::HostBootLog;

/// A TCG event log, and its replay.
pub(super) const EVENT_LOG: Target = Target {
    name: "event-log",
    run: |input| {
        if let Ok(log) = EventLog::parse(input) {
            let _ = log.replay();
        }
    },
    seeds: || {
        Ok(vec![
            HostBootLog::of_debian_server("6.1.0-30-amd64")
                .bytes()
                .to_vec(),
            sha1_log(),
        ])
    },
};

/// The older form (TCG_PCR_EVENT): one SHA-1 value per event.
fn sha1_log() -> Vec<u8> {
    let mut log = Vec::new();
    for (pcr, event_type, data) in [
        (0u32, 3u32, &b"StartupLocality\0\x03"[..]),
        (0, 8, b"firmware"),
        (4, 4, &[0; 4]),
    ] {
        log.extend(pcr.to_le_bytes());
        log.extend(event_type.to_le_bytes());
        log.extend([if event_type == 3 { 0 } else { 0x11 }; 20]);
        log.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
        log.extend(data);
    }
    log
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    #[test]
    fn the_seeds_are_logs() -> Result<()> {
        for seed in (EVENT_LOG.seeds)()? {
            assert!(EventLog::parse(&seed)?.events().len() >= 3);
        }
        Ok(())
    }
}
