//! What the program says of itself and of a state, in JSON for its callers.

use anyhow::{Context, Result};
use program_output::console::print;
use serde_json::{Value, json};
use swtpm_state::{StateKind, StateStore, StoreOptions};
use vtpm_backend::engine::{Engine, Libtpms};
use vtpm_backend::server::load_state;
use vtpm_backend::stand_alone::LocalState;

use super::command_line::Socket;

/// What is announced. Of what swtpm 0.10.2 announces, `tpm-1.2` and `tpm-send-command-header` are
/// missing because they are not offered.
const FEATURES: [&str; 13] = [
    "tpm-2.0",
    "flags-opt-startup",
    "flags-opt-disable-auto-shutdown",
    "ctrl-opt-terminate",
    "cmdarg-seccomp",
    "cmdarg-key-fd",
    "cmdarg-pwd-fd",
    "cmdarg-print-states",
    "cmdarg-chroot",
    "cmdarg-migration",
    "nvram-backend-dir",
    "nvram-backend-file",
    "tpmstate-opt-lock",
];
/// Who reads this asks for a state's profile, and does without a TPM that has none (libvirt since
/// 10.10).
const PRINT_INFO: &str = "cmdarg-print-info";

/// `TPMLIB_INFO_TPMFEATURES`
const INFO_FEATURES: u64 = 4;
/// `TPMLIB_INFO_AVAILABLE_PROFILES`
const INFO_PROFILES: u64 = 0x40;

/// `--print-capabilities`
pub(super) fn capabilities(of_a_tpm2: bool) -> Result<()> {
    let mut features: Vec<String> = FEATURES.map(str::to_owned).into();
    // The state of an anchored TPM is nothing that could be asked here.
    let is_plain = crate::anchored::manager().is_ok_and(|manager| manager.is_none());
    if is_plain && has_profiles()? {
        features.push(PRINT_INFO.to_owned());
    }
    if of_a_tpm2 {
        let sizes = rsa_key_sizes()?;
        features.extend(sizes.iter().map(|size| format!("rsa-keysize-{size}")));
    }
    say(&json!({
        "type": "swtpm",
        "features": features,
        "profiles": {},
        "version": crate::SWTPM_VERSION,
    }))
}

/// How long RSA keys of this libtpms can be, in bits.
pub(crate) fn rsa_key_sizes() -> Result<Vec<u64>> {
    let info = described(&Libtpms::new()?, INFO_FEATURES)?;
    let sizes = info.pointer("/TPMFeatures/RSAKeySizes");
    let sizes = sizes.and_then(Value::as_array);
    Ok(sizes
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .collect())
}

/// Whether this libtpms has profiles: from 0.10 on.
fn has_profiles() -> Result<bool> {
    let info = described(&Libtpms::new()?, INFO_PROFILES)?;
    let profiles = info.get("AvailableProfiles").and_then(Value::as_array);
    Ok(profiles.is_some_and(|profiles| !profiles.is_empty()))
}

/// What libtpms says of itself or of the state that it has.
fn described(engine: &Libtpms, flags: u64) -> Result<Value> {
    let info = engine.info(flags)?;
    serde_json::from_str(&info).context("libtpms describes itself in no JSON")
}

/// `--print-profiles`: the installed libtpms has none.
pub(super) fn profiles() -> Result<()> {
    say(&json!({ "AvailableProfiles": [] }))
}

/// `--print-states`
pub(super) fn states(socket: &Socket) -> Result<()> {
    let store = opened(socket)?;
    let mut states = Vec::new();
    for kind in StateKind::ALL {
        if let Some(size) = store.size(kind)? {
            states.push(json!({ "name": kind.name(), "size": size }));
        }
    }
    say(&json!({ "type": "swtpm", "states": states }))
}

/// `--print-info`
pub(super) fn info(socket: &Socket, flags: u64) -> Result<()> {
    let mut engine = Libtpms::new()?;
    load_state(&mut engine, &LocalState::new(opened(socket)?, None)?)?;
    say(&described(&engine, flags)?)
}

/// The state as it lies there: not locked, because its TPM may be running.
fn opened(socket: &Socket) -> Result<StateStore> {
    let (location, options) = socket.state()?;
    let options = StoreOptions {
        create: false,
        force_mode: false,
        ..options
    };
    let (key, _) = socket.keys()?;
    Ok(StateStore::open(&location, options, key)?)
}

fn say(value: &Value) -> Result<()> {
    Ok(print(&format!("{value}\n"))?)
}
