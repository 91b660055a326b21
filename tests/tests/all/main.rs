//! The whole of it: programs of several crates, real machines and others' tools. One binary, so that
//! the tests run beside each other on all processors, and those that only look at a machine share
//! it.

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null, which no test expects; a panic is a failed test"
)]

mod attested_connections;
mod attested_vm;
mod bench_smoke;
mod commands_in_vm;
mod dashboard;
mod dashboard_access;
mod device_data;
mod devices;
mod documented_commands;
mod formats;
mod fuzz_smoke;
mod libvirt_hook;
mod libvirt_swtpm;
mod linux_guest;
mod manual;
mod measured;
mod moved_between_emulators;
mod output;
mod package;
mod packed;
mod peers;
mod refused_vms;
mod registers;
mod restored_store;
mod revoked_host;
mod run_command;
mod saved_vms;
mod sealed_data;
mod signed_data;
mod signed_stream;
mod stand_alone_backend;
mod tenant_evidence;
mod tpm_relay;
mod unreachable_service;
mod virtio_i2c;
