//! Texts that are shown and that are not, and keys that confirm and that do not.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod format;
mod keys;
mod rendering;
mod revocation;
mod scene;
mod texts;
