//! Evidence of VMs for their tenants, which the host makes without the guests: what it is of, what a guest
//! can do about it, and what it cannot.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use attestation::evidence_set::{SetHost, SetVm};
use attestation::quote::canonical_signature;
use attestation::{
    EvidenceSet, HostLayer, Nonce, QuotePurpose, tenant_qualifying_data, tenant_request_digest,
};
use cert_chain::PublicArea;
use cert_chain::layout::VIK_HANDLE;

use crate::support::Host;
use crate::support::evidence::{NONCE, empty_log_into, evidence, leaf, verified};
use crate::support::vmm::{Vmm, command, evict_control};

fn nonce() -> Result<Nonce> {
    Ok(NONCE.parse()?)
}

/// A host with an event log that accounts for its PCRs, into which nothing was measured.
fn enrolled() -> Result<Host> {
    let host = Host::enrolled()?;
    empty_log_into(&host)?;
    Ok(host)
}

fn asked(host: &Host, vms: &[&str]) -> Result<EvidenceSet> {
    let file = host.path("set.cbor");
    let options = ["--nonce", NONCE, "--save", &file];
    host.ctl([&["evidence"][..], vms, &options].concat())?;
    Ok(EvidenceSet::from_cbor(&fs::read(file)?)?)
}

fn started(host: &Host) -> Result<(String, Vmm)> {
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // Its identity key is certified once evidence is to be had.
    leaf(&mut vmm)?;
    Ok((vm, vmm))
}

#[test]
fn all_vms_of_a_host_are_quoted_at_once_and_what_could_not_be_is_told() -> Result<()> {
    let host = enrolled()?;
    let (one, _vmm) = started(&host)?;
    let (other, _other) = started(&host)?;
    let stopped = host.create()?;
    let off = host.create()?;
    host.ctl(["start", &off])?;
    let quotes = host.metric("vrot_host_quotes_total")?;
    let set = asked(&host, &[])?;
    assert_eq!(host.metric("vrot_host_quotes_total")?, quotes + 1.0);
    let checked = verified(&host, &set)?;
    let mut vms = Vec::new();
    for vm in checked.vms() {
        let Ok(vm) = vm else {
            bail!("{vm:?}");
        };
        assert_eq!(vm.leaf().purpose, QuotePurpose::Tenant);
        vms.push(vm.leaf().vm.to_string());
    }
    vms.sort();
    let mut expected = [one.clone(), other];
    expected.sort();
    assert_eq!(vms, expected);
    let reason = |vm: &str| {
        let of = (checked.unquoted().iter()).find(|unquoted| unquoted.vm.to_string() == vm);
        of.map(|unquoted| unquoted.reason.clone())
    };
    ensure!(reason(&stopped).context("told")?.contains("does not run"));
    ensure!(reason(&off).context("told")?.contains("TPM is off"));
    // One alone, and none that there is not.
    assert_eq!(asked(&host, &[&one])?.vms.len(), 1);
    let unknown = uuid::Uuid::new_v4().to_string();
    let save = host.path("none.cbor");
    let refused = host.refused(["evidence", &unknown, "--nonce", NONCE, "--save", &save])?;
    ensure!(refused.contains(&unknown), "{refused}");
    ensure!(!fs::exists(&save)?);
    Ok(())
}

/// Its TPM is its own: it can have its vIK sign what the host would have it sign, and have the host state
/// something about that.
#[test]
fn a_guest_that_forges_its_tenants_evidence_is_refused() -> Result<()> {
    let host = enrolled()?;
    let (vm, mut vmm) = started(&host)?;
    let honest = asked(&host, &[&vm])?;
    let own = honest.vms.first().context("the VM")?;
    let vik = PublicArea::parse(&own.vik_public)?.name();
    let qualifying = tenant_qualifying_data(&nonce()?, &vik);
    // TPM2_Quote with the vIK.
    let body = [
        &VIK_HANDLE.to_be_bytes()[..],
        &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 32],
        qualifying.as_bytes(),
        &[0, 0x10, 0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0x7b, 0],
    ]
    .concat();
    let mut quote = command(0x158, &body);
    quote[1] = 2;
    let answer = vmm.succeed(&quote)?;
    let length = usize::from(u16::from_be_bytes([answer[4], answer[5]]));
    let parameters = usize::try_from(u32::from_be_bytes(answer[..4].try_into()?))?;
    let attest = answer[6..6 + length].to_vec();
    let signature = canonical_signature(&answer[6 + length..4 + parameters])?;
    let request = tenant_request_digest(&attest, &signature);
    let (code, layer) = evidence(&mut vmm, &request.0)?;
    assert_eq!(code, 0, "the host answers a guest about any digest");
    let layer = HostLayer::from_cbor(&layer)?;
    let forged = EvidenceSet::new(
        nonce()?,
        SetHost {
            attest: layer.attest,
            signature: layer.signature,
            host_ik_public: layer.host_ik_public,
            certificate: honest.host.certificate.clone(),
            event_log_digest: layer.event_log_digest,
            event_log: layer.event_log,
            root: layer.root,
            tree_size: layer.tree_size,
            pcr_values: layer.pcr_values,
        },
        vec![SetVm {
            attest: attest.into(),
            signature: signature.into(),
            leaf: layer.leaf,
            index: layer.index,
            path: layer.path,
            ..own.clone()
        }],
        Vec::new(),
    );
    let verified = verified(&host, &forged)?;
    match verified.vms() {
        [Err(refused)] => assert_eq!(refused.refusal.code(), "purpose"),
        other => bail!("{other:?}"),
    }
    Ok(())
}

#[test]
fn a_guest_that_took_its_identity_key_away_is_quoted_and_one_that_broke_its_hierarchy_is_told_of()
-> Result<()> {
    let host = enrolled()?;
    let (vm, mut vmm) = started(&host)?;
    let (neighbour, _other) = started(&host)?;
    vmm.succeed(&evict_control(VIK_HANDLE, VIK_HANDLE))?;
    let set = asked(&host, &[&vm])?;
    ensure!(verified(&host, &set)?.vms().iter().all(Result::is_ok));
    // TPM2_HierarchyChangeAuth of the endorsement hierarchy.
    let body = [
        &[0x40, 0, 0, 0x0b][..],
        &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0],
        &[0, 3, 1, 2, 3],
    ];
    let mut change = command(0x129, &body.concat());
    change[1] = 2;
    vmm.succeed(&change)?;
    let set = asked(&host, &[&vm, &neighbour])?;
    let verified = verified(&host, &set)?;
    ensure!(verified.vms().len() == 1 && verified.vms()[0].is_ok());
    let told = &verified.unquoted().first().context("told")?.reason;
    ensure!(told.contains("removed the identity key"), "{told}");
    Ok(())
}
