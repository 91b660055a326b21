//! The vIK's quote that the host has made, between two commands of the guest.
//!
//! All of it is one sequence, in which the guest gets no turn. Nothing of it stays: no session is
//! begun, an object that is loaded is flushed again, and one of the guest's that must make room is put
//! back under its handle. Nothing that a dictionary attack counter looks at is used, and the only
//! permanent state that can change is the clock's, as with any command.
//!
//! A guest owns its TPM. What it does to the key's handle does not matter: the key is known by its name,
//! and made anew from its template where it is not found, or where it is kept with an authorization value. What it does to the endorsement hierarchy can
//! make a quote impossible, and then that is the answer.

use backend_link::quote::{NoQuote, Quote, QuoteOrder};
use tpm_wire::{HEADER, NO_SESSIONS, Response, ResponseCode, SESSIONS, frame};

use crate::engine::Engine;

const CREATE_PRIMARY: u32 = 0x131;
const SET_COMMAND_CODE_AUDIT_STATUS: u32 = 0x140;
const QUOTE: u32 = 0x158;
const CONTEXT_LOAD: u32 = 0x161;
const CONTEXT_SAVE: u32 = 0x162;
const FLUSH_CONTEXT: u32 = 0x165;
const READ_PUBLIC: u32 = 0x173;
const GET_CAPABILITY: u32 = 0x17a;
const PCR_READ: u32 = 0x17e;

const CAP_HANDLES: u32 = 1;
const CAP_AUDIT_COMMANDS: u32 = 4;
const CAP_PCRS: u32 = 5;
/// More than there are commands.
const ALL: u32 = 254;
/// `TPM_HT_TRANSIENT`
const TRANSIENT_FIRST: u32 = 0x8000_0000;
const RH_ENDORSEMENT: [u8; 4] = [0x40, 0, 0, 0x0b];
/// A password session (`TPM_RS_PW`) with an empty value, after the size of the authorization area.
const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
/// `TPM_ALG_NULL`: as the key's template says.
const SCHEME_OF_KEY: [u8; 2] = [0, 0x10];
/// One `TPM2_PCR_Read` returns eight values.
const PCR_READS: usize = 4;
/// What a digest has at most, in bytes.
const MAX_DIGEST: usize = 64;

/// Has the TPM quote.
pub(crate) fn quote(engine: &mut impl Engine, order: &QuoteOrder) -> Result<Quote, NoQuote> {
    let mut tpm = Tpm(engine);
    tpm.check_audit()?;
    let bank = tpm.bank(order)?;
    match tpm.quote_in(bank, order) {
        Err(NoQuote::Refused { code }) if code == ResponseCode::OBJECT_MEMORY.raw() => {
            tpm.with_room(|tpm| tpm.quote_in(bank, order))
        }
        other => other,
    }
}

struct Tpm<'e, E>(&'e mut E);

/// The key that quotes.
struct Key {
    handle: u32,
    public: Vec<u8>,
    /// Whether it was loaded for this.
    is_transient: bool,
}

