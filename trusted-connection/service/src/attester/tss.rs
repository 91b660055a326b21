//! The TCG software stack (`tss-esapi`), as far as all that talk to the VM's TPM need it: each has a
//! context of its own on the kernel's resource manager, so that none waits for another's.

use cert_chain::layout::NvIndex;
use printable::WithCauses;
use tss_context::{TpmAddress, create_primary, kind, retrying};
use tss_esapi::Context;
use tss_esapi::abstraction::nv;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{
    KeyHandle, NvIndexHandle, NvIndexTpmHandle, PersistentTpmHandle, TpmHandle,
};
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::interface_types::session_handles::AuthSession;

use super::AttesterError;

/// A key that the host put into the TPM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostsKey {
    /// Where it is persistent.
    pub(crate) handle: u32,
    /// The NV index with its template, which makes it anew in the endorsement hierarchy.
    pub(crate) template: NvIndex,
}

/// A key that the host put into the TPM, in use over a context of its own.
pub(crate) struct KeyInUse {
    tpm: TpmAddress,
    key: HostsKey,
    open: Open,
}

/// Handles count in their context alone: the two are taken anew together.
struct Open {
    context: Context,
    key: KeyHandle,
}

impl Open {
    fn new(tpm: &TpmAddress, key: HostsKey) -> Result<Self, AttesterError> {
        let mut context = open(tpm)?;
        let key = load(&mut context, key)?;
        Ok(Self { context, key })
    }
}

impl KeyInUse {
    /// Finds a key in this TPM.
    pub(crate) fn open(tpm: &TpmAddress, key: HostsKey) -> Result<Self, AttesterError> {
        Ok(Self {
            tpm: tpm.clone(),
            key,
            open: Open::new(tpm, key)?,
        })
    }

    /// The context, for what needs no key.
    pub(crate) fn context(&mut self) -> &mut Context {
        &mut self.open.context
    }

    /// Uses the key. If that fails, once more with the TPM opened anew: the guest's owner may have removed the
    /// key (`TPM2_Clear`). What is made anew from its template is the same one. How that shows depends on
    /// where the key was and on who manages the TPM's resources, so every failure is taken for it.
    pub(crate) fn using<T>(
        &mut self,
        operate: impl Fn(&mut Context, KeyHandle) -> Result<T, AttesterError>,
    ) -> Result<T, AttesterError> {
        operate(&mut self.open.context, self.open.key).or_else(|error| {
            tracing::warn!(
                key = format_args!("0x{:08x}", self.key.handle),
                error = %WithCauses(&error),
                "the TPM is opened anew, for it did not use a key"
            );
            self.open = Open::new(&self.tpm, self.key)?;
            operate(&mut self.open.context, self.open.key)
        })
    }
}

/// A context on the TPM.
pub(crate) fn open(tpm: &TpmAddress) -> Result<Context, AttesterError> {
    // The stack does not tell a TPM that is missing from one that is not to be used.
    if let TpmAddress::Device(device) = tpm {
        tpm.open().map_err(|source| AttesterError::Device {
            device: device.clone(),
            source,
        })?;
    }
    tpm.context().map_err(refused("to be opened"))
}

/// A key where the host put it; or made anew from its template, if the guest removed it.
pub(crate) fn load(context: &mut Context, key: HostsKey) -> Result<KeyHandle, AttesterError> {
    const OPERATION: &str = "TPM2_ReadPublic";
    let handle = PersistentTpmHandle::new(key.handle).map_err(refused(OPERATION))?;
    let found = context.execute_without_session(|context| {
        context.tr_from_tpm_public(TpmHandle::Persistent(handle))
    });
    match found {
        Ok(object) => Ok(object.into()),
        Err(error) if kind(&error) == Some(Tss2ResponseCodeKind::Handle) => {
            recreate(context, key.template)
        }
        Err(error) => Err(refused(OPERATION)(error)),
    }
}

fn recreate(context: &mut Context, template: NvIndex) -> Result<KeyHandle, AttesterError> {
    let template = read_nv(context, template)?;
    create_primary(context, Hierarchy::Endorsement, &template)
        .map(|created| created.key_handle)
        .map_err(refused("TPM2_CreatePrimary"))
}

/// A key's `TPMT_PUBLIC`.
pub(crate) fn public_of(context: &mut Context, key: KeyHandle) -> Result<Vec<u8>, AttesterError> {
    tss_context::public_of(context, key).map_err(refused("TPM2_ReadPublic"))
}

/// The certificate in an index, and those above it.
pub(crate) fn chain(context: &mut Context, index: NvIndex) -> Result<Vec<Vec<u8>>, AttesterError> {
    const CHAIN: NvIndex = NvIndex::CERTIFICATE_CHAIN;
    let mut certificates = split_certificates(index, &read_nv(context, index)?)?;
    certificates.extend(split_certificates(CHAIN, &read_nv(context, CHAIN)?)?);
    Ok(certificates)
}

/// Whether an index has no content yet.
pub(crate) fn is_empty_index(error: &AttesterError) -> bool {
    matches!(error, AttesterError::Tpm { source, .. }
        if kind(source) == Some(Tss2ResponseCodeKind::NvUninitialized))
}

/// Reads an index by its own authorization, which is empty for what a host publishes: that of the
/// owner is the guest's to set. Indices that only the owner reads come second.
fn read_nv(context: &mut Context, index: NvIndex) -> Result<Vec<u8>, AttesterError> {
    const OPERATION: &str = "TPM2_NV_Read";
    let index = NvIndexTpmHandle::new(index.handle()).map_err(refused(OPERATION))?;
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

/// Splits certificates that stand one after the other; padding of zeros or ones ends them.
fn split_certificates(index: NvIndex, bytes: &[u8]) -> Result<Vec<Vec<u8>>, AttesterError> {
    let malformed = || AttesterError::Certificates {
        index: index.handle(),
    };
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

pub(crate) fn refused(operation: &'static str) -> impl Fn(tss_esapi::Error) -> AttesterError {
    move |source| AttesterError::Tpm { operation, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_split_and_padding_ignored() {
        let two = [0x30, 0x82, 0, 1, 9, 0x30, 0x82, 0, 0, 0xff, 0xff];
        assert_eq!(
            split_certificates(NvIndex::CERTIFICATE_CHAIN, &two).ok(),
            Some(vec![vec![0x30, 0x82, 0, 1, 9], vec![0x30, 0x82, 0, 0]])
        );
        for bad in [
            &[][..],
            &[0x30, 0x82, 0, 9, 1],
            &[0x30, 0x82, 0, 0, 7],
            &[0, 0],
        ] {
            assert!(split_certificates(NvIndex::CERTIFICATE_CHAIN, bad).is_err());
        }
    }
}
