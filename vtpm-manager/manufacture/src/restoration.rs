//! What a guest finds in the certificate indices, held against what the manager put there.
//!
//! Only the manager can write them. Should a fault let others write, or a state be damaged, the
//! guest must not be left with what was put there.

use cert_chain::layout::NvIndex;
use tpm_wire::ResponseCode;

use super::authority::NvAuthority;
use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::nv;
use super::renewal::Guest;

/// Puts back what is not as it should be, and returns the indices where that was so. `published` are
/// those that have content: one whose certificate is pending is left alone.
pub fn restore(
    published: &[(NvIndex, Vec<u8>)],
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
    guest: Guest,
) -> Result<Vec<NvIndex>, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    if guest == Guest::Absent {
        tpm.start_up()?;
    }
    let mut restored = Vec::new();
    for (index, content) in published {
        if !holds(&mut tpm, *index, content)? {
            guest.way_to_put()(&mut tpm, authority, *index, content)?;
            restored.push(*index);
        }
    }
    Ok(restored)
}

/// Whether an index has this content, and at most zeros behind it.
fn holds(tpm: &mut Tpm<'_>, index: NvIndex, content: &[u8]) -> Result<bool, ManufactureError> {
    match nv::read(tpm, index) {
        Ok(found) => Ok(found
            .strip_prefix(content)
            .is_some_and(|rest| rest.iter().all(|byte| *byte == 0))),
        Err(ManufactureError::Tpm { code, .. })
            if [ResponseCode::HANDLE, ResponseCode::NV_UNINITIALIZED]
                .contains(&code.without_position()) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
