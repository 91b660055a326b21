//! Certificates of vRoTs: issued for the first time, renewed, put back.

pub(super) mod issuance;
pub(super) mod renewal;
pub(super) mod restoration;
