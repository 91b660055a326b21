//! This device as the source of signed data.

use attestation::{Binding, Nonce};
use cert_chain::{DeviceName, Digest32, TpmName};
use data_signing::{BoxedError, DataSigner};
use signed_data::{Certificates, Credentials, Source};

use super::evidence::RootOfTrust;
use super::folder::RootOfTrustError;

/// This device, which signs with a key in its TPM.
pub struct DeviceSigner {
    root: RootOfTrust,
    key: TpmName,
    device: DeviceName,
}

impl DeviceSigner {
    /// Has the TPM make its key for data.
    pub(super) fn new(mut root: RootOfTrust) -> Result<Self, RootOfTrustError> {
        // Before anything is counted: what cannot be verified later is not worth signing.
        root.identity.certificate(root.tpm.identity_key())?;
        let (_, certificate) = root.identity.read()?;
        Ok(Self {
            key: root.tpm.data_key()?.name(),
            device: certificate.device().clone(),
            root,
        })
    }
}

impl DataSigner for DeviceSigner {
    fn key(&self) -> TpmName {
        self.key.clone()
    }

    fn source(&self) -> Source {
        Source::Device(self.device.clone())
    }

    fn number(&mut self) -> Result<u64, BoxedError> {
        Ok(self.root.tpm.next_number()?)
    }

    fn credentials(&mut self) -> Result<Credentials, BoxedError> {
        let root = &mut self.root;
        let key = root.tpm.identity_key().clone();
        let certificate = root.identity.certificate(&key)?;
        Ok(Credentials {
            certificates: Certificates::Device(certificate.to_vec().into()),
            identity_key: key.public_area().as_bytes().to_vec().into(),
            statement: root.tpm.data_key_statement()?,
            evidence: None,
        })
    }

    fn evidence(&mut self, nonce: Nonce) -> Result<Vec<u8>, BoxedError> {
        Ok(self.root.evidence(nonce, Binding::SignedData)?.to_cbor())
    }

    fn sign(&mut self, hash: &Digest32) -> Result<[u8; 64], BoxedError> {
        Ok(self.root.tpm.sign_data(hash)?)
    }
}
