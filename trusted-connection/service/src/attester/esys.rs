//! The VM's TPM over the TCG software stack (`tss-esapi`), and raw for the vendor commands.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use attestation::RequestDigest;
use attestation::quote::canonical_signature;
use cert_chain::pcr::BANKS;
use cert_chain::{Digest32, HashAlgorithm, HashValue, PcrSelection, PcrValues};
use tss_esapi::Context;
use tss_esapi::abstraction::nv;
use tss_esapi::constants::CapabilityType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{
    KeyHandle, NvIndexHandle, NvIndexTpmHandle, PersistentTpmHandle, TpmHandle,
};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, AttestInfo, CapabilityData, Data, PcrSelectionList, PcrSlot, Public, SignatureScheme,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::{Marshall, UnMarshall};

use super::host_evidence::{self, HostEvidenceError};
use super::{AttesterError, Host, SignedQuote, VmTpm};

/// A vRoT as its guest sees it: `/dev/tpmrm0`.
pub struct EsysTpm {
    context: Context,
    vik: KeyHandle,
    quoted: PcrSelection,
    bank: Option<HashAlgorithm>,
}

/// Where the vIK is kept, as in other clouds.
const VIK: u32 = 0x8100_0003;
/// The vIK's certificate and its template (the layout that Google's tools read).
/// How long a VM waits for the certificate of its identity key, from its boot on.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(20);
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(50);
const VIK_CERTIFICATE: u32 = 0x01c1_0002;
const VIK_TEMPLATE: u32 = 0x01c1_0003;
/// The certificates above it (TCG EK Credential Profile §2.2.1.5.2).
const CHAIN: u32 = 0x01c0_0100;

/// More than any TPM has.
const MAX_BANKS: u32 = 16;

impl EsysTpm {
    /// Opens the TPM's device. Quotes will be of the PCRs in `quoted`, and of `bank`, if one is
    /// given.
    pub fn open(
        device: &Path,
        quoted: PcrSelection,
        bank: Option<HashAlgorithm>,
    ) -> Result<Self, AttesterError> {
        const OPERATION: &str = "to be opened";
        let name = format!("device:{}", device.display());
        let name = TctiNameConf::from_str(&name).map_err(refused(OPERATION))?;
        let mut context = Context::new(name).map_err(refused(OPERATION))?;
        let vik = load_vik(&mut context)?;
        Ok(Self {
            context,
            vik,
            quoted,
            bank,
        })
    }

    fn read_pcrs(&mut self, bank: HashAlgorithm) -> Result<PcrValues, AttesterError> {
        const OPERATION: &str = "TPM2_PCR_Read";
        let mut values = PcrValues::new(bank);
        let mut wanted: Vec<u8> = self.quoted.iter().collect();
        // A TPM returns as many at a time as it likes, at most eight (TPM 2.0 Part 3 §22.4).
        while !wanted.is_empty() {
            let list = selected(OPERATION, bank, wanted.iter().copied())?;
            let (_, found, digests) = retrying(|| {
                self.context
                    .execute_without_session(|context| context.pcr_read(list.clone()))
            })
            .map_err(refused(OPERATION))?;
            let found = found.get_selections().iter();
            let slots: Vec<u8> = found
                .filter(|selection| selection.hashing_algorithm() == stacks(bank))
                .flat_map(|selection| selection.selected())
                .filter_map(|slot| u8::try_from(u32::from(slot).trailing_zeros()).ok())
                .collect();
            let before = wanted.len();
            for (pcr, digest) in slots.iter().zip(digests.value()) {
                let value = HashValue::new(bank, digest.value()).ok_or(AttesterError::Bank)?;
                values
                    .insert(*pcr, value)
                    .map_err(|_| AttesterError::Bank)?;
                wanted.retain(|wanted| wanted != pcr);
            }
            if wanted.len() == before {
                return Err(AttesterError::Bank);
            }
        }
        Ok(values)
    }

    /// The vIK's certificate. The host has it signed beside the launch of the VM, and writes it as
    /// soon as it has it: until then, its index has no content.
    fn await_certificate(&mut self) -> Result<Vec<u8>, AttesterError> {
        let begin = Instant::now();
        loop {
            match self.read_nv(VIK_CERTIFICATE) {
                Err(AttesterError::Tpm { source, .. })
                    if kind(&source) == Some(Tss2ResponseCodeKind::NvUninitialized) =>
                {
                    if begin.elapsed() > CERTIFICATE_DEADLINE {
                        return Err(AttesterError::Uncertified(CERTIFICATE_DEADLINE));
                    }
                    thread::sleep(CERTIFICATE_PAUSE);
                }
                read => return read,
            }
        }
    }

    fn read_nv(&mut self, index: u32) -> Result<Vec<u8>, AttesterError> {
        read_nv(&mut self.context, index)
    }
}

