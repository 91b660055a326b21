//! Failures on the way to a vRoT: what breaks is named, and nothing half-made is handed out.

use std::io;

use anyhow::{Context, Result};
use test_support::Swtpm;
use tpm_wire::Header;

use super::Host;
use super::socket::TpmSocket;
use crate::{CommandChannel, ManufactureError, manufacture};

/// A real TPM, one of whose responses is tampered with.
struct Tampered<F> {
    tpm: TpmSocket,
    tamper: F,
}

impl<F: FnMut(u32, &mut Vec<u8>) -> io::Result<()>> CommandChannel for Tampered<F> {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let code = Header::parse(command)
            .ok_or(io::ErrorKind::InvalidInput)?
            .code;
        let mut response = self.tpm.execute(command)?;
        (self.tamper)(code, &mut response)?;
        Ok(response)
    }
}

/// Manufactures through a channel whose responses `tamper` sees, with the command's code.
fn failing(tamper: impl FnMut(u32, &mut Vec<u8>) -> io::Result<()>) -> Result<ManufactureError> {
    let swtpm = Swtpm::blank()?;
    let host = Host::new()?;
    let mut channel = Tampered {
        tpm: TpmSocket::connect(&swtpm.socket())?,
        tamper,
    };
    let made = manufacture(&host.order()?, &mut channel);
    drop(channel);
    made.err().context("manufactured all the same")
}

const GET_CAPABILITY: u32 = 0x17a;
const NV_WRITE: u32 = 0x137;
const NV_READ: u32 = 0x14e;
const CREATE_PRIMARY: u32 = 0x131;

#[test]
fn an_error_of_the_vrot_names_the_command() -> Result<()> {
    let error = failing(|code, response| {
        if code == NV_WRITE {
            *response = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1].to_vec();
        }
        Ok(())
    })?;
    let text = error.to_string();
    assert!(
        text.starts_with("TPM2_NV_Write failed in the vRoT with 0x101 (TPM_RC_FAILURE)"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_busy_vrot_is_asked_again_but_not_for_ever() -> Result<()> {
    const BUSY: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x22];
    let swtpm = Swtpm::blank()?;
    let host = Host::new()?;
    let mut busy = 3;
    let mut channel = Tampered {
        tpm: TpmSocket::connect(&swtpm.socket())?,
        tamper: |code, response: &mut Vec<u8>| {
            if code == GET_CAPABILITY && busy > 0 {
                busy -= 1;
                *response = BUSY.to_vec();
            }
            Ok(())
        },
    };
    manufacture(&host.order()?, &mut channel)?;
    drop(channel);

    let mut asked = 0;
    let error = failing(|code, response| {
        if code == GET_CAPABILITY {
            asked += 1;
            *response = BUSY.to_vec();
        }
        Ok(())
    })?;
    assert!(error.to_string().contains("TPM_RC_RETRY"), "{error}");
    assert_eq!(asked, 7);
    Ok(())
}

#[test]
fn a_broken_connection_names_the_command_under_way() -> Result<()> {
    let error = failing(|code, _| match code {
        CREATE_PRIMARY => Err(io::ErrorKind::BrokenPipe.into()),
        _ => Ok(()),
    })?;
    let text = error.to_string();
    assert!(text.starts_with("TPM2_CreatePrimary: "), "{text}");
    Ok(())
}

#[test]
fn what_is_read_back_must_be_what_was_written() -> Result<()> {
    let error = failing(|code, response| {
        if code == NV_READ
            && let Some(byte) = response.get_mut(40)
        {
            *byte ^= 1;
        }
        Ok(())
    })?;
    assert!(
        matches!(error, ManufactureError::ReadBack { .. }),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_response_cut_short_is_no_panic() -> Result<()> {
    for length in 0..40 {
        let error = failing(|code, response| {
            if code == CREATE_PRIMARY {
                response.truncate(length);
            }
            Ok(())
        })?;
        assert!(
            matches!(error, ManufactureError::Response { .. }),
            "{length}: {error}"
        );
    }
    Ok(())
}

#[test]
fn a_vrot_that_was_used_before_is_not_manufactured_again() -> Result<()> {
    let swtpm = Swtpm::blank()?;
    let host = Host::new()?;
    let mut channel = TpmSocket::connect(&swtpm.socket())?;
    manufacture(&host.order()?, &mut channel)?;
    let again = manufacture(&host.order()?, &mut channel).err();
    let text = again.context("manufactured twice")?.to_string();
    assert!(text.contains("something is there already"), "{text}");
    Ok(())
}
