//! The numbers of what this VM signs: a counter in its vRoT (`TPM_NT_COUNTER`), which no command sets back.

use cert_chain::layout::DATA_COUNTER;
use data_signing::number::{self, Counter, CounterProblem};
use tss_context::{kind, retrying};
use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributes;
use tss_esapi::constants::NvIndexType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::NvPublicBuilder;

use crate::attester::AttesterError;
use crate::attester::tss::refused;

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] AttesterError),
    /// It cannot be made.
    #[error(
        "the counter 0x{DATA_COUNTER:08x} cannot be made; if the TPM's owner has a password, make it once \
         with `tpm2_nvdefine 0x{DATA_COUNTER:08x} -C o -P PASSWORD -a \
         \"nt=counter|authread|authwrite|no_da\"`"
    )]
    Define(#[source] tss_esapi::Error),
    /// It is none, or gives no number.
    #[error(transparent)]
    Problem(#[from] CounterProblem),
}

const INCREMENT: &str = "TPM2_NV_Increment";
const READ: &str = "TPM2_NV_Read";
const READ_PUBLIC: &str = "TPM2_NV_ReadPublic";
const COUNTER_SIZE: u16 = 8;

/// A number that nobody else gets.
pub(crate) fn next(context: &mut Context) -> Result<u64, CounterError> {
    let index = open(context)?;
    number::next(&mut OpenCounter { context, index })
}

/// The counter, over a connection to the TPM.
struct OpenCounter<'a> {
    context: &'a mut Context,
    index: NvIndexHandle,
}

impl Counter for OpenCounter<'_> {
    type Error = CounterError;

    fn increment(&mut self) -> Result<(), CounterError> {
        increment(self.context, self.index).map_err(CounterError::from)
    }

    fn read(&mut self) -> Result<Option<u64>, CounterError> {
        read(self.context, self.index)
    }
}

fn open(context: &mut Context) -> Result<NvIndexHandle, CounterError> {
    let index = NvIndexTpmHandle::new(DATA_COUNTER).map_err(refused(READ_PUBLIC))?;
    match find(context, index)? {
        Some(counter) => Ok(counter),
        None => match define(context, index) {
            Ok(()) => Ok(find(context, index)?.ok_or(CounterProblem::NoCounter)?),
            // Somebody else may just have made it.
            Err(error) => find(context, index)?.ok_or(CounterError::Define(error)),
        },
    }
}

/// The index, if there is one, and only if it counts.
fn find(
    context: &mut Context,
    index: NvIndexTpmHandle,
) -> Result<Option<NvIndexHandle>, CounterError> {
    let found = context
        .execute_without_session(|context| context.tr_from_tpm_public(TpmHandle::NvIndex(index)));
    let counter = match found {
        Ok(object) => NvIndexHandle::from(object),
        Err(error) if kind(&error) == Some(Tss2ResponseCodeKind::Handle) => return Ok(None),
        Err(error) => return Err(refused(READ_PUBLIC)(error).into()),
    };
    let (public, _) = context
        .execute_without_session(|context| context.nv_read_public(counter))
        .map_err(refused(READ_PUBLIC))?;
    let attributes = public.attributes();
    // An orderly counter is not kept at once, and may leap after a loss of power.
    let counts = attributes.index_type().ok() == Some(NvIndexType::Counter)
        && !attributes.orderly()
        && public.data_size() == usize::from(COUNTER_SIZE);
    match counts {
        true => Ok(Some(counter)),
        false => Err(CounterProblem::NoCounter.into()),
    }
}

fn define(context: &mut Context, index: NvIndexTpmHandle) -> Result<(), tss_esapi::Error> {
    let attributes = NvIndexAttributes::builder()
        .with_nv_index_type(NvIndexType::Counter)
        .with_auth_read(true)
        .with_auth_write(true)
        .with_no_da(true)
        .build()?;
    let public = NvPublicBuilder::new()
        .with_nv_index(index)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes)
        .with_data_area_size(usize::from(COUNTER_SIZE))
        .build()?;
    retrying(|| {
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.nv_define_space(Provision::Owner, None, public.clone())
        })
    })?;
    Ok(())
}

fn increment(context: &mut Context, counter: NvIndexHandle) -> Result<(), AttesterError> {
    retrying(|| {
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.nv_increment(NvAuth::NvIndex(counter), counter)
        })
    })
    .map_err(refused(INCREMENT))
}

/// The value, once there is one.
fn read(context: &mut Context, counter: NvIndexHandle) -> Result<Option<u64>, CounterError> {
    let read = retrying(|| {
        context.execute_with_session(Some(AuthSession::Password), |context| {
            context.nv_read(NvAuth::NvIndex(counter), counter, COUNTER_SIZE, 0)
        })
    });
    match read {
        Ok(value) => {
            let value =
                <[u8; 8]>::try_from(value.value()).map_err(|_| CounterProblem::NoCounter)?;
            Ok(Some(u64::from_be_bytes(value)))
        }
        Err(error) if kind(&error) == Some(Tss2ResponseCodeKind::NvUninitialized) => Ok(None),
        Err(error) => Err(refused(READ)(error).into()),
    }
}
