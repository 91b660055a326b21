//! Why bytes are no event log.

use super::{MAX_EVENTS, MAX_LOG, PCR_COUNT};

/// Why bytes are not an event log. Events are counted from zero; an offset is where the event
/// starts, in bytes.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventLogError {
    /// A digest of a bank that the header does not announce, or the second of one.
    #[error(
        "event {event} (offset {offset}) has a digest of algorithm 0x{algorithm:04x} that the \
         header does not announce, or two of it: {NEWER_FIRMWARE}"
    )]
    Algorithm {
        /// The event.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// `TPM_ALG_ID`.
        algorithm: u16,
    },
    /// A header that announces impossible banks.
    #[error(
        "the header (event 0, offset 0) announces {count} hash algorithms (1 to {MAX_ALGORITHMS} \
         are possible), one of the wrong length, or one twice: {NEWER_FIRMWARE}"
    )]
    Algorithms {
        /// Number of algorithms announced.
        count: u32,
    },
    /// A measurement without a digest, or with more than there are banks.
    #[error(
        "event {event} (offset {offset}) has {found} digests; 1 to {announced} are possible: \
         {NEWER_FIRMWARE}"
    )]
    DigestCount {
        /// The event.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// Digests stated.
        found: u32,
        /// Banks announced.
        announced: usize,
    },
    /// Nothing at all.
    #[error(
        "the log is empty: the firmware wrote none, or the kernel found none (does it know the \
         TPM since its start?)"
    )]
    Empty,
    /// A log area that nothing was written to.
    #[error(
        "the log is nothing but bytes 0x{byte:02x}: an area that no firmware wrote to, and no log"
    )]
    Filler {
        /// What it is filled with.
        byte: u8,
    },
    /// Bytes that are no event, among events.
    #[error(
        "what stands at event {event} (offset {offset}) is no event, and other bytes follow: take \
         the log again; if it stays so, {NEWER_FIRMWARE}"
    )]
    NoEvent {
        /// The event.
        event: usize,
        /// Where it starts.
        offset: usize,
    },
    /// A PCR that no TPM has.
    #[error(
        "event {event} (offset {offset}) names PCR {pcr}, and there are {PCR_COUNT}: it is no \
         event; take the log again; if it stays so, {NEWER_FIRMWARE}"
    )]
    Pcr {
        /// The event.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// The number found.
        pcr: u32,
    },
    /// A note about the locality of `TPM2_Startup` that cannot be, or one that says otherwise than
    /// one before.
    #[error(
        "event {event} (offset {offset}) notes a startup locality that is impossible, or another \
         than was noted before: {NEWER_FIRMWARE}"
    )]
    StartupLocality {
        /// The event.
        event: usize,
        /// Where it starts.
        offset: usize,
    },
    /// What a tool made of a log.
    #[error(
        "it is a text: give the log as firmware wrote it, which Linux has in \
         /sys/kernel/security/tpm0/binary_bios_measurements"
    )]
    Text,
    /// Longer than any log.
    #[error("{length} bytes are more than an event log can have ({MAX_LOG})")]
    TooLong {
        /// Number of bytes given.
        length: usize,
    },
    /// More events than any boot has.
    #[error("the log has more than {MAX_EVENTS} events: shorten what the boot loader measures")]
    TooManyEvents,
    /// The bytes end within an event.
    #[error(
        "the log ends within event {event} (offset {offset}): {needed} more bytes are needed, \
         {left} are left; take the log again, whole; if it stays so, the firmware's log area was \
         too small: {NEWER_FIRMWARE}"
    )]
    Truncated {
        /// The event.
        event: usize,
        /// Where it starts.
        offset: usize,
        /// Length of the next field.
        needed: usize,
        /// Bytes left.
        left: usize,
    },
}

/// The algorithm registry has eight hash algorithms for PCR banks (SHA-1, SHA-2, SM3, SHA-3).
pub(super) const MAX_ALGORITHMS: u32 = 16;

/// What helps where a log is not as the profile wants it.
const NEWER_FIRMWARE: &str =
    "the log is not as firmware must write it (TCG PFP §10); newer firmware may";
