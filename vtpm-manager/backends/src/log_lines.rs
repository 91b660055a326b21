//! What backends say. A guest that took its backend over chooses the words, so they are quoted,
//! and few: never more than a line in ten seconds once it has said twenty.

use backend_link::message::LogLevel;
use cert_chain::VrotId;
use program_output::log::FOREIGN;

/// Writes a line of a backend's log into the manager's.
pub(super) fn log(vrot: VrotId, level: LogLevel, says: &str) {
    match level {
        LogLevel::Error => tracing::error!(target: FOREIGN, %vrot, says),
        LogLevel::Warn => tracing::warn!(target: FOREIGN, %vrot, says),
        LogLevel::Info => tracing::info!(target: FOREIGN, %vrot, says),
        LogLevel::Debug => tracing::debug!(target: FOREIGN, %vrot, says),
    }
}
