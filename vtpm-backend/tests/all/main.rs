//! A backend as a process, with swtpm as the measure. One binary, so that the tests run beside each
//! other on all processors: each test has processes and folders of its own, and what has to be
//! tried from inside a confined process is tried by this program run once more.

mod carried;
mod control_channel;
mod crosvm;
mod differential;
mod faults;
mod full_tpm;
mod host_quotes;
mod key_memory;
mod log;
mod loss_of_power;
mod managed;
mod random_commands;
mod random_queues;
mod restarted_manager;
mod sandbox;
mod shutdown_orders;
mod slow_commands;
mod spawned_backend;
mod swtpm_places;
mod virtio_tpm;
mod volatile_state;
mod zygote;

#[path = "../support/mod.rs"]
mod support;
