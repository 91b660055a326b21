//! How swtpm keeps states: with swtpm itself as the judge, and with what nobody should write.

mod beside_swtpm;
mod hostile;
mod keys;
mod linear_stores;
mod stores;
