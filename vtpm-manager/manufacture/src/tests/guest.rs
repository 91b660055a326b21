//! What a guest finds in its vRoT, and what it cannot do to it.

use anyhow::{Context, Result, ensure};
use cert_chain::{HostName, VikChain};
use rustls_pki_types::UnixTime;
use tpm_wire::Response;

use super::{Guest, rederived};
use crate::{
    Chain, CommandChannel, Guest as Occupant, ManufactureError, NvAuthority, RenewedBesides, renew,
    tls_template, vik_template,
};

const INDICES: [&str; 7] = [
    "0x01c00002",
    "0x01c0000a",
    "0x01c00100",
    "0x01c10002",
    "0x01c10003",
    "0x01c10004",
    "0x01c10005",
];

#[test]
fn stock_tools_read_every_certificate_with_any_authorization() -> Result<()> {
    let guest = Guest::new()?;
    let [rsa, p256] = &guest.made.ek_certificates;
    let expected: [&[u8]; 7] = [
        rsa,
        p256,
        &guest.order.host_certificate,
        &guest.made.vik_certificate,
        &vik_template(),
        &guest.made.tls_certificate,
        &tls_template(),
    ];
    for (index, expected) in INDICES.into_iter().zip(expected) {
        for authorization in ["", "-C o", "-C p"] {
            guest
                .tpm
                .tool(&format!("tpm2_nvread {authorization} {index} -o read"))?;
            assert_eq!(guest.tpm.read("read")?, expected, "{index} {authorization}");
        }
    }
    // The tool made for it finds them, and takes them for certificates.
    guest
        .tpm
        .tool("tpm2_getekcertificate -o rsa.crt -o p256.crt")?;
    assert_eq!(guest.tpm.read("rsa.crt")?, expected[0]);
    guest
        .tpm
        .tool("openssl x509 -inform der -in p256.crt -noout")?;
    Ok(())
}

#[test]
fn stock_tools_make_the_same_endorsement_keys() -> Result<()> {
    let guest = Guest::new()?;
    for (algorithm, ek) in ["rsa", "ecc"].into_iter().zip(&guest.made.eks) {
        guest
            .tpm
            .tool(&format!("tpm2_createek -G {algorithm} -c ek.ctx -u ek.pub"))?;
        guest.tpm.tool("tpm2_readpublic -c ek.ctx -n ek.name")?;
        assert_eq!(guest.tpm.read("ek.name")?, ek.name().as_bytes());
        guest.tpm.tool("tpm2_flushcontext -t")?;
    }
    Ok(())
}

#[test]
fn stock_tools_make_the_same_vik_and_quote_with_it() -> Result<()> {
    let guest = Guest::new()?;
    guest
        .tpm
        .tool("tpm2_readpublic -c 0x81000003 -n kept.name -f pem -o vik.pem")?;
    assert_eq!(
        guest.tpm.read("kept.name")?,
        guest.made.vik.name().as_bytes()
    );
    guest.tpm.tool(
        "tpm2_createprimary -C e -g sha256 -G ecc256:ecdsa-sha256:null -c vik.ctx -a \
         fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign",
    )?;
    guest.tpm.tool("tpm2_readpublic -c vik.ctx -n made.name")?;
    assert_eq!(
        guest.tpm.read("made.name")?,
        guest.made.vik.name().as_bytes()
    );
    guest
        .tpm
        .tool("tpm2_quote -c 0x81000003 -l sha256:0 -q 0102 -m m -s s")?;
    guest
        .tpm
        .tool("tpm2_checkquote -u vik.pem -m m -s s -g sha256 -q 0102")?;
    Ok(())
}

#[test]
fn stock_tools_make_the_same_tls_key_which_signs_what_it_is_given_and_the_vik_certifies()
-> Result<()> {
    let guest = Guest::new()?;
    guest
        .tpm
        .tool("tpm2_readpublic -c 0x81000004 -n kept.name -f pem -o tls.pem")?;
    let name = guest.made.tls.name();
    assert_eq!(guest.tpm.read("kept.name")?, name.as_bytes());
    guest.tpm.tool(
        "tpm2_createprimary -C e -g sha256 -G ecc256:ecdsa-sha256:null -c tls.ctx -a \
         fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign",
    )?;
    guest.tpm.tool("tpm2_readpublic -c tls.ctx -n made.name")?;
    assert_eq!(guest.tpm.read("made.name")?, name.as_bytes());
    guest.tpm.write("said", b"a handshake")?;
    guest
        .tpm
        .tool("tpm2_sign -c 0x81000004 -g sha256 -f plain -o signed said")?;
    guest
        .tpm
        .tool("openssl dgst -sha256 -verify tls.pem -signature signed said")?;
    guest.tpm.tool("tpm2_flushcontext -t")?;
    guest
        .tpm
        .tool("tpm2_certify -c 0x81000004 -C 0x81000003 -g sha256 -o statement -s signature")?;
    let statement = hex::encode(guest.tpm.read("statement")?);
    ensure!(
        statement.contains(&hex::encode(name.as_bytes())),
        "{statement}"
    );
    Ok(())
}