impl<E: Engine> Tpm<'_, E> {
    /// A guest that audits commands can tell by the audit's digest that there were others.
    fn check_audit(&mut self) -> Result<(), NoQuote> {
        let listed = self.capability(CAP_AUDIT_COMMANDS, 0, ALL)?;
        let mut commands = Reader(&listed);
        let count = commands.u32()?;
        for _ in 0..count {
            if commands.u32()? != SET_COMMAND_CODE_AUDIT_STATUS {
                return Err(NoQuote::Audited);
            }
        }
        Ok(())
    }

    /// The first bank that has all PCRs.
    fn bank(&mut self, order: &QuoteOrder) -> Result<u16, NoQuote> {
        let listed = self.capability(CAP_PCRS, 0, 1)?;
        let mut banks = Reader(&listed);
        let mut active = Vec::new();
        for _ in 0..banks.u32()? {
            let (bank, pcrs) = banks.selection()?;
            if pcrs & order.pcrs == order.pcrs {
                active.push(bank);
            }
        }
        let wanted = order.banks.iter().copied();
        wanted
            .into_iter()
            .find(|bank| active.contains(bank))
            .ok_or(NoQuote::Bank)
    }

    fn quote_in(&mut self, bank: u16, order: &QuoteOrder) -> Result<Quote, NoQuote> {
        let key = self.key(order)?;
        match self.quote_and_flush(&key, bank, order) {
            // The name does not tell of an authorization value: the guest kept the key with one.
            Err(NoQuote::Refused { code }) if !key.is_transient && is_authorization(code) => {
                let key = self.make(order)?;
                self.quote_and_flush(&key, bank, order)
            }
            other => other,
        }
    }

    fn quote_and_flush(
        &mut self,
        key: &Key,
        bank: u16,
        order: &QuoteOrder,
    ) -> Result<Quote, NoQuote> {
        let quote = self.quote_with(key, bank, order);
        if key.is_transient {
            self.flush(key.handle)?;
        }
        quote
    }

    fn quote_with(&mut self, key: &Key, bank: u16, order: &QuoteOrder) -> Result<Quote, NoQuote> {
        let pcr_values = self.pcr_values(bank, order.pcrs)?;
        let body = [
            &key.handle.to_be_bytes()[..],
            &EMPTY_PASSWORD,
            &[0, 32],
            &*order.qualifying_data,
            &SCHEME_OF_KEY,
            &selection(bank, order.pcrs),
        ]
        .concat();
        let answer = self.run(SESSIONS, QUOTE, &body)?;
        let mut parameters = Reader(&answer).counted()?;
        let attest = parameters.sized()?.to_vec();
        Ok(Quote {
            attest: attest.into(),
            signature: parameters.0.to_vec().into(),
            public: key.public.clone().into(),
            pcr_values: pcr_values.into(),
        })
    }

    /// The key at its handle, if it is the one; or else made anew.
    fn key(&mut self, order: &QuoteOrder) -> Result<Key, NoQuote> {
        match self.read_public(order.handle) {
            Ok((public, name)) if name == **order.name => Ok(Key {
                handle: order.handle,
                public,
                is_transient: false,
            }),
            Err(error @ NoQuote::Refused { code }) if code == ResponseCode::OBJECT_MEMORY.raw() => {
                Err(error)
            }
            // Nothing is there, or something else is.
            Ok(_) | Err(NoQuote::Refused { .. }) => self.make(order),
            Err(other) => Err(other),
        }
    }

    fn make(&mut self, order: &QuoteOrder) -> Result<Key, NoQuote> {
        let template = u16::try_from(order.template.len()).map_err(|_| NoQuote::Answer)?;
        let body = [
            &RH_ENDORSEMENT[..],
            &EMPTY_PASSWORD,
            // No authorization value and no data.
            &[0, 4, 0, 0, 0, 0],
            &template.to_be_bytes(),
            &order.template,
            // Nothing from outside, no PCRs of its creation.
            &[0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let answer = self.run(SESSIONS, CREATE_PRIMARY, &body);
        let answer = answer.map_err(|error| match error {
            NoQuote::Refused { code } if code != ResponseCode::OBJECT_MEMORY.raw() => {
                NoQuote::Key { code }
            }
            other => other,
        })?;
        let handle = Reader(&answer).u32()?;
        let read = self.read_public(handle);
        match read {
            Ok((public, name)) if name == **order.name => Ok(Key {
                handle,
                public,
                is_transient: true,
            }),
            other => {
                self.flush(handle)?;
                Err(other.err().unwrap_or(NoQuote::AnotherKey))
            }
        }
    }

    /// `TPMT_PUBLIC` and name.
    fn read_public(&mut self, handle: u32) -> Result<(Vec<u8>, Vec<u8>), NoQuote> {
        let answer = self.run(NO_SESSIONS, READ_PUBLIC, &handle.to_be_bytes())?;
        let mut answer = Reader(&answer);
        let public = answer.sized()?.to_vec();
        Ok((public, answer.sized()?.to_vec()))
    }

    fn pcr_values(&mut self, bank: u16, pcrs: u32) -> Result<Vec<u8>, NoQuote> {
        let mut left = pcrs;
        let mut values = Vec::new();
        for _ in 0..PCR_READS {
            if left == 0 {
                return Ok(values);
            }
            let answer = self.run(NO_SESSIONS, PCR_READ, &selection(bank, left))?;
            let mut answer = Reader(&answer);
            // The number of changes.
            answer.u32()?;
            let (1, (read_bank, read)) = (answer.u32()?, answer.selection()?) else {
                return Err(NoQuote::Answer);
            };
            // Some of them, from the lowest on.
            let rest = left & !read;
            let lowest_left = rest & rest.wrapping_neg();
            let is_next = read & left == read && (rest == 0 || read < lowest_left);
            if read_bank != bank || read == 0 || !is_next {
                return Err(NoQuote::Answer);
            }
            let count = answer.u32()?;
            if count != read.count_ones() {
                return Err(NoQuote::Answer);
            }
            for _ in 0..count {
                let value = answer.sized()?;
                if value.len() > MAX_DIGEST {
                    return Err(NoQuote::Answer);
                }
                values.extend_from_slice(value);
            }
            left = rest;
        }
        Err(NoQuote::Answer)
    }

    /// Has one of the guest's objects make room meanwhile, and puts it back. All places are taken, so
    /// the one that becomes free is the one that it goes back to, and it has the handle that it had.
    fn with_room(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<Quote, NoQuote>,
    ) -> Result<Quote, NoQuote> {
        let listed = self.capability(CAP_HANDLES, TRANSIENT_FIRST, 1)?;
        let mut handles = Reader(&listed);
        let (1, handle) = (handles.u32()?, handles.u32()?) else {
            return Err(NoQuote::Answer);
        };
        let context = self.run(NO_SESSIONS, CONTEXT_SAVE, &handle.to_be_bytes())?;
        self.flush(handle)?;
        let outcome = work(self);
        let loaded = self.run(NO_SESSIONS, CONTEXT_LOAD, &context);
        let loaded = loaded.inspect_err(|error| {
            tracing::error!(%error, "an object of the guest's could not be put back");
        })?;
        if Reader(&loaded).u32()? != handle {
            tracing::error!("an object of the guest's has another handle than before");
        }
        outcome
    }

    fn flush(&mut self, handle: u32) -> Result<(), NoQuote> {
        self.run(NO_SESSIONS, FLUSH_CONTEXT, &handle.to_be_bytes())
            .map(drop)
    }

    /// What `TPM2_GetCapability` lists: a number of entries, and these.
    fn capability(&mut self, what: u32, first: u32, count: u32) -> Result<Vec<u8>, NoQuote> {
        let body = [what, first, count].map(u32::to_be_bytes);
        let answer = self.run(NO_SESSIONS, GET_CAPABILITY, body.as_flattened())?;
        // moreData
        let answer = answer.get(1..).ok_or(NoQuote::Answer)?;
        let mut answer = Reader(answer);
        if answer.u32()? != what {
            return Err(NoQuote::Answer);
        }
        Ok(answer.0.to_vec())
    }

    /// What follows the header of a successful response.
    fn run(&mut self, tag: u16, code: u32, body: &[u8]) -> Result<Vec<u8>, NoQuote> {
        let response = self.0.execute(&frame(tag, code, body), 0);
        let code = Response::parse(&response).ok_or(NoQuote::Answer)?.code();
        if code == ResponseCode::INITIALIZE {
            return Err(NoQuote::NotStarted);
        }
        if !code.is_success() {
            return Err(NoQuote::Refused { code: code.raw() });
        }
        Ok(response.get(HEADER..).unwrap_or_default().to_vec())
    }
}

/// Whether a response code says that an authorization value is not the key's.
fn is_authorization(code: u32) -> bool {
    let code = ResponseCode::new(code).without_position();
    code == ResponseCode::BAD_AUTH || code == ResponseCode::AUTH_FAIL
}

/// `TPML_PCR_SELECTION` of one bank.
fn selection(bank: u16, pcrs: u32) -> Vec<u8> {
    let [first, second, third, _] = pcrs.to_le_bytes();
    let [high, low] = bank.to_be_bytes();
    vec![0, 0, 0, 1, high, low, 3, first, second, third]
}

/// What of an answer was not read yet.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], NoQuote> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(NoQuote::Answer)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, NoQuote> {
        let (number, rest) = self.0.split_first_chunk().ok_or(NoQuote::Answer)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*number))
    }

    fn u32(&mut self) -> Result<u32, NoQuote> {
        let (number, rest) = self.0.split_first_chunk().ok_or(NoQuote::Answer)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }

    /// A `TPM2B`.
    fn sized(&mut self) -> Result<&'b [u8], NoQuote> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// The parameters of a response with sessions.
    fn counted(&mut self) -> Result<Self, NoQuote> {
        let length = usize::try_from(self.u32()?).map_err(|_| NoQuote::Answer)?;
        Ok(Self(self.take(length)?))
    }

    /// `TPMS_PCR_SELECTION`: the bank, and a bit for each PCR.
    fn selection(&mut self) -> Result<(u16, u32), NoQuote> {
        let bank = self.u16()?;
        let [length] = *self.take(1)? else {
            return Err(NoQuote::Answer);
        };
        let bits = self.take(length.into())?;
        let mut pcrs = [0; 4];
        for (place, byte) in pcrs.iter_mut().zip(bits) {
            *place = *byte;
        }
        Ok((bank, u32::from_le_bytes(pcrs)))
    }
}
