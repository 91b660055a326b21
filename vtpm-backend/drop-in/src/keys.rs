//! Keys from where an option says (`--key`, `--migration-key`).

use std::fs::{self, File};

use anyhow::{Context, Result};
use swtpm_state::{Key, KeyOptions, KeySource};

use crate::descriptors;

/// Reads a key. Its file is removed afterwards, if that is asked for.
pub(crate) fn read(options: &KeyOptions) -> Result<Key> {
    match &options.source {
        KeySource::Descriptor(number) => {
            let key = options.read(File::from(descriptors::take(*number)?));
            key.with_context(|| format!("descriptor {number} holds no key that can be used"))
        }
        KeySource::File(path) => {
            let shown = path.display();
            let file = File::open(path).with_context(|| format!("{shown} cannot be opened"))?;
            let key = options.read(file);
            let key = key.with_context(|| format!("{shown} holds no key that can be used"))?;
            if options.remove {
                fs::remove_file(path).with_context(|| format!("{shown} cannot be removed"))?;
            }
            Ok(key)
        }
    }
}
