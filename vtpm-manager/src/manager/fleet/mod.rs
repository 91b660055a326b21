//! The vRoTs of this host's VMs: what runs, and what becomes of it.

pub(super) mod losses;
pub(super) mod orphans;
pub(super) mod takeover;
pub(super) mod transitions;
