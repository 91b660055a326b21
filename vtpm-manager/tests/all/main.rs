//! The manager, its command line and its issuer as processes, with swtpm as the physical TPM. One
//! binary, so that the tests run beside each other on all processors: each test has a host of its
//! own, and none of them changes this process (its environment, users, limits or folder).

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null, which no test expects; a panic is a failed test"
)]

mod announced_launches;
mod api;
mod approvals;
mod audit_parts;
mod audit_vouched;
mod busy_guests;
mod clock;
mod cloud_hypervisor;
mod doctor;
mod domains;
mod enrolment;
mod events;
mod foreign_descriptors;
mod full_disk;
mod handed_over;
mod handed_over_attacks;
mod host_evidence;
mod hung_peers;
mod imported;
mod killed;
mod killed_at_each_step;
mod launches;
mod lifecycle;
mod log;
mod lost_state;
mod monitoring;
mod opening;
mod operator_key;
mod out_of_reach;
mod packaged_unit;
mod pending;
mod planned_restart;
mod pool;
mod power_loss;
mod races;
mod recorded;
mod renewal;
mod revocation;
mod shipped_configuration;
mod shutdown;
mod support;
mod suspension;
mod taken_over;
mod tenant_client;
mod tenant_evidence;
mod tenant_sets;
mod tenant_tls;
mod tenants;
mod tls_key;
mod virtio;
mod vmm_users;
mod watch;
