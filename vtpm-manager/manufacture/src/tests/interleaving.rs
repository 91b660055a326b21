//! A guest that sends a command of its own between any two of the manager's.

use std::io;

use anyhow::{Context, Result};
use cert_chain::layout::NvIndex;

use super::socket::TpmSocket;
use super::{Guest, rederived};
use crate::{
    Chain, CommandChannel, Guest as Occupant, RenewedBesides, renew, restore, tls_template,
    vik_template,
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
    for index in [
        NvIndex::EK_P256_CERTIFICATE,
        NvIndex::VIK_CERTIFICATE,
        NvIndex::TLS_CERTIFICATE,
    ] {
        let mut riding = Riding {
            manager: &mut manager,
            index,
            attempts: 0,
            written: false,
        };
        renew(
            &guest.order,
            &vik,
            &RenewedBesides::default(),
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

fn published(guest: &Guest) -> Vec<(NvIndex, Vec<u8>)> {
    let certificates = (guest.made.certificates().into_iter())
        .map(|(index, certificate)| (index, certificate.to_vec()));
    certificates
        .chain([
            (
                NvIndex::CERTIFICATE_CHAIN,
                guest.order.host_certificate.clone(),
            ),
            (NvIndex::VIK_TEMPLATE, vik_template()),
            (NvIndex::TLS_TEMPLATE, tls_template()),
        ])
        .collect()
}

#[test]
fn what_was_altered_in_the_certificate_indices_is_put_back_and_named() -> Result<()> {
    let guest = Guest::new()?;
    let authority = &guest.made.nv_authority;
    let mut channel = guest.channel()?;
    let as_made = published(&guest);
    let indices = [
        NvIndex::TLS_CERTIFICATE,
        NvIndex::EK_RSA_CERTIFICATE,
        NvIndex::CERTIFICATE_CHAIN,
    ];
    for occupant in [Occupant::Present, Occupant::Absent] {
        assert_eq!(restore(&as_made, authority, &mut channel, occupant)?, []);
        let mut altered = published(&guest);
        for (_, content) in altered
            .iter_mut()
            .filter(|(index, _)| indices.contains(index))
        {
            *content.last_mut().context("a byte")? ^= 1;
        }
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
    for (index, content) in [
        ("0x01c00002", &guest.made.ek_certificates[0]),
        ("0x01c10004", &guest.made.tls_certificate),
    ] {
        guest.tpm.tool(&format!("tpm2_nvread {index} -o read"))?;
        assert_eq!(guest.tpm.read("read")?, &**content);
    }
    Ok(())
}

#[test]
fn all_keys_get_new_certificates_beside_a_guest_and_without_one() -> Result<()> {
    let guest = Guest::new()?;
    let mut channel = guest.channel()?;
    let vik = rederived(&mut channel, &guest.made.vik.name())?;
    let besides = RenewedBesides {
        tls: Some(guest.made.tls.clone()),
        eks: Some(guest.made.eks.clone()),
    };
    for occupant in [Occupant::Present, Occupant::Absent] {
        let renewed = renew(
            &guest.order,
            &vik,
            &besides,
            &guest.made.nv_authority,
            &mut channel,
            &guest.host.ik,
            (occupant, Chain::Same),
        )?;
        let tls = renewed.tls.context("a certificate")?;
        let [rsa, p256] = renewed.eks.context("certificates")?;
        let contents: Vec<(NvIndex, Vec<u8>)> = [
            (NvIndex::VIK_CERTIFICATE, renewed.vik),
            (NvIndex::TLS_CERTIFICATE, tls),
            (NvIndex::EK_RSA_CERTIFICATE, rsa),
            (NvIndex::EK_P256_CERTIFICATE, p256),
        ]
        .map(|(index, certificate)| (index, certificate.to_vec()))
        .into();
        for content in &contents {
            assert!(!published(&guest).contains(content));
        }
        let authority = &guest.made.nv_authority;
        assert_eq!(restore(&contents, authority, &mut channel, occupant)?, []);
    }
    Ok(())
}
