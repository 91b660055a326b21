//! vRoTs in the making, and those that were made ahead.

pub(super) mod manufacturing;
pub(super) mod pool;
