//! A guest that sends a command of its own between any two of the manager's.

use std::io;

use anyhow::{Context, Result};
use cert_chain::layout::NvIndex;

use super::socket::TpmSocket;
use super::{Guest, rederived};
use crate::{
    Chain, CommandChannel, Guest as Occupant, Published, renew_ek_certificates,
    renew_vik_certificate, restore,
};

/// Lets the guest in after each command that completes a policy, as if it were never told to wait.
struct Riding<'c> {
    manager: &'c mut TpmSocket,
    index: NvIndex,
    attempts: u32,
    written: bool,
}

const TPM_CC_POLICY_OR: [u8; 4] = [0, 0, 0x01, 0x71];
const TPM_CC_NV_WRITE: [u8; 4] = [0, 0, 0x01, 0x37];
const FORGED: &[u8] = b"forged";

impl CommandChannel for Riding<'_> {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let response = self.manager.execute(command)?;
        if command.get(6..10) == Some(&TPM_CC_POLICY_OR) {
            let session = command.get(10..14).unwrap_or_default();
            let forged = self.manager.execute(&write(self.index, session))?;
            self.attempts += 1;
            self.written |= forged.get(6..10) == Some(&[0; 4]);
        }
        Ok(response)
    }
}

/// `TPM2_NV_Write` in a session of somebody else, without an HMAC.
fn write(index: NvIndex, session: &[u8]) -> Vec<u8> {
    let index = index.handle().to_be_bytes();
    let rest = [
        &TPM_CC_NV_WRITE[..],
        &index,
        &index,
        &9_u32.to_be_bytes(),
        session,
        &[0, 0, 1, 0, 0],
        &[0, 6],
        FORGED,
        &[0, 0],
    ]
    .concat();
    let size = u32::try_from(rest.len() + 6).unwrap_or_default();
    [&[0x80, 0x02][..], &size.to_be_bytes(), &rest].concat()
}

#[test]
fn a_guest_gains_nothing_from_the_managers_session() -> Result<()> {
    let guest = Guest::new()?;
    let mut manager = guest.channel()?;
    let vik = rederived(&mut manager, &guest.made.vik.name())?;
    for index in [NvIndex::EK_P256_CERTIFICATE, NvIndex::VIK_CERTIFICATE] {
        let mut riding = Riding {
            manager: &mut manager,
            index,
            attempts: 0,
            written: false,
        };
        renew_vik_certificate(
            &guest.order,
            &vik,
            &guest.made.nv_authority,
            &mut riding,
            &guest.host.ik,
            (Occupant::Present, Chain::Changed),
        )?;
        assert!(riding.attempts >= 2, "{}", riding.attempts);
        assert!(!riding.written, "0x{:08x}", index.handle());
    }
    Ok(())
}

fn published(guest: &Guest) -> Published {
    Published {
        ek_rsa_certificate: Some(guest.made.ek_rsa_certificate.to_vec()),
        ek_p256_certificate: Some(guest.made.ek_p256_certificate.to_vec()),
        host_certificate: guest.order.host_certificate.clone(),
        vik_certificate: Some(guest.made.vik_certificate.to_vec()),
    }
}

#[test]
fn what_was_altered_in_the_certificate_indices_is_put_back_and_named() -> Result<()> {
    let guest = Guest::new()?;
    let authority = &guest.made.nv_authority;
    let mut channel = guest.channel()?;
    let as_made = published(&guest);
    for occupant in [Occupant::Present, Occupant::Absent] {
        assert_eq!(restore(&as_made, authority, &mut channel, occupant)?, []);
        let mut altered = published(&guest);
        let ek_rsa = (altered.ek_rsa_certificate.as_mut()).context("a certificate")?;
        for certificate in [ek_rsa, &mut altered.host_certificate] {
            *certificate.last_mut().context("a byte")? ^= 1;
        }
        let indices = [NvIndex::EK_RSA_CERTIFICATE, NvIndex::CERTIFICATE_CHAIN];
        assert_eq!(
            restore(&altered, authority, &mut channel, occupant)?,
            indices
        );
        assert_eq!(
            restore(&as_made, authority, &mut channel, occupant)?,
            indices
        );
    }
    drop(channel);
    guest.tpm.tool("tpm2_nvread 0x01c00002 -o read")?;
    assert_eq!(guest.tpm.read("read")?, &*guest.made.ek_rsa_certificate);
    Ok(())
}

#[test]
fn endorsement_keys_get_new_certificates_beside_a_guest_and_without_one() -> Result<()> {
    let guest = Guest::new()?;
    let mut channel = guest.channel()?;
    for occupant in [Occupant::Present, Occupant::Absent] {
        let [rsa, p256] = renew_ek_certificates(
            &guest.order,
            [&guest.made.ek_rsa, &guest.made.ek_p256],
            &guest.made.nv_authority,
            &mut channel,
            &guest.host.ik,
            occupant,
        )?;
        assert_ne!(rsa, guest.made.ek_rsa_certificate);
        let mut renewed = published(&guest);
        renewed.ek_rsa_certificate = Some(rsa.to_vec());
        renewed.ek_p256_certificate = Some(p256.to_vec());
        let authority = &guest.made.nv_authority;
        assert_eq!(restore(&renewed, authority, &mut channel, occupant)?, []);
    }
    Ok(())
}
