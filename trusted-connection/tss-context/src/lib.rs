//! What users of a TPM over the TCG software stack (`tss-esapi`) share: where the TPM is, its primary keys, and
//! that it is asked again while it is busy. How its answers are told, each says in its own words.

mod address;

use std::thread;
use std::time::Duration;

use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CreatePrimaryKeyResult, HashcheckTicket, Public};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Context, Error};

pub use address::{NoTpmAddress, TpmAddress};

/// Waits in front of further tries, in milliseconds.
const WAITS_MS: [u64; 5] = [1, 5, 20, 100, 300];

/// Tries again while the TPM says that it is merely busy.
pub fn retrying<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
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

/// What the TPM answered, if it was the TPM.
pub fn kind(error: &Error) -> Option<Tss2ResponseCodeKind> {
    match error {
        Error::Tss2Error(code) => code.kind(),
        Error::WrapperError(_) => None,
    }
}

/// Makes a primary key from its template, a `TPMT_PUBLIC`: the same one each time.
pub fn create_primary(
    context: &mut Context,
    hierarchy: Hierarchy,
    template: &[u8],
) -> Result<CreatePrimaryKeyResult, Error> {
    let public = Public::unmarshall(template)?;
    retrying(|| {
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(hierarchy, public.clone(), None, None, None, None)
        })
    })
}

/// A key's `TPMT_PUBLIC`.
pub fn public_of(context: &mut Context, key: KeyHandle) -> Result<Vec<u8>, Error> {
    let (public, _, _) = context.execute_without_session(|context| context.read_public(key))?;
    public.marshall()
}

/// A ticket for a hash that the TPM did not make itself (TPM 2.0 Part 2 §10.7.6): for keys that are not
/// restricted.
pub fn unhashed() -> Result<HashcheckTicket, Error> {
    HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: TPM2_ST_HASHCHECK,
        hierarchy: TPM2_RH_NULL,
        digest: Default::default(),
    })
}
