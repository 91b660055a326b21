//! `vrot-confirm enrol`: a person sets a PIN, and the TPM makes a key that it opens.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cert_chain::{AttestationKey, ConfirmationKey, PublicArea, TpmName};
use tss_context::TpmAddress;

use crate::key_file::KeyFile;
use crate::pin::Pin;
use crate::terminal::{Input, Key, Terminal};
use crate::tpm::ConfirmTpm;

const PATIENCE: Duration = Duration::from_secs(300);

/// Takes a PIN twice and makes the key; returns its name.
pub(crate) fn enrol(terminal: &mut impl Terminal, tpm: &TpmAddress, out: &Path) -> Result<TpmName> {
    ensure!(
        !out.exists(),
        "{} is there already: its key is not replaced. Remove it if nobody needs it any more",
        out.display()
    );
    ConfirmTpm::open(tpm)?.check_lockout()?;
    terminal.forget_input()?;
    let first = typed(terminal, "Set a PIN, then press Enter: ")?;
    first.check()?;
    let second = typed(terminal, "Once more, then press Enter: ")?;
    ensure!(
        first.is_same(&second),
        "the two PINs differ: nothing was made"
    );
    let file = ConfirmTpm::open(tpm)?.enrol(&first)?;
    let name = check(&file).context("what the TPM made is not what it was asked for")?;
    file.make(out)
        .with_context(|| format!("{} cannot be written", out.display()))?;
    Ok(name)
}

/// As a verifier will look at it.
fn check(file: &KeyFile) -> Result<TpmName> {
    let identity = PublicArea::parse(&file.identity_key)?;
    let identity = AttestationKey::try_from(identity)?;
    Ok((file.statement.verify::<ConfirmationKey>(&identity)?).name())
}

fn typed(terminal: &mut impl Terminal, prompt: &str) -> Result<Pin> {
    let until = Instant::now() + PATIENCE;
    let mut pin = Pin::new()?;
    terminal.show(prompt)?;
    loop {
        match terminal.key(until, None)? {
            Input::Key(Key::Enter) => return Ok(pin),
            Input::Key(Key::Character(byte)) => pin.push(byte),
            Input::Key(Key::Back) => pin.pop(),
            Input::Key(Key::Decline) => bail!("nothing was made"),
            Input::Key(_) => {}
            Input::AskerGone | Input::Late => bail!("nobody set a PIN in time: nothing was made"),
        }
    }
}
