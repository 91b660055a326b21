//! `vrot-device reference`: reference values for a policy, from a boot that is known to be good.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use attestation::{
    BOOT_PCRS, Evidence, LaunchMeasurement, Layer, Purpose, ReferenceValues, VerifiedBoot,
    VerifiedEvidence, accounted_bank, reference_values, reference_values_of_pcrs,
};
use cert_chain::pcr::BANKS;
use cert_chain::{HashAlgorithm, HostName, PcrSelection, Tenant, TrustAnchors, VmId};
use clap::{Args, ValueEnum};
use printable::Printable;
use rustls_pki_types::UnixTime;

use crate::challenge::{challenge, fresh_nonce};
use crate::command_line::{load_log, read_roots, say};
use crate::outcome::Outcome;

/// What the values are of.
#[derive(Debug, Args)]
pub(crate) struct Reference {
    /// A service in a VM that booted as it should, on a host that did.
    #[arg(long, value_name = "HOST:PORT", requires = "roots")]
    connect: Option<String>,
    /// Roots that the service's evidence must lead to.
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// The VM that the service must be in. Without it, or the tenant, the values are those of
    /// whichever VM answered; which one that is stands above them.
    #[arg(long, value_name = "UUID", requires = "connect")]
    vm: Option<VmId>,
    /// The tenant that the VM must belong to.
    #[arg(long, value_name = "NAME", requires = "connect")]
    tenant: Option<Tenant>,
    /// The host that the VM must run on.
    #[arg(long, value_name = "NAME", requires = "connect")]
    host: Option<HostName>,
    /// An event log of such a boot, instead of a service.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "connect",
        requires = "layer"
    )]
    event_log: Option<PathBuf>,
    /// Which layer of a policy the event log is for.
    #[arg(long)]
    layer: Option<LayerName>,
    /// The PCR bank of the event log: sha256, sha384 or sha512. Without it the first of these that
    /// the log accounts for. A service chooses its bank itself.
    #[arg(long, value_name = "BANK", requires = "event_log")]
    bank: Option<HashAlgorithm>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayerName {
    Host,
    Vm,
    /// Of a service's policy about devices.
    Device,
}

/// Prints them.
pub(crate) fn print_reference(reference: &Reference) -> Result<Outcome> {
    let text = match reference {
        Reference {
            event_log: Some(file),
            layer: Some(layer),
            bank,
            ..
        } => {
            let layer = match layer {
                LayerName::Host => "host",
                LayerName::Vm => "vm",
                LayerName::Device => "device",
            };
            let log = load_log(file)?;
            let boot = PcrSelection::new(BOOT_PCRS)?;
            bank.map_or_else(|| accounted_bank(&log, &BANKS, boot), Ok)
                .and_then(|bank| reference_values(&log, bank, BOOT_PCRS))
                .with_context(|| format!("{} makes no reference", file.display()))?
                .to_toml(layer)
        }
        Reference {
            connect: Some(service),
            roots: Some(roots),
            ..
        } => {
            let anchors = TrustAnchors::from_pem(&read_roots(roots)?)
                .with_context(|| format!("{} cannot be used", roots.display()))?;
            let nonce = fresh_nonce()?;
            let evidence = Evidence::from_cbor(&challenge(service, &nonce)?)?;
            let verified = evidence
                .verify(&nonce, &Purpose::Challenge, &anchors, UnixTime::now())
                .with_context(|| format!("{service} gave no genuine evidence"))?;
            reference.check_origin(service, &verified)?;
            format!(
                "{}{}\n{}",
                origin(&verified),
                of_layer(&verified, Layer::Host)?.to_toml("host"),
                of_vm(&verified)?
            )
        }
        _ => bail!("give --connect with --roots, or --event-log with --layer"),
    };
    say(&text)?;
    Ok(Outcome::Good)
}

impl Reference {
    /// Any VM that the issuer vouches for can answer. Values of another one than was meant are not
    /// printed.
    fn check_origin(&self, service: &str, evidence: &VerifiedEvidence) -> Result<()> {
        let (leaf, host) = (evidence.leaf(), evidence.chain().host());
        let differs = [
            self.vm
                .filter(|vm| *vm != leaf.vm)
                .map(|vm| format!("it is in VM {}, and {vm} was asked for", leaf.vm)),
            self.tenant
                .as_ref()
                .filter(|tenant| **tenant != leaf.tenant)
                .map(|tenant| format!("its tenant is {}, and {tenant} was asked for", leaf.tenant)),
            self.host
                .as_ref()
                .filter(|asked| *asked != host)
                .map(|asked| format!("its host is {host}, and {asked} was asked for")),
        ];
        match differs.into_iter().flatten().next() {
            Some(difference) => bail!("{service} gave genuine evidence, but {difference}"),
            None => Ok(()),
        }
    }
}

fn of_layer(evidence: &VerifiedEvidence, layer: Layer) -> Result<ReferenceValues> {
    let verified = evidence.layer(layer);
    match verified.boot() {
        VerifiedBoot::Log(log) => reference_values(log, verified.bank(), verified.pcrs().pcrs()),
        VerifiedBoot::PcrsAlone => reference_values_of_pcrs(verified.pcrs()),
    }
    .with_context(|| format!("the {layer}'s boot makes no reference"))
}

/// The VM's part of a policy: its reference values; where it has no log, those of its PCRs; and where
/// nothing was measured into those either, what the host measured of its launch.
fn of_vm(evidence: &VerifiedEvidence) -> Result<String> {
    let verified = evidence.layer(Layer::Vm);
    let without_log = matches!(verified.boot(), VerifiedBoot::PcrsAlone);
    if !without_log {
        return Ok(of_layer(evidence, Layer::Vm)?.to_toml("vm"));
    }
    if !verified.pcrs().are_unextended() {
        let values = of_layer(evidence, Layer::Vm)?.to_toml("vm");
        return Ok(format!(
            "{values}\n[vm.without_log]\ndemand = [\"pinned-pcrs\"]\n"
        ));
    }
    let leaf = evidence.leaf();
    if leaf.transport.reaches_firmware() {
        bail!(
            "the VM's boot makes no reference: nothing was measured into its TPM, although its firmware \
             can do that; and what that started, a measured launch does not tell"
        );
    }
    match &leaf.launch {
        LaunchMeasurement::Measured(launch) => Ok(format!(
            "# Nothing was measured into the VM's TPM: what its host measured of its launch counts.\n\
             [launch]\ndigests = [\"{}\"]\n\n[vm.without_log]\ndemand = [\"pinned-launch\"]\n",
            launch.digest()
        )),
        LaunchMeasurement::NotMeasured => bail!(
            "the VM's boot makes no reference: nothing was measured into its TPM, and its host did not \
             measure its launch (`vtpmctl measure`)"
        ),
    }
}

/// Whose boot the values are of, as comments in TOML.
fn origin(evidence: &VerifiedEvidence) -> String {
    let (leaf, chain) = (evidence.leaf(), evidence.chain());
    format!(
        "# Measured by VM {} of tenant {}\n# on host {}, which {} certified.\n\n",
        leaf.vm,
        leaf.tenant,
        chain.host(),
        Printable(chain.issuer())
    )
}
