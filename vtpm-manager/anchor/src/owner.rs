//! The one thread's work: choosing an approval, retrying what may be retried, the record.

use std::sync::Arc;
use std::time::Duration;

use cert_chain::operator::{Approval, PolicyKeyPublic};
use cert_chain::pcr::BANKS;
use cert_chain::{
    AttestationKey, CredentialBlob, Digest32, HashAlgorithm, PcrSelection, PcrValues,
};
use ring::rand::{SecureRandom, SystemRandom};
use tpm_wire::{Disposition, Operation};
use zeroize::Zeroizing;

use super::bank;
use super::config::AnchorConfig;
use super::error::{AnchorError, HardwareError};
use super::hardware::{Authorization, HardwareRoot, HostPublic, SignedQuote};
use super::policy::{ApprovalStatus, HostPolicy, PcrDifference};
use super::record::Record;
use super::root_seal::{self, RootSeal};
use super::root_secret::{ROOT_SECRET_LENGTH, RootSecret};
use super::watchdog::{COMMANDS, Claim, KEY, Watchdog};

/// Opens a connection to the TPM.
pub type Connect = Box<dyn FnMut() -> Result<Box<dyn HardwareRoot>, HardwareError> + Send>;

/// Holds the only connection to the TPM.
pub(super) struct Owner {
    config: AnchorConfig,
    connect: Connect,
    root: Option<Box<dyn HardwareRoot>>,
    record: Option<Record>,
    host: Option<HostPublic>,
    /// The bank that approvals and quotes are of.
    bank: Option<HashAlgorithm>,
    /// With which approval the next quote may be prepared: that of the last one.
    approved: Option<Approval>,
    /// Whether there was a quote since the last one was prepared.
    is_to_prepare: bool,
    /// Tells callers how long the TPM has been busy.
    watchdog: Arc<Watchdog>,
    /// Of the request that is being carried out.
    claim: Claim,
}

/// How often a busy TPM is asked again. With [`FIRST_PAUSE`] doubling each time this waits for
/// 1.3 s in all, longer than any self-test of a single algorithm takes.
const BUSY_ATTEMPTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// How often a policy is satisfied anew after a PCR changed on the way. Each attempt takes some
/// 100 ms on hardware; only a host that is still starting extends PCRs at that rate.
const POLICY_ATTEMPTS: u32 = 5;

impl Owner {
    /// Connects to the TPM and reads the record.
    pub(super) fn new(
        config: AnchorConfig,
        connect: Connect,
        watchdog: Arc<Watchdog>,
    ) -> Result<Self, AnchorError> {
        let record = Record::load(&config.record)?;
        let mut owner = Self {
            config,
            connect,
            root: None,
            record,
            host: None,
            bank: None,
            approved: None,
            is_to_prepare: false,
            watchdog,
            claim: Claim::default(),
        };
        owner.connected()?;
        Ok(owner)
    }

    /// Carries out a request whose caller may give it up meanwhile: then nothing of it is kept.
    pub(super) fn on_behalf_of<T>(
        &mut self,
        claim: Claim,
        request: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.claim = claim;
        request(self)
    }

    /// Makes what is missing: keys and record. Doing it twice changes nothing.
    pub(super) fn provision(
        &mut self,
        policy_key: &PolicyKeyPublic,
    ) -> Result<HostPublic, AnchorError> {
        if let Some(record) = &self.record
            && record.policy_key != *policy_key
        {
            return Err(AnchorError::PolicyKeyMismatch {
                found: record.policy_key.name(),
                wanted: policy_key.name(),
                record: self.config.record.clone(),
            });
        }
        if self.record.is_none() {
            let srk = self.patiently_within(KEY, |root| root.storage_root_key(None))?;
            self.keep(Record::new(policy_key.clone(), srk))?;
        }
        self.host_public()
    }

