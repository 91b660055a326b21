//! `vrot-service sign`: data signed by this VM's key for data.

use anyhow::{Context, Result};
use attestation::{Binding, Nonce};
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::vik::VikCertificate;
use cert_chain::{Digest32, TpmName, VikChain, VmId};
use data_signing::{BoxedError, DataSigner};
use signed_data::{Certificates, Credentials, Source};

use crate::attester::quoting::{EvidenceFiles, Quoter};
use crate::attester::{Host, TpmAddress, VmTpm};
use crate::data_key::TpmDataKey;
use crate::evidence_file;

/// This VM, which signs with its vRoT.
#[derive(Debug)]
pub struct VmSigner<T, H> {
    quoter: Quoter<T>,
    host: H,
    key: TpmDataKey,
    vm: VmId,
}

impl<T: VmTpm, H: Host> VmSigner<T, H> {
    /// Has the vRoT at this address, which `tpm` is as well, make its key for data.
    pub fn open(address: &TpmAddress, tpm: T, host: H, files: EvidenceFiles) -> Result<Self> {
        let mut quoter = Quoter::new(tpm, files);
        let identity = quoter.identity()?;
        Ok(Self {
            vm: vm_of(&identity.chain)?,
            key: TpmDataKey::make(address)?,
            quoter,
            host,
        })
    }
}

impl<T: VmTpm, H: Host> DataSigner for VmSigner<T, H> {
    fn key(&self) -> TpmName {
        self.key.public().name()
    }

    fn source(&self) -> Source {
        Source::Vm(self.vm)
    }

    fn number(&mut self) -> Result<u64, BoxedError> {
        Ok(self.key.next_number()?)
    }

    fn credentials(&mut self) -> Result<Credentials, BoxedError> {
        let identity = self.quoter.identity()?;
        let [vik, host] = identity.chain.as_slice() else {
            return Err("the vRoT has not the two certificates of a VM".into());
        };
        Ok(Credentials {
            certificates: Certificates::Vm([vik.clone().into(), host.clone().into()]),
            identity_key: identity.vik_public.clone().into(),
            statement: self.key.statement().clone(),
            evidence: None,
        })
    }

    fn evidence(&mut self, nonce: Nonce) -> Result<Vec<u8>, BoxedError> {
        let evidence =
            evidence_file::make(&mut self.quoter, &self.host, nonce, Binding::SignedData)?;
        Ok(evidence.to_cbor())
    }

    fn sign(&mut self, hash: &Digest32) -> Result<[u8; 64], BoxedError> {
        Ok(self.key.sign(hash)?)
    }
}

fn vm_of(chain: &[Vec<u8>]) -> Result<VmId> {
    const MALFORMED: &str = "a certificate in the vRoT does not follow its profile";
    let chain = VikChain::from_der_list(chain).context(MALFORMED)?;
    let host = HostCertificate::read(chain.host_certificate()).context(MALFORMED)?;
    let vik = VikCertificate::read(chain.vik_certificate(), host.host()).context(MALFORMED)?;
    Ok(vik.claims().vm)
}
