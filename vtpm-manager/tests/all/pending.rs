//! VMs whose certificates are still to be signed.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::support::bus::Bus;
use crate::support::evidence::evidence;
use crate::support::identity::{der, verified};
use crate::support::records::differences;
use crate::support::vmm::{
    Vmm, begin_every_session, command, nv_read, policy_session, with_password,
};
use crate::support::{Host, TENANT, wait_until};

const POOL: &str = "[pool]\nsize = 1\ntenants = [\"acme\"]\nrefill_per_minute = 6000\n";
const VIK_CERTIFICATE: u32 = 0x01c1_0002;
const NV_UNINITIALIZED: u32 = 0x14a;
const RETRY: u32 = 0x922;
/// `tcg-kp-EKCertificate` in DER.
const EK_PURPOSE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// A VM that was launched with a number of its own while the physical TPM hangs with the
/// signature.
struct Launched {
    host: Host,
    bus: Bus,
    vm: String,
}

impl Launched {
    fn from_the_pool() -> Result<Self> {
        let host = with_full_pool()?;
        Self::on(host, None)
    }

    /// The signature of what contains this is held back; without, that of the VM's certificate.
    fn on((mut host, is_full): (Host, bool), held: Option<&[u8]>) -> Result<Self> {
        let bus = host.put_bus_between()?;
        if is_full {
            full(&host)?;
        }
        let vm = Uuid::new_v4().to_string();
        bus.hold_signature_of(held.unwrap_or(vm.as_bytes()));
        let vrot = host.json(["create", "--vm", &vm, "--tenant", TENANT, "--start"])?;
        assert_eq!(vrot["state"], "running");
        Ok(Self { host, bus, vm })
    }

    fn identity(&self) -> Result<Value> {
        self.host.json(["identity", &self.vm])
    }

    fn state(&self, which: &str) -> Result<Value> {
        Ok(self.host.json(["show", &self.vm])?[which].clone())
    }

    fn is_certified_for_its_vm(&self, vmm: &mut Vmm) -> Result<()> {
        wait_until("the certificate", || {
            Ok(self.state("vik_certificate")? == "issued")
        })?;
        let identity = self.identity()?;
        let chain = verified(&self.host, &identity)?;
        assert_eq!(chain.claims().vm.to_string(), self.vm);
        assert_eq!(chain.claims().tenant.as_str(), TENANT);
        let certificate = der(&identity["vik"]["certificate_pem"])?;
        assert_eq!(
            nv_read(vmm, VIK_CERTIFICATE)?,
            certificate.as_ref(),
            "no padding"
        );
        let digest = cert_chain::Digest32::of(b"a quote of the VM");
        assert_eq!(evidence(vmm, &digest)?.0, 0);
        let told = self.host.audit()?;
        let last = told
            .iter()
            .rfind(|line| line["event"] == "certificate-issued")
            .context("a line")?;
        assert_eq!(
            last["certificate"],
            hex::encode(Sha256::digest(&certificate))
        );
        ensure!(differences(&self.host)?.is_empty());
        wait_until("the other certificates", || {
            Ok(self.state("ek_certificates")? == "issued")
        })?;
        self.host.ctl(["audit", "verify"])?;
        Ok(())
    }
}

#[test]
fn a_vm_with_its_own_id_is_launched_before_its_certificate_is_signed_and_finds_none_until_then()
-> Result<()> {
    let launched = Launched::from_the_pool()?;
    let (host, vm) = (&launched.host, &launched.vm);
    assert_eq!(launched.state("vik_certificate")?, "pending");
    let identity = launched.identity()?;
    assert_eq!(identity["vik"]["state"], "pending");
    assert_eq!(identity["vik"]["certificate_pem"], Value::Null);
    ensure!(host.ctl(["identity", vm])?.contains("pending"));
    ensure!(host.ctl(["list"])?.contains("certificate pending"));
    assert_eq!(host.metric("vrot_identities_pending")?, 1.0);

    let mut vmm = Vmm::attach(&host.control(vm)?)?;
    assert_eq!(read_code(&mut vmm)?, NV_UNINITIALIZED);
    // Evidence waits.
    let digest = [&[0, 32][..], &[7; 32]].concat();
    let ticket = vmm.succeed(&command(0x2000_5652, &digest))?;
    let read = [&ticket[..8], &[0; 4]].concat();
    for _ in 0..50 {
        assert_eq!(vmm.execute(&command(0x2000_5653, &read))?.0, RETRY);
    }
    assert_eq!(read_code(&mut vmm)?, NV_UNINITIALIZED);
    launched.bus.let_signatures_go();
    launched.is_certified_for_its_vm(&mut vmm)?;
    assert_eq!(host.metric("vrot_identities_pending")?, 0.0);
    let created = host.audit()?;
    let created = created.iter().find(|line| line["event"] == "vrot-created");
    assert_eq!(created.context("a line")?["certificate"], Value::Null);
    Ok(())
}

#[test]
fn a_manager_that_is_killed_between_launch_and_certificate_leaves_it_to_its_successor() -> Result<()>
{
    for attached in [false, true] {
        let mut launched = Launched::from_the_pool()?;
        let control = launched.host.control(&launched.vm)?;
        let mut vmm = attached.then(|| Vmm::attach(&control)).transpose()?;
        launched.host.crash()?;
        launched.bus.let_signatures_go();
        launched.host.start_again()?;
        if vmm.is_none() {
            wait_until("the certificate", || {
                Ok(launched.state("vik_certificate")? == "issued")
            })?;
            vmm = Some(Vmm::attach(&control)?);
        }
        launched.is_certified_for_its_vm(&mut vmm.context("a VMM")?)?;
    }
    Ok(())
}