#[test]
fn the_certificates_lead_to_the_issuer_and_name_vm_and_host() -> Result<()> {
    let guest = Guest::new()?;
    guest.tpm.tool("tpm2_nvread 0x01c10002 -o vik.crt")?;
    guest.tpm.tool("tpm2_nvread 0x01c00100 -o chain.crt")?;
    let chain =
        VikChain::from_der_list(&[guest.tpm.read("vik.crt")?, guest.tpm.read("chain.crt")?])?;
    let verified = chain.verify(&guest.host.roots, UnixTime::now())?;
    assert_eq!(verified.claims().vm, guest.order.subject.vm);
    assert_eq!(verified.claims().vrot, guest.order.subject.vrot);
    assert_eq!(verified.claims().vik, guest.made.vik.name());
    assert_eq!(verified.host(), &"host-1.demo.example".parse::<HostName>()?);
    Ok(())
}

#[test]
fn the_guest_can_neither_change_nor_remove_them() -> Result<()> {
    let guest = Guest::new()?;
    guest.tpm.write("forged", b"forged")?;
    for index in INDICES.into_iter().chain(["0x01c10100"]) {
        for authorization in ["", "-C o", "-C p"] {
            guest
                .tpm
                .tool_fails(&format!("tpm2_nvwrite {authorization} {index} -i forged"))?;
        }
        guest
            .tpm
            .tool_fails(&format!("tpm2_nvundefine -C o {index}"))?;
        // The stock tool does not even send this for the platform, whose hierarchy is open
        // here, as with a firmware that does not close it.
        assert_eq!(undefine_by_platform(&guest, index)?, 0x82, "{index}");
        // Nor does the platform's authorization help together with what a guest can know of the
        // policy.
        guest
            .tpm
            .tool("tpm2_startauthsession --policy-session -S s.ctx")?;
        guest
            .tpm
            .tool("tpm2_policycommandcode -S s.ctx TPM2_CC_NV_UndefineSpaceSpecial")?;
        guest
            .tpm
            .tool_fails(&format!("tpm2_nvundefine -C p -S s.ctx {index}"))?;
        guest.tpm.tool("tpm2_flushcontext s.ctx")?;
        guest
            .tpm
            .tool_fails(&format!("tpm2_nvwritelock -C o {index}"))?;
    }
    guest.tpm.tool("tpm2_clear -c p")?;
    guest.tpm.tool("tpm2_nvread 0x01c10002 -o read")?;
    assert_eq!(guest.tpm.read("read")?, &*guest.made.vik_certificate);
    Ok(())
}

/// `TPM2_NV_UndefineSpace` with the platform's empty authorization: the response code.
fn undefine_by_platform(guest: &Guest, index: &str) -> Result<u32> {
    let index = u32::from_str_radix(index.trim_start_matches("0x"), 16)?;
    let mut command = vec![0x80, 2, 0, 0, 0, 31, 0, 0, 1, 0x22, 0x40, 0, 0, 0x0c];
    command.extend_from_slice(&index.to_be_bytes());
    command.extend_from_slice(&[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 1, 0, 0]);
    let response = guest.channel()?.execute(&command)?;
    let response = Response::parse(&response).context("a response")?;
    // TPM_RC_ATTRIBUTES is 0x082.
    Ok(response.code().without_position().raw())
}