    /// The host's keys; they are made anew from their templates where they are not persistent.
    pub(super) fn host_public(&mut self) -> Result<HostPublic, AnchorError> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        let record = self.provisioned()?;
        let srk_name = record.srk.clone();
        let policy_key = record.policy_key.clone();
        let policy = policy_key.policy_digest();
        let ek = self.patiently_within(KEY, |root| root.endorsement_key())?;
        let ik_public = self.patiently_within(KEY, |root| root.identity_key(&policy))?;
        let host = HostPublic {
            ek_certificate: ek.certificate,
            ek_chain: ek.chain,
            ek_public: ek.key,
            ik_public,
            srk_name,
            policy_key,
        };
        self.host = Some(host.clone());
        Ok(host)
    }

    /// The present values of the PCRs under policy, for an operator to approve.
    pub(super) fn pcr_values(&mut self) -> Result<PcrValues, AnchorError> {
        // The session is salted to the recorded key, so there must be one.
        self.provisioned()?;
        let pcrs = self.config.policy_pcrs;
        let bank = self.choose_bank(|root, bank, pcrs| root.audited_pcr_values(bank, pcrs))?;
        self.patiently(|root| root.audited_pcr_values(bank, pcrs))
    }

    /// The same, to choose an approval by. Whether it fits, the TPM checks itself.
    fn apparent_pcr_values(&mut self) -> Result<PcrValues, AnchorError> {
        let pcrs = self.config.policy_pcrs;
        let bank = self.bank()?;
        self.patiently(|root| root.pcr_values(bank, pcrs))
    }

    /// The present values of the PCRs that are quoted, to warn by.
    pub(super) fn quoted_pcr_values(&mut self) -> Result<PcrValues, AnchorError> {
        let pcrs = self.config.quoted_pcrs;
        let bank = self.bank()?;
        self.patiently(|root| root.pcr_values(bank, pcrs))
    }

    /// The bank that approvals and quotes are of. Which banks a TPM has, only a reset changes.
    fn bank(&mut self) -> Result<HashAlgorithm, AnchorError> {
        match self.bank {
            Some(bank) => Ok(bank),
            None => self.choose_bank(|root, bank, pcrs| root.pcr_values(bank, pcrs)),
        }
    }

    fn choose_bank(&mut self, mut read: impl ReadPcrs) -> Result<HashAlgorithm, AnchorError> {
        let active = self.patiently(|root| root.active_banks())?;
        let bank = bank::choose(self.config.pcr_bank, &active, |bank| {
            self.patiently(|root| read(root, bank, PcrSelection::of_firmware()))
                .map(|values| !values.are_unextended())
        })?;
        if self.bank.replace(bank) != Some(bank) {
            tracing::info!(%bank, "approvals and quotes are of this PCR bank");
            self.warn_of_blank_banks(bank, &active);
        }
        Ok(bank)
    }

    /// Warns of active banks that the firmware does not measure into: root on this host can extend
    /// one to values that an operator approved in it for another host.
    fn warn_of_blank_banks(&mut self, chosen: HashAlgorithm, active: &[HashAlgorithm]) {
        let firmware = PcrSelection::of_firmware();
        let others = active.iter().copied().filter(|bank| *bank != chosen);
        for bank in others.filter(|bank| BANKS.contains(bank)) {
            let values = self.patiently(|root| root.pcr_values(bank, firmware));
            if values.is_ok_and(|values| values.are_unextended()) {
                tracing::warn!(
                    %bank,
                    "the firmware does not measure into this active PCR bank: deactivate it in the \
                     firmware's setup"
                );
            }
        }
    }

    /// Makes sure that the recorded storage root key is in the TPM that holds this host IK.
    pub(super) fn certify_storage_root_key(
        &mut self,
        ik: &AttestationKey,
    ) -> Result<(), AnchorError> {
        self.host_public()?;
        let srk = self.provisioned()?.srk.clone();
        let nonce = Digest32::new(*fresh_secret()?);
        let statement = self.authorized(|root, authorization| {
            root.certify_storage_root_key(&nonce, authorization)
        })?;
        match statement.verify(ik, &nonce) {
            Some(resident) if *resident.name() == srk => Ok(()),
            Some(_) | None => Err(AnchorError::StorageRootKey {
                srk,
                record: self.config.record.clone(),
            }),
        }
    }

    /// Takes up an approval of the operator.
    pub(super) fn approve(&mut self, approval: Approval) -> Result<(), AnchorError> {
        let configured = self.config.policy_pcrs;
        let mut record = self.provisioned()?.clone();
        if !approval.is_signed_by(&record.policy_key) {
            return Err(AnchorError::ApprovalSignature {
                policy_key: record.policy_key.name(),
            });
        }
        let bank = self.choose_bank(|root, bank, pcrs| root.pcr_values(bank, pcrs))?;
        if approval.pcrs.bank() != bank {
            return Err(AnchorError::ApprovalBank {
                found: approval.pcrs.bank(),
                bank,
            });
        }
        if approval.pcrs.selection() != configured {
            return Err(AnchorError::ApprovalSelection {
                found: approval.pcrs.selection(),
                configured,
            });
        }
        if approval.pcrs.are_unextended() {
            let firmware = PcrSelection::of_firmware();
            let present = self.patiently(|root| root.pcr_values(bank, firmware))?;
            if !present.are_unextended() {
                return Err(AnchorError::ApprovalUnextended { bank });
            }
            tracing::warn!(
                %bank,
                "no boot was measured into this TPM, and that is what was approved: whatever boots \
                 without a measurement is approved; good for a trial alone"
            );
        }
        record.add(approval);
        self.keep(record)
    }

    /// What host IK and root secret are bound to, and whether it is fulfilled.
    pub(super) fn policy(&mut self) -> Result<HostPolicy, AnchorError> {
        let current = self.pcr_values()?;
        let record = self.provisioned()?;
        Ok(HostPolicy {
            policy_key: record.policy_key.clone(),
            policy_digest: record.policy_key.policy_digest(),
            approvals: record
                .approvals
                .iter()
                .map(|approval| ApprovalStatus {
                    label: approval.label.clone(),
                    bank: approval.pcrs.bank(),
                    differences: differences(approval, &current),
                })
                .collect(),
            current,
        })
    }

    /// Opens a credential. Needs no approved PCRs: see [`super::esys`] on the ADMIN role.
    pub(super) fn activate_credential(
        &mut self,
        credential: &CredentialBlob,
    ) -> Result<Zeroizing<Vec<u8>>, AnchorError> {
        // Makes sure that the IK is where the command looks for it.
        self.host_public()?;
        self.patiently(|root| root.activate_credential(credential))
    }

    /// Quotes the host's PCRs.
    pub(super) fn quote(&mut self, qualifying_data: &Digest32) -> Result<SignedQuote, AnchorError> {
        self.host_public()?;
        let pcrs = self.config.quoted_pcrs;
        let prepared = self.once(COMMANDS, &mut |root: &mut dyn HardwareRoot| {
            root.quote_as_prepared(qualifying_data, pcrs)
        })?;
        self.is_to_prepare = true;
        if let Some(quote) = prepared {
            return Ok(quote);
        }
        let (quote, approval) = self.authorized(|root, authorization| {
            // The approval is of the host's bank.
            let bank = authorization.approval.pcrs.bank();
            let quote = root.quote(qualifying_data, bank, pcrs, authorization)?;
            Ok((quote, authorization.approval.clone()))
        })?;
        self.approved = Some(approval);
        Ok(quote)
    }

    /// Prepares the next quote, if there was one since the last time, with the same approval. Only for when
    /// nothing else waits for the TPM; nobody is told of a failure, as a quote can do without.
    pub(super) fn prepare(&mut self) {
        if !std::mem::take(&mut self.is_to_prepare) {
            return;
        }
        let (Some(record), Some(approval)) = (&self.record, self.approved.take()) else {
            return;
        };
        let policy_key = record.policy_key.clone();
        let authorization = Authorization {
            policy_key: &policy_key,
            approval: &approval,
        };
        let prepared = self.once(COMMANDS, &mut |root: &mut dyn HardwareRoot| {
            root.prepare_quote(&authorization)
        });
        match prepared {
            Ok(()) => self.approved = Some(approval),
            Err(error) => tracing::debug!(%error, "the next quote is not prepared"),
        }
    }

    /// Signs with the host IK.
    pub(super) fn sign(&mut self, message: &[u8]) -> Result<Vec<u8>, AnchorError> {
        self.host_public()?;
        self.authorized(|root, authorization| root.sign(message, authorization))
    }

    /// Seals a fresh root secret and has the host IK vouch for it, if there is none yet.
    pub(super) fn make_root_secret(&mut self) -> Result<RootSecret, AnchorError> {
        let mut record = self.provisioned()?.clone();
        if record.root.is_none() {
            let policy = record.policy_key.policy_digest();
            let secret = fresh_secret()?;
            let sealed = self.patiently(|root| root.seal(secret.as_ref(), &policy))?;
            let signature = self.sign(&root_seal::statement(&sealed))?;
            record.root = Some(RootSeal::new(sealed, signature));
            self.keep(record)?;
        }
        self.root_secret()
    }

    /// Unseals the root secret that this host sealed.
    pub(super) fn root_secret(&mut self) -> Result<RootSecret, AnchorError> {
        let seal = self.provisioned()?.root.clone();
        let seal = seal.ok_or(AnchorError::RootSecretMissing)?;
        let ik = self.host_public()?.ik_public;
        let sealed = seal
            .verified(&ik)
            .ok_or_else(|| AnchorError::RootSecretForeign {
                record: self.config.record.clone(),
                ik: ik.name(),
            })?;
        let secret = self.authorized(|root, authorization| root.unseal(sealed, authorization))?;
        RootSecret::from_unsealed(&secret).ok_or(AnchorError::Hardware(HardwareError::Response {
            operation: Operation::UNSEAL,
            what: "a root secret of the wrong length",
        }))
    }

    fn keep(&mut self, record: Record) -> Result<(), AnchorError> {
        if !self.claim.keep() {
            return Err(AnchorError::TooLate);
        }
        record.store(&self.config.record)?;
        self.record = Some(record);
        Ok(())
    }

    fn provisioned(&self) -> Result<&Record, AnchorError> {
        self.record.as_ref().ok_or(AnchorError::NotProvisioned)
    }

    /// Runs a command that needs approved PCRs. A PCR that changes between reading the values
    /// and the end of the command makes the TPM refuse; then everything is looked at anew.
    fn authorized<T>(
        &mut self,
        mut command: impl FnMut(&mut dyn HardwareRoot, &Authorization<'_>) -> Result<T, HardwareError>,
    ) -> Result<T, AnchorError> {
        for _ in 0..POLICY_ATTEMPTS {
            let current = self.apparent_pcr_values()?;
            let record = self.provisioned()?.clone();
            let approval = matching(&record, &current)?;
            let authorization = Authorization {
                policy_key: &record.policy_key,
                approval,
            };
            match self.patiently(|root| command(root, &authorization)) {
                Err(AnchorError::Hardware(error))
                    if matches!(
                        error.disposition(),
                        Disposition::PcrChanged | Disposition::PolicyRefused
                    ) =>
                {
                    tracing::info!(%error, "a PCR changed while a policy was being satisfied");
                    // The values may be as before: then it is the policy itself that is refused.
                    if error.disposition() == Disposition::PolicyRefused
                        && self.apparent_pcr_values()? == current
                    {
                        return Err(AnchorError::Hardware(error));
                    }
                }
                other => return other,
            }
        }
        Err(AnchorError::PcrsUnsteady {
            attempts: POLICY_ATTEMPTS,
        })
    }

    /// Runs a command, again and again while the TPM is busy. After the connection was lost the
    /// next command connects anew.
    pub(super) fn patiently<T>(
        &mut self,
        command: impl FnMut(&mut dyn HardwareRoot) -> Result<T, HardwareError>,
    ) -> Result<T, AnchorError> {
        self.patiently_within(COMMANDS, command)
    }

    /// The same with a command for which the TPM may take this long.
    fn patiently_within<T>(
        &mut self,
        allowance: Duration,
        mut command: impl FnMut(&mut dyn HardwareRoot) -> Result<T, HardwareError>,
    ) -> Result<T, AnchorError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..BUSY_ATTEMPTS {
            match self.once(allowance, &mut command) {
                Err(AnchorError::Hardware(error))
                    if error.disposition() == Disposition::TryAgain =>
                {
                    tracing::debug!(%error, ?pause, "the TPM is busy");
                    std::thread::sleep(pause);
                    pause = pause.saturating_mul(2);
                }
                other => return other,
            }
        }
        self.once(allowance, &mut command)
    }

    fn once<T>(
        &mut self,
        allowance: Duration,
        command: &mut impl FnMut(&mut dyn HardwareRoot) -> Result<T, HardwareError>,
    ) -> Result<T, AnchorError> {
        let watchdog = Arc::clone(&self.watchdog);
        let root = self.connected()?;
        let watch = watchdog.begin(allowance);
        let result = command(root);
        drop(watch);
        if let Err(error) = &result
            && error.disposition() == Disposition::ConnectionLost
        {
            tracing::warn!(%error, "the connection to the TPM is lost");
            self.root = None;
            // Another TPM may be there next time.
            self.host = None;
            self.bank = None;
        }
        Ok(result?)
    }

    /// The connection; a new one is trusted only after its storage root key proved to be the
    /// recorded one.
    fn connected(&mut self) -> Result<&mut dyn HardwareRoot, AnchorError> {
        let root = match self.root.take() {
            Some(root) => root,
            None => {
                let _watch = self.watchdog.begin(COMMANDS);
                let mut root = (self.connect)()?;
                if let Some(record) = &self.record {
                    let found = root.storage_root_key(Some(&record.srk))?;
                    if found != record.srk {
                        return Err(AnchorError::TpmReplaced {
                            found,
                            recorded: record.srk.clone(),
                            record: self.config.record.clone(),
                        });
                    }
                }
                root
            }
        };
        Ok(self.root.insert(root).as_mut())
    }
}

