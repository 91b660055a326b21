//! A TPM as a vhost-user device: a VMM shares its guest's memory, and the guest's driver puts
//! commands into a queue there.
//!
//! [`Frontend`] is what an event loop serves: one VMM's connection and one queue. It knows nothing of
//! the TPM but [`Tpm`], and nothing of what a request is but [`Device`], of which [`VirtioTpm`] is
//! one and [`VirtioI2c`] another.
//!
//! Of `vhost` come the messages, of `vhost-user-backend` the state of a ring, of `virtio-queue` the
//! chains, of `vm-memory` access to the guest's memory. The daemon of `vhost-user-backend` is not
//! used: it starts two threads for each connection, which a confined process may not, serves the
//! queue on one of them, so that the TPM would need a lock, ends that thread for good when a call
//! fails, and does not say who is at the other end. Here everything happens where
//! [`Frontend::serve_connection`] and [`Frontend::serve_queue`] are called, and nothing waits.
//!
//! **A guest cannot reset its TPM from here.** Reset of the device, of the queue, of the owner, the
//! end of a connection and a new one concern rings and memory alone: [`Tpm`] has no reset. Otherwise
//! a guest could forget what it measured by loading its driver again.

mod connection;
mod device;
mod eventfd;
mod frontend;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod memory;
mod protocol;
mod queue;
mod tis_i2c;
mod virtio_i2c;
mod virtio_tpm;

pub use connection::{Arrival, ConnectionError};
pub use device::{Device, Execution, Request, Tpm};
pub use frontend::{Frontend, Kick};
pub use virtio_i2c::VirtioI2c;
pub use virtio_tpm::VirtioTpm;
