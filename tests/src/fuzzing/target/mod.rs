//! The fuzz targets: each feeds one parser that reads what an attacker may write.

mod archives;
mod certificates;
mod confirmation;
mod connection;
mod connection_evidence;
mod devices;
mod evidence;
mod guest;
mod logs;
mod sealing;
mod signed;
mod swtpm;
mod virtio_i2c;

use anyhow::Result;

/// A parser under attack.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Feeds it; must return for any input, without a panic.
    pub run: fn(&[u8]),
    /// Real inputs to begin with.
    pub seeds: fn() -> Result<Vec<Vec<u8>>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    archives::ARCHIVE,
    archives::EVIDENCE_RECORD,
    archives::RECORDS,
    archives::SINGLE_RECORD,
    certificates::CHAIN,
    certificates::EK_CERTIFICATE,
    certificates::EK_CHAIN,
    certificates::ENROLMENT,
    certificates::HOST_CERTIFICATE,
    certificates::PUBLIC_AREA,
    certificates::REVOCATION_LIST,
    certificates::ROOTS,
    certificates::VIK_CERTIFICATE,
    confirmation::CONFIRMATION,
    confirmation::REQUEST,
    connection::FRAMES,
    connection::MESSAGES,
    connection_evidence::EVIDENCE,
    connection_evidence::TLS_CERTIFICATE,
    devices::CERTIFICATE,
    devices::ENROLMENT,
    devices::EVIDENCE,
    devices::POLICY,
    evidence::EVIDENCE,
    evidence::EVIDENCE_SET,
    evidence::HOST_LAYER,
    evidence::HOST_LEAF,
    evidence::POLICY,
    guest::CAPABILITY,
    guest::COMMAND_HEADER,
    guest::CONTROL_CHANNEL,
    guest::MESSAGE,
    guest::VENDOR_COMMAND,
    guest::VIRTIO_QUEUE,
    logs::EVENT_LOG,
    logs::USERSPACE_LOG,
    sealing::SEALED_DATA,
    signed::POSITION,
    signed::READING,
    signed::SIGNED_DATA,
    signed::STREAM,
    swtpm::KEY,
    swtpm::LINEAR_STORE,
    swtpm::STATE_FILE,
    virtio_i2c::VIRTIO_I2C,
];

/// The target with a name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
