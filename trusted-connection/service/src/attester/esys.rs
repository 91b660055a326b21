//! The VM's TPM over the TCG software stack (`tss-esapi`), and raw for the vendor commands.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use attestation::quote::canonical_signature;
use attestation::{KeyStatement, RequestDigest};
use cert_chain::layout::{NvIndex, VIK_HANDLE};
use cert_chain::{Digest32, HashAlgorithm, PcrSelection, PcrValues};
use tss_context::{TpmAddress, retrying};
use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Attest, AttestInfo, Data, SignatureScheme};
use tss_esapi::traits::Marshall;

use super::host_evidence::{self, HostEvidenceError, HostMemory};
use super::tss::{self, HostsKey, KeyInUse, refused};
use super::{AttesterError, Host, SignedQuote, VmTpm, pcrs, signing};

/// A vRoT as its guest sees it: `/dev/tpmrm0`.
pub struct EsysTpm {
    vik: KeyInUse,
    quoted: PcrSelection,
    bank: Option<HashAlgorithm>,
    /// What the PCRs held last, by bank. They hardly ever change after the boot, and a quote tells
    /// whether they did.
    pcrs: Option<PcrValues>,
}

/// The key that quotes.
pub(crate) const VIK: HostsKey = HostsKey {
    handle: VIK_HANDLE,
    template: NvIndex::VIK_TEMPLATE,
};
/// How long a VM waits for the certificate of its identity key, from its boot on.
const CERTIFICATE_DEADLINE: Duration = Duration::from_secs(20);
const CERTIFICATE_PAUSE: Duration = Duration::from_millis(50);
/// So many looks before the log says what is waited for.
const QUIET_LOOKS: u32 = 20;

impl EsysTpm {
    /// Opens the TPM. Quotes will be of the PCRs in `quoted`, and of `bank`, if one is given.
    pub fn open(
        tpm: &TpmAddress,
        quoted: PcrSelection,
        bank: Option<HashAlgorithm>,
    ) -> Result<Self, AttesterError> {
        Ok(Self {
            vik: KeyInUse::open(tpm, VIK)?,
            quoted,
            bank,
            pcrs: None,
        })
    }

    /// The certificate in an index and the host's above it, once the host has made it.
    pub(crate) fn wait_for_chain(&mut self, index: NvIndex) -> Result<Vec<Vec<u8>>, AttesterError> {
        let begin = Instant::now();
        let mut looks: u32 = 0;
        loop {
            match tss::chain(self.vik.context(), index) {
                Err(error) if tss::is_empty_index(&error) => {
                    if begin.elapsed() > CERTIFICATE_DEADLINE {
                        return Err(AttesterError::Uncertified(CERTIFICATE_DEADLINE));
                    }
                    looks = looks.saturating_add(1);
                    if looks == QUIET_LOOKS {
                        tracing::info!("waiting until the host has certified this VM's key");
                    }
                    thread::sleep(CERTIFICATE_PAUSE);
                }
                read => return read,
            }
        }
    }

    /// Has the vIK certify a key of the same TPM (`TPM2_Certify`), whose authorization value is empty.
    pub(crate) fn certify(&mut self, key: HostsKey) -> Result<KeyStatement, AttesterError> {
        let (public, (attest, signature)) = self.vik.using(|context, vik| {
            let certified = tss::load(context, key)?;
            let public = tss::public_of(context, certified)?;
            Ok((public, signing::certify(context, certified, vik, &[])?))
        })?;
        Ok(KeyStatement {
            public: public.into(),
            attest: attest.into(),
            signature: signature.into(),
        })
    }
}

impl VmTpm for EsysTpm {
    fn vik_public(&mut self) -> Result<Vec<u8>, AttesterError> {
        self.vik.using(tss::public_of)
    }

    /// The host has the vIK's certificate signed beside the launch of the VM, and writes it as soon
    /// as it has it: until then, its index has no content.
    fn certificates(&mut self) -> Result<Vec<Vec<u8>>, AttesterError> {
        self.wait_for_chain(NvIndex::VIK_CERTIFICATE)
    }

    fn quoted(&self) -> PcrSelection {
        self.quoted
    }

    fn banks(&mut self) -> Result<Vec<HashAlgorithm>, AttesterError> {
        let mut banks = pcrs::banks(self.vik.context(), self.quoted)?;
        banks.retain(|bank| self.bank.is_none_or(|only| only == *bank));
        Ok(banks)
    }

    fn quote(
        &mut self,
        bank: HashAlgorithm,
        qualifying_data: &Digest32,
    ) -> Result<SignedQuote, AttesterError> {
        const OPERATION: &str = "TPM2_Quote";
        /// Whatever extends PCRs after the boot does so now and then.
        const ATTEMPTS: usize = 4;
        let selection = pcrs::selected(OPERATION, bank, self.quoted.iter())?;
        let data =
            Data::try_from(qualifying_data.as_bytes().to_vec()).map_err(refused(OPERATION))?;
        let quote = |context: &mut Context, vik: KeyHandle| {
            retrying(|| {
                context.execute_with_session(Some(AuthSession::Password), |context| {
                    context.quote(vik, data.clone(), SignatureScheme::Null, selection.clone())
                })
            })
            .map_err(refused(OPERATION))
        };
        for _ in 0..ATTEMPTS {
            let pcrs = match self.pcrs.take() {
                Some(pcrs) if pcrs.bank() == bank => pcrs,
                _ => pcrs::read(self.vik.context(), bank, self.quoted)?,
            };
            let (attest, signature) = self.vik.using(quote)?;
            let signature = signature.marshall().map_err(refused(OPERATION))?;
            if quotes(&attest, &pcrs) {
                self.pcrs = Some(pcrs.clone());
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

/// The host, reached through the VM's TPM.
#[derive(Clone, Debug)]
pub struct HostThroughTpm {
    tpm: TpmAddress,
    memory: Arc<Mutex<HostMemory>>,
}

impl HostThroughTpm {
    /// The host below the VM with this TPM.
    pub fn new(tpm: TpmAddress) -> Self {
        Self {
            tpm,
            memory: Arc::default(),
        }
    }
}

impl Host for HostThroughTpm {
    fn layer(&self, request: &RequestDigest) -> Result<Vec<u8>, HostEvidenceError> {
        // The TSS sends no commands that it does not know; the resource manager lets a second
        // client in.
        host_evidence::host_layer(&mut *self.tpm.open()?, request, &self.memory)
    }
}

/// Whether a quote is of these values.
fn quotes(attest: &Attest, pcrs: &PcrValues) -> bool {
    match attest.attested() {
        AttestInfo::Quote { info } => info.pcr_digest().value() == pcrs.digest().as_bytes(),
        _ => false,
    }
}