impl VmTpm for EsysTpm {
    fn vik_public(&mut self) -> Result<Vec<u8>, AttesterError> {
        const OPERATION: &str = "TPM2_ReadPublic";
        let vik = self.vik;
        let (public, _, _) = self
            .context
            .execute_without_session(|context| context.read_public(vik))
            .map_err(refused(OPERATION))?;
        public.marshall().map_err(refused(OPERATION))
    }

    fn certificates(&mut self) -> Result<Vec<Vec<u8>>, AttesterError> {
        let certificate = self.await_certificate()?;
        let mut certificates = split_certificates(VIK_CERTIFICATE, &certificate)?;
        certificates.extend(split_certificates(CHAIN, &self.read_nv(CHAIN)?)?);
        Ok(certificates)
    }

    fn quoted(&self) -> PcrSelection {
        self.quoted
    }

    fn banks(&mut self) -> Result<Vec<HashAlgorithm>, AttesterError> {
        const OPERATION: &str = "TPM2_GetCapability";
        let (found, _) = self
            .context
            .execute_without_session(|context| {
                context.get_capability(CapabilityType::AssignedPcr, 0, MAX_BANKS)
            })
            .map_err(refused(OPERATION))?;
        let CapabilityData::AssignedPcr(allocated) = found else {
            return Ok(Vec::new());
        };
        let has = |bank: HashAlgorithm| {
            allocated.get_selections().iter().any(|selection| {
                let slots = selection.selected();
                let pcrs = slots.iter().map(|slot| u32::from(*slot).trailing_zeros());
                let pcrs: Vec<u32> = pcrs.collect();
                selection.hashing_algorithm() == stacks(bank)
                    && self.quoted.iter().all(|pcr| pcrs.contains(&u32::from(pcr)))
            })
        };
        let wanted = |bank: &HashAlgorithm| self.bank.is_none_or(|only| only == *bank);
        Ok(BANKS
            .into_iter()
            .filter(|bank| wanted(bank) && has(*bank))
            .collect())
    }

    fn quote(
        &mut self,
        bank: HashAlgorithm,
        qualifying_data: &Digest32,
    ) -> Result<SignedQuote, AttesterError> {
        const OPERATION: &str = "TPM2_Quote";
        /// Whatever extends PCRs after the boot does so now and then.
        const ATTEMPTS: usize = 3;
        let selection = selected(OPERATION, bank, self.quoted.iter())?;
        let data =
            Data::try_from(qualifying_data.as_bytes().to_vec()).map_err(refused(OPERATION))?;
        let vik = self.vik;
        for _ in 0..ATTEMPTS {
            let pcrs = self.read_pcrs(bank)?;
            let (attest, signature) = retrying(|| {
                self.context
                    .execute_with_session(Some(AuthSession::Password), |context| {
                        context.quote(vik, data.clone(), SignatureScheme::Null, selection.clone())
                    })
            })
            .map_err(refused(OPERATION))?;
            let signature = signature.marshall().map_err(refused(OPERATION))?;
            if quotes(&attest, &pcrs) {
                return Ok(SignedQuote {
                    attest: attest.marshall().map_err(refused(OPERATION))?,
                    signature: canonical_signature(&signature).map_err(AttesterError::Signature)?,
                    pcrs,
                });
            }
        }
        Err(AttesterError::PcrsChange)
    }
}

/// The host, reached through the device of the VM's TPM.
#[derive(Clone, Debug)]
pub struct HostThroughTpm {
    device: PathBuf,
}

impl HostThroughTpm {
    /// The host below the VM with this TPM.
    pub fn new(device: impl Into<PathBuf>) -> Self {
        Self {
            device: device.into(),
        }
    }
}

impl Host for HostThroughTpm {
    fn layer(&self, request: &RequestDigest) -> Result<Vec<u8>, HostEvidenceError> {
        // The TSS sends no commands that it does not know; the resource manager lets a second
        // client in.
        let mut device: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.device)?;
        host_evidence::host_layer(&mut device, request)
    }
}

/// The vIK where the host put it; or made anew from its template, if the guest removed it.
fn load_vik(context: &mut Context) -> Result<KeyHandle, AttesterError> {
    const OPERATION: &str = "TPM2_ReadPublic";
    let handle = PersistentTpmHandle::new(VIK).map_err(refused(OPERATION))?;
    let found = context.execute_without_session(|context| {
        context.tr_from_tpm_public(TpmHandle::Persistent(handle))
    });
    match found {
        Ok(object) => Ok(object.into()),
        Err(error) if kind(&error) == Some(Tss2ResponseCodeKind::Handle) => recreate_vik(context),
        Err(error) => Err(refused(OPERATION)(error)),
    }
}

