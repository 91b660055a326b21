//! Which PCR banks of a vRoT are active.

use cert_chain::HashAlgorithm;

use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;

/// Has these PCR banks active, and no others, from the next time on that the vRoT is switched on; whether
/// that changes anything. No guest may be there. Blocks.
pub fn activate_banks(
    active: &[HashAlgorithm],
    channel: &mut dyn CommandChannel,
) -> Result<bool, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;
    let is_wanted = |bank: u16| active.iter().any(|wanted| wanted.identifier() == bank);
    let mut banks = tpm.banks()?;
    let mut changes = false;
    for bank in &mut banks {
        changes |= bank.is_active != is_wanted(bank.algorithm);
        bank.is_active = is_wanted(bank.algorithm);
    }
    if changes {
        tpm.allocate(&banks)?;
    }
    Ok(changes)
}