#[test]
fn the_manager_renews_the_certificate_while_the_guest_runs() -> Result<()> {
    let guest = Guest::new()?;
    let expected = guest.made.vik.name();
    let mut channel = guest.channel()?;
    let vik = rederived(&mut channel, &expected)?;
    let besides = RenewedBesides {
        tls: Some(guest.made.tls.clone()),
        eks: None,
    };
    let renewed = renew(
        &guest.order,
        &vik,
        &besides,
        &guest.made.nv_authority,
        &mut channel,
        &guest.host.ik,
        (Occupant::Present, Chain::Same),
    )?;
    drop(channel);
    let tls = renewed.tls.context("a certificate of the TLS key")?;
    for (index, renewed, before) in [
        ("0x01c10002", &renewed.vik, &guest.made.vik_certificate),
        ("0x01c10004", &tls, &guest.made.tls_certificate),
    ] {
        assert_ne!(renewed, before);
        guest.tpm.tool(&format!("tpm2_nvread {index} -o read"))?;
        assert_eq!(guest.tpm.read("read")?, &**renewed, "padding in {index}");
    }
    for kind in ["handles-transient", "handles-loaded-session"] {
        assert_eq!(
            guest.tpm.tool(&format!("tpm2_getcap {kind}"))?,
            "",
            "{kind}"
        );
    }

    let mut channel = guest.channel()?;
    let refused = renew(
        &guest.order,
        &vik,
        &besides,
        &NvAuthority::from_bytes([1; 32]),
        &mut channel,
        &guest.host.ik,
        (Occupant::Present, Chain::Same),
    );
    let text = refused.err().context("renewed by a stranger")?.to_string();
    assert!(text.starts_with("TPM2_PolicySecret failed"), "{text}");
    Ok(())
}

/// CVE-2025-49707: a key of the administrator's where the identity key was.
#[test]
fn a_key_put_in_the_vik_s_place_is_not_certified() -> Result<()> {
    let guest = Guest::new()?;
    let expected = guest.made.vik.name();
    guest.tpm.tool("tpm2_evictcontrol -C o -c 0x81000003")?;
    guest
        .tpm
        .tool("tpm2_createprimary -C o -G ecc256:ecdsa-sha256:null -c own.ctx -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign")?;
    guest
        .tpm
        .tool("tpm2_evictcontrol -C o -c own.ctx 0x81000003")?;
    guest.tpm.tool("tpm2_flushcontext -t")?;
    let vik = rederived(&mut guest.channel()?, &expected)?;
    assert_eq!(
        vik.key().name(),
        expected,
        "the handle is not what is looked at"
    );

    let other = Guest::new()?;
    assert!(matches!(
        rederived(&mut other.channel()?, &expected),
        Err(ManufactureError::AnotherVik { .. })
    ));
    Ok(())
}

#[test]
fn the_identity_outlives_power_cycles() -> Result<()> {
    let guest = Guest::new()?;
    guest.tpm.switch_off()?;
    guest.tpm.switch_on()?;
    guest.tpm.tool("tpm2_nvread 0x01c10002 -o read")?;
    assert_eq!(guest.tpm.read("read")?, &*guest.made.vik_certificate);
    rederived(&mut guest.channel()?, &guest.made.vik.name())?;
    Ok(())
}

/// A tenant with a long name, or a high generation, makes a certificate longer.
#[test]
fn a_longer_certificate_gets_room_before_there_is_a_guest_and_not_beside_it() -> Result<()> {
    let guest = Guest::new()?;
    let mut order = guest.order.clone();
    order.subject.tenant = "t".repeat(64).parse()?;
    let mut channel = guest.channel()?;
    let vik = rederived(&mut channel, &guest.made.vik.name())?;
    let mut renewed = |order: &_, kept| {
        let (authority, signer) = (&guest.made.nv_authority, &guest.host.ik);
        let besides = RenewedBesides::default();
        let renewed = renew(order, &vik, &besides, authority, &mut channel, signer, kept);
        renewed.map(|renewed| renewed.vik)
    };
    let refused = renewed(&order, (Occupant::Present, Chain::Changed));
    assert!(matches!(refused, Err(ManufactureError::TooLong { .. })));
    let longer = renewed(&order, (Occupant::Absent, Chain::Changed))?;
    let shorter = renewed(&guest.order, (Occupant::Present, Chain::Changed))?;
    drop(channel);
    assert!(longer.len() > shorter.len());
    guest.tpm.tool("tpm2_nvread 0x01c10002 -o read")?;
    let padded = guest.tpm.read("read")?;
    assert!(padded.starts_with(&shorter) && padded.len() == longer.len());

    let mut channel = guest.channel()?;
    let exact = renew(
        &guest.order,
        &vik,
        &RenewedBesides::default(),
        &guest.made.nv_authority,
        &mut channel,
        &guest.host.ik,
        (Occupant::Absent, Chain::Same),
    )?;
    drop(channel);
    guest.tpm.tool("tpm2_nvread 0x01c10002 -o read")?;
    assert_eq!(guest.tpm.read("read")?, &*exact.vik, "no padding");
    Ok(())
}
