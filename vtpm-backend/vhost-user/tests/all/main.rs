//! Devices as their drivers use them.

#![expect(clippy::expect_used, reason = "a failed expect is a failed test")]
#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod i2c_driver;
mod random_chains;
mod tis_i2c;
mod virtio_i2c;
