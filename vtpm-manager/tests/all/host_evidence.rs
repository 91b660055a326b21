//! Host evidence, from a guest's vendor command to the physical TPM and back.

use anyhow::{Result, ensure};
use attestation::merkle::{leaf_hash, root_from_path};
use attestation::{Anchoring, CutOff, HostLayer, HostLeaf, StateLoss};
use cert_chain::Digest32;

use crate::support::evidence::evidence;
use crate::support::vmm::Vmm;
use crate::support::{Host, TENANT};

/// `TPM_RC_NO_RESULT`
const NO_RESULT: u32 = 0x154;

#[test]
fn a_guest_gets_its_hosts_word_on_its_own_request() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let digest = Digest32::of(b"a quote of the VM");
    let (code, layer) = evidence(&mut vmm, &digest)?;
    assert_eq!(code, 0);

    let layer = HostLayer::from_cbor(&layer)?;
    let root = root_from_path(
        leaf_hash(&layer.leaf),
        layer.index,
        layer.tree_size,
        &layer.path,
    )?;
    assert_eq!(root, layer.root);
    let leaf: HostLeaf = minicbor::decode(&layer.leaf)?;
    assert_eq!(leaf.request.0, digest);
    assert_eq!(leaf.vm.to_string(), vm);
    assert_eq!(leaf.tenant.as_str(), TENANT);
    let identity = host.json(["identity", &vm])?;
    assert_eq!(leaf.vik.to_string(), identity["vik"]["name"]);
    assert_eq!(leaf.eks.len(), 2);
    assert_eq!(leaf.anchoring, Anchoring::Checkpoint(720));
    assert_eq!(leaf.cut_off, CutOff::Excluded);
    assert_eq!(leaf.state_loss, StateLoss::Excluded);
    Ok(())
}

#[test]
fn a_greedy_guest_is_held_to_its_quota() -> Result<()> {
    let host = Host::enrolled_with("host_evidence_per_minute = 120\n")?;
    let (greedy, modest) = (host.create()?, host.create()?);
    host.ctl(["start", &greedy])?;
    host.ctl(["start", &modest])?;
    let mut vmm = Vmm::attach(&host.control(&greedy)?)?;
    let digest = Digest32::of(b"again");
    let mut refused = 0;
    for _ in 0..60 {
        let (code, _) = evidence(&mut vmm, &digest)?;
        ensure!(code == 0 || code == NO_RESULT, "0x{code:x}");
        refused += u32::from(code == NO_RESULT);
    }
    ensure!(refused > 0, "sixty requests at once were all served");
    let mut vmm = Vmm::attach(&host.control(&modest)?)?;
    assert_eq!(evidence(&mut vmm, &digest)?.0, 0);
    Ok(())
}
