//! The harness: starts the project's programs and real peers (swtpm as the physical TPM, QEMU
//! with a Debian kernel) and watches over them, for the end-to-end tests and for the demo.
//!
//! Each test owns its peers, its sockets and its folder ([`test_support::run_folder::RunFolder`]); everything
//! a run started ends with it, also when the test process is killed.

pub mod accelerator;
pub mod bare_vm;
pub mod bench;
pub mod chromium;
pub mod contrast;
pub mod dashboard;
pub mod demo;
pub mod device;
pub mod device_proxy;
pub mod fake_manager;
pub mod format_judge;
pub mod fuzzing;
pub mod guest;
pub mod guest_image;
pub mod guest_shell;
pub mod host;
pub mod host_boot_log;
pub mod issuer;
pub mod libvirt;
pub mod libvirt_daemon;
pub mod monitor;
pub mod narrator;
pub mod proxied_vm;
pub mod registers;
pub mod scene;
pub mod vmm;