fn recreate_vik(context: &mut Context) -> Result<KeyHandle, AttesterError> {
    const OPERATION: &str = "TPM2_CreatePrimary";
    let template = read_nv(context, VIK_TEMPLATE)?;
    let public = Public::unmarshall(&template).map_err(refused(OPERATION))?;
    context
        .execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Endorsement, public, None, None, None, None)
        })
        .map(|created| created.key_handle)
        .map_err(refused(OPERATION))
}

/// Reads an index by its own authorization, which is empty for what a host publishes: that of the
/// owner is the guest's to set. Indices that only the owner reads come second.
fn read_nv(context: &mut Context, index: u32) -> Result<Vec<u8>, AttesterError> {
    const OPERATION: &str = "TPM2_NV_Read";
    let index = NvIndexTpmHandle::new(index).map_err(refused(OPERATION))?;
    let own = context
        .execute_without_session(|context| context.tr_from_tpm_public(TpmHandle::NvIndex(index)))
        .map_err(refused(OPERATION))?;
    let mut read = |authority: NvAuth| {
        retrying(|| {
            context.execute_with_session(Some(AuthSession::Password), |context| {
                nv::read_full(context, authority, index)
            })
        })
    };
    read(NvAuth::NvIndex(NvIndexHandle::from(own)))
        .or_else(|error| match kind(&error) {
            Some(Tss2ResponseCodeKind::NvUninitialized) => Err(error),
            _ => read(NvAuth::Owner),
        })
        .map_err(refused(OPERATION))
}

fn selected(
    operation: &'static str,
    bank: HashAlgorithm,
    pcrs: impl Iterator<Item = u8>,
) -> Result<PcrSelectionList, AttesterError> {
    let slots = pcrs
        .map(|pcr| PcrSlot::try_from(1u32 << pcr))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused(operation))?;
    PcrSelectionList::builder()
        .with_selection(stacks(bank), &slots)
        .build()
        .map_err(refused(operation))
}

/// Whether a quote is of these values.
fn quotes(attest: &Attest, pcrs: &PcrValues) -> bool {
    match attest.attested() {
        AttestInfo::Quote { info } => info.pcr_digest().value() == pcrs.digest().as_bytes(),
        _ => false,
    }
}

/// The software stack's own name of an algorithm.
fn stacks(algorithm: HashAlgorithm) -> HashingAlgorithm {
    match algorithm {
        HashAlgorithm::Sha1 => HashingAlgorithm::Sha1,
        HashAlgorithm::Sha256 => HashingAlgorithm::Sha256,
        HashAlgorithm::Sha384 => HashingAlgorithm::Sha384,
        HashAlgorithm::Sha512 => HashingAlgorithm::Sha512,
    }
}

/// Splits certificates that stand one after the other; padding of zeros or ones ends them.
fn split_certificates(index: u32, bytes: &[u8]) -> Result<Vec<Vec<u8>>, AttesterError> {
    let malformed = || AttesterError::Certificates { index };
    let mut certificates = Vec::new();
    let mut rest = bytes;
    while let [0x30, 0x82, high, low, ..] = *rest {
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        let (certificate, behind) = rest.split_at_checked(length).ok_or_else(malformed)?;
        certificates.push(certificate.to_vec());
        rest = behind;
    }
    let padded = rest.iter().all(|byte| matches!(byte, 0x00 | 0xff));
    if certificates.is_empty() || !padded {
        return Err(malformed());
    }
    Ok(certificates)
}

fn kind(error: &tss_esapi::Error) -> Option<Tss2ResponseCodeKind> {
    match error {
        tss_esapi::Error::Tss2Error(code) => code.kind(),
        tss_esapi::Error::WrapperError(_) => None,
    }
}

fn refused(operation: &'static str) -> impl Fn(tss_esapi::Error) -> AttesterError {
    move |source| AttesterError::Tpm { operation, source }
}

/// Waits in front of further tries, in milliseconds.
const WAITS_MS: [u64; 5] = [1, 5, 20, 100, 300];

/// Tries again while the TPM says that it is merely busy.
fn retrying<T>(
    mut attempt: impl FnMut() -> Result<T, tss_esapi::Error>,
) -> Result<T, tss_esapi::Error> {
    for wait in WAITS_MS {
        match attempt() {
            Err(error) if kind(&error) == Some(Tss2ResponseCodeKind::Retry) => {
                thread::sleep(Duration::from_millis(wait));
            }
            outcome => return outcome,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_split_and_padding_ignored() {
        let two = [0x30, 0x82, 0, 1, 9, 0x30, 0x82, 0, 0, 0xff, 0xff];
        assert_eq!(
            split_certificates(CHAIN, &two).ok(),
            Some(vec![vec![0x30, 0x82, 0, 1, 9], vec![0x30, 0x82, 0, 0]])
        );
        for bad in [
            &[][..],
            &[0x30, 0x82, 0, 9, 1],
            &[0x30, 0x82, 0, 0, 7],
            &[0, 0],
        ] {
            assert!(split_certificates(CHAIN, bad).is_err());
        }
    }
}