#[test]
fn a_vrot_that_is_stopped_while_its_certificate_is_pending_has_it_after_its_next_start()
-> Result<()> {
    let launched = Launched::from_the_pool()?;
    let (host, vm) = (&launched.host, &launched.vm);
    // The store needs the physical TPM as well: the order is done when that answers again.
    let mut stop = host.vtpmctl(["stop", vm]).stdout(Stdio::null()).spawn()?;
    launched.bus.let_signatures_go();
    ensure!(stop.wait()?.success());
    host.ctl(["start", vm])?;
    launched.is_certified_for_its_vm(&mut Vmm::attach(&host.control(vm)?)?)?;
    host.ctl(["stop", vm])?;
    host.ctl(["delete", vm])?;
    assert_eq!(host.metric("vrot_identities_pending")?, 0.0);
    Ok(())
}

/// The certificate is written beside a guest that does what it can against that.
#[test]
fn a_guest_that_holds_every_session_and_reads_without_rest_sees_its_certificate_whole_or_not_at_all()
-> Result<()> {
    let launched = Launched::from_the_pool()?;
    let mut vmm = Vmm::attach(&launched.host.control(&launched.vm)?)?;
    while vmm.execute(&policy_session())?.0 == 0 {}
    launched.bus.let_signatures_go();
    let mut seen = None;
    wait_until("the certificate", || {
        for _ in 0..50 {
            match read_code(&mut vmm)? {
                NV_UNINITIALIZED => ensure!(seen.is_none(), "it went away again"),
                0 => {
                    let found = nv_read(&mut vmm, VIK_CERTIFICATE)?;
                    ensure!(*seen.get_or_insert(found.clone()) == found, "it changed");
                }
                code => anyhow::bail!("0x{code:x}"),
            }
        }
        Ok(seen.is_some())
    })?;
    launched.is_certified_for_its_vm(&mut vmm)?;
    let identity = launched.identity()?;
    let certificate = der(&identity["vik"]["certificate_pem"])?;
    assert_eq!(seen.as_deref(), Some(certificate.as_ref()));
    Ok(())
}

/// Only the guest is in the way here: the physical TPM could vouch for it at once.
#[test]
fn a_guest_whose_certificate_cannot_be_written_waits_for_evidence_and_is_refused_in_the_end()
-> Result<()> {
    let launched = Launched::from_the_pool()?;
    let mut vmm = Vmm::attach(&launched.host.control(&launched.vm)?)?;
    let last = begin_every_session(&mut vmm)?;
    launched.bus.let_signatures_go();
    wait_until("the failure to be shown", || {
        let problem = launched.state("renewal_problem")?;
        Ok(problem
            .as_str()
            .is_some_and(|problem| problem.contains("TPM2_StartAuthSession")))
    })?;
    ensure!(
        launched
            .host
            .ctl(["list"])?
            .contains("certificate NOT ISSUED")
    );
    let digest = cert_chain::Digest32::of(b"a quote of the VM");
    // `TPM_RC_NO_RESULT`
    assert_eq!(evidence(&mut vmm, &digest)?.0, 0x154);
    assert_eq!(
        launched
            .host
            .metric("vrot_host_evidence_uncertified_total")?,
        1.0
    );
    assert_eq!(read_code(&mut vmm)?, NV_UNINITIALIZED);
    // TPM2_FlushContext
    vmm.succeed(&command(0x165, &last.context("a session")?))?;
    launched.is_certified_for_its_vm(&mut vmm)?;
    assert_eq!(launched.state("renewal_problem")?, Value::Null);
    Ok(())
}

#[test]
fn one_signature_is_enough_to_attest_and_the_others_follow() -> Result<()> {
    let launched = Launched::on((Host::enrolled()?, false), Some(EK_PURPOSE))?;
    wait_until("the identity key's certificate", || {
        Ok(launched.state("vik_certificate")? == "issued")
    })?;
    assert_eq!(launched.state("ek_certificates")?, "pending");
    let identity = launched.identity()?;
    assert_eq!(identity["ek_rsa"]["certificate_pem"], Value::Null);
    verified(&launched.host, &identity)?;
    launched.bus.let_signatures_go();
    let mut vmm = Vmm::attach(&launched.host.control(&launched.vm)?)?;
    launched.is_certified_for_its_vm(&mut vmm)?;
    let identity = launched.identity()?;
    for (key, index) in [("ek_rsa", 0x01c0_0002), ("ek_p256", 0x01c0_000a)] {
        let certificate = der(&identity[key]["certificate_pem"])?;
        assert_eq!(nv_read(&mut vmm, index)?, certificate.as_ref(), "{key}");
    }
    Ok(())
}

fn with_full_pool() -> Result<(Host, bool)> {
    let host = Host::enrolled_with(POOL)?;
    full(&host)?;
    Ok((host, true))
}

fn full(host: &Host) -> Result<()> {
    wait_until("a full pool", || Ok(host.metric("vrot_pool_ready")? == 1.0))
}

/// The response code of `TPM2_NV_Read` of the certificate's first byte.
fn read_code(vmm: &mut Vmm) -> Result<u32> {
    let index = VIK_CERTIFICATE;
    let read = with_password(0x14e, &[index, index], &[0, 1, 0, 0]);
    Ok(vmm.execute(&read)?.0)
}
