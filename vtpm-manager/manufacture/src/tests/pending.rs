//! What stands in the indices before there are certificates, and while they are written.

use anyhow::{Result, ensure};
use cert_chain::layout::NvIndex;
use test_support::Swtpm;

use super::socket::TpmSocket;
use super::{Guest, Host};
use crate::command::Tpm;
use crate::nv::{self, MAX_CHUNK};
use crate::{
    Chain, CommandChannel, Uncertified, device, issue_eks, issue_tls, issue_vik, manufacture,
    withdraw, write_certificates,
};

const CERTIFICATES: [&str; 4] = ["0x01c00002", "0x01c0000a", "0x01c10002", "0x01c10004"];

#[test]
fn stock_tools_find_no_certificate_before_it_is_issued_and_all_of_it_afterwards() -> Result<()> {
    let (tpm, host) = (Swtpm::blank()?, Host::new()?);
    let order = host.order()?;
    let made = manufacture(&order, &mut TpmSocket::connect(&tpm.socket())?)?;
    tpm.switch_off()?;
    tpm.switch_on()?;
    for index in CERTIFICATES {
        let refused = tpm.tool_fails(&format!("tpm2_nvread {index} -o read"))?;
        ensure!(
            refused.contains("0x14a") || refused.contains("0x14A"),
            "{refused}"
        );
    }
    let mut channel = TpmSocket::connect(&tpm.socket())?;
    let vik = issue_vik(&order, &made.vik, &host.ik)?;
    let tls = issue_tls(&order, &made.tls, &host.ik)?;
    let device = device(&mut channel)?;
    let [rsa, p256] = issue_eks(&order, &[made.ek_rsa, made.ek_p256], device, &host.ik)?;
    let certificates = [
        (NvIndex::EK_RSA_CERTIFICATE, rsa),
        (NvIndex::EK_P256_CERTIFICATE, p256),
        (NvIndex::VIK_CERTIFICATE, vik),
        (NvIndex::TLS_CERTIFICATE, tls),
    ];
    write_certificates(&certificates, &made.nv_authority, &mut channel)?;
    drop(channel);
    for (index, (_, certificate)) in CERTIFICATES.iter().zip(&certificates) {
        tpm.tool(&format!("tpm2_nvread {index} -o read"))?;
        assert_eq!(tpm.read("read")?, &**certificate, "no padding in {index}");
    }
    Ok(())
}

#[test]
fn a_certificate_for_another_vm_is_gone_before_the_vm_can_read_it() -> Result<()> {
    let guest = Guest::new()?;
    let mut order = guest.order.clone();
    order.subject.vm = cert_chain::VmId::random();
    order.subject.tenant = "a-tenant-with-a-longer-name".parse()?;
    let mut channel = guest.channel()?;
    let authority = &guest.made.nv_authority;
    let uncertified = Uncertified {
        vik: Some(guest.made.vik.clone()),
        tls: Some(guest.made.tls.clone()),
        eks: None,
    };
    // Twice: the second time there is nothing to do.
    for _ in 0..2 {
        withdraw(&order, &uncertified, authority, &mut channel, Chain::Same)?;
    }
    drop(channel);
    for index in ["0x01c10002", "0x01c10004"] {
        let refused = guest
            .tpm
            .tool_fails(&format!("tpm2_nvread {index} -o read"))?;
        ensure!(refused.to_lowercase().contains("0x14a"), "{refused}");
    }
    // What is not withdrawn stays.
    guest.tpm.tool("tpm2_nvread 0x01c00002 -o read")?;

    let mut channel = guest.channel()?;
    let signer = &guest.host.ik;
    let contents = [
        (
            NvIndex::VIK_CERTIFICATE,
            issue_vik(&order, &guest.made.vik, signer)?,
        ),
        (
            NvIndex::TLS_CERTIFICATE,
            issue_tls(&order, &guest.made.tls, signer)?,
        ),
    ];
    write_certificates(&contents, authority, &mut channel)?;
    drop(channel);
    for (index, (_, certificate)) in ["0x01c10002", "0x01c10004"].iter().zip(&contents) {
        guest.tpm.tool(&format!("tpm2_nvread {index} -o read"))?;
        assert_eq!(
            guest.tpm.read("read")?,
            &**certificate,
            "padding in {index}"
        );
    }
    Ok(())
}

/// Ends after so many commands.
struct Cut {
    tpm: TpmSocket,
    left: usize,
}

impl CommandChannel for Cut {
    fn execute(&mut self, command: &[u8]) -> std::io::Result<Vec<u8>> {
        self.left = (self.left.checked_sub(1)).ok_or(std::io::ErrorKind::BrokenPipe)?;
        self.tpm.execute(command)
    }
}

/// A certificate with long names takes two commands to write.
#[test]
fn at_whichever_command_writing_ends_an_index_holds_a_whole_certificate_or_none() -> Result<()> {
    let guest = Guest::new()?;
    let [before, after] = [b'b', b'a'].map(|fill| {
        let mut certificate = vec![fill; MAX_CHUNK + 200];
        certificate.splice(..4, [0x30, 0x82, 0x04, 0xc4]);
        certificate
    });
    let authority = &guest.made.nv_authority;
    let index = NvIndex::VIK_CERTIFICATE;
    let mut channel = guest.channel()?;
    nv::republish(&mut Tpm::new(&mut channel), authority, index, &before)?;
    drop(channel);
    let contents = [(index, after.clone().into())];
    let mut found_none = 0;
    for left in 0..100 {
        let tpm = guest.channel()?;
        let mut channel = Cut { tpm, left };
        let written = write_certificates(&contents, authority, &mut channel);
        drop(channel);
        guest.tpm.tool("tpm2_flushcontext -l")?;
        guest.tpm.tool("tpm2_nvread 0x01c10002 -o read")?;
        let found = guest.tpm.read("read")?;
        let is_whole = found == before || found == after;
        found_none += usize::from(!is_whole);
        ensure!(
            is_whole || found.starts_with(&[0xff; 4]),
            "after {left} commands: {}",
            hex::encode(found)
        );
        if written.is_ok() {
            ensure!(found == after && found_none > 0, "{left} commands");
            return Ok(());
        }
    }
    anyhow::bail!("it is never written")
}