/// Reads PCRs of one bank.
trait ReadPcrs:
    FnMut(&mut dyn HardwareRoot, HashAlgorithm, PcrSelection) -> Result<PcrValues, HardwareError>
{
}

impl<F> ReadPcrs for F where
    F: FnMut(
        &mut dyn HardwareRoot,
        HashAlgorithm,
        PcrSelection,
    ) -> Result<PcrValues, HardwareError>
{
}

/// The approval that fits, or how the nearest one does not.
fn matching<'a>(record: &'a Record, current: &PcrValues) -> Result<&'a Approval, AnchorError> {
    let nearest = record
        .approvals
        .iter()
        .rev()
        .filter(|approval| approval.pcrs.bank() == current.bank())
        .map(|approval| (differences(approval, current), approval))
        .min_by_key(|(differences, _)| differences.len());
    match nearest {
        None => Err(AnchorError::NoApproval {
            bank: current.bank(),
        }),
        Some((differences, approval)) if differences.is_empty() => Ok(approval),
        Some((differences, _)) => Err(AnchorError::PcrsNotApproved { differences }),
    }
}

fn differences(approval: &Approval, current: &PcrValues) -> Vec<PcrDifference> {
    current
        .iter()
        .filter_map(|(pcr, found)| {
            let approved = approval
                .pcrs
                .get(pcr)
                .filter(|approved| approved.algorithm() == found.algorithm());
            (approved != Some(found)).then_some(PcrDifference {
                pcr,
                found,
                approved,
            })
        })
        .collect()
}

fn fresh_secret() -> Result<Zeroizing<[u8; ROOT_SECRET_LENGTH]>, AnchorError> {
    let mut secret = Zeroizing::new([0; ROOT_SECRET_LENGTH]);
    SystemRandom::new().fill(secret.as_mut()).map_err(|_| {
        AnchorError::Hardware(HardwareError::Response {
            operation: Operation("getrandom"),
            what: "no random numbers",
        })
    })?;
    Ok(secret)
}
