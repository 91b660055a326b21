//! libtpms in this process: the only file with foreign code.
//!
//! libtpms keeps its state in globals, so a process has one TPM; [`Libtpms::new`] gives it out
//! once. The library asks for state and hands it over through callbacks, which keep it in
//! memory: where it goes from there is decided elsewhere.
#![expect(unsafe_code, reason = "libtpms is a C library")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{ptr, slice};

use tpm_wire::{MAX_SIZE, ResponseCode};
use zeroize::{Zeroize, Zeroizing};

use super::orderly::{Departure, Shutdown};
use super::{BufferSize, Canceller, Engine, EngineError, HashStep, StateKind};

/// The process's TPM.
pub struct Libtpms {
    on: bool,
    departure: Departure,
    /// Whether a TPM that its guest did not shut down is shut down before it loses power.
    shuts_down: bool,
    /// The volatile state of a TPM that lost power without being shut down, because that state had
    /// been given away; and how it is to be shut down if no VMM goes on from that state.
    abandoned: Option<(Zeroizing<Vec<u8>>, Shutdown)>,
    buffer_size: BufferSize,
    /// Allocated and grown by the library.
    response: *mut c_uchar,
    response_size: u32,
    response_capacity: u32,
}

// SAFETY: the response's buffer is this value's own, and the library's state is the process's: it
// keeps nothing for a thread. One thread at a time uses it, for all of that takes `&mut self`, or is
// a look at a flag.
unsafe impl Send for Libtpms {}

/// The process's TPM was given out before.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("libtpms has one TPM for each process, and it is in use")]
pub struct InUse;

static GIVEN_OUT: AtomicBool = AtomicBool::new(false);
/// The locality that the library is told when it asks.
static LOCALITY: AtomicU8 = AtomicU8::new(0);
/// State that the library stored, or that it will be given when it asks.
static STORE: Mutex<Store> = Mutex::new(Store {
    states: BTreeMap::new(),
    permanent_changed: false,
});

struct Store {
    states: BTreeMap<StateKind, Zeroizing<Vec<u8>>>,
    permanent_changed: bool,
}

fn store() -> MutexGuard<'static, Store> {
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Libtpms {
    /// Takes the process's TPM, switched off and without state: when it is first switched on,
    /// it is manufactured, unless it is given a permanent state before.
    pub fn new() -> Result<Self, InUse> {
        if GIVEN_OUT.swap(true, Ordering::AcqRel) {
            return Err(InUse);
        }
        // SAFETY: the library takes a plain number and a table of function pointers that it
        // copies; the functions live as long as the process.
        unsafe {
            TPMLIB_ChooseTPMVersion(TPM_VERSION_2);
            TPMLIB_RegisterCallbacks(&CALLBACKS);
        }
        let mut tpm = Self {
            on: false,
            departure: Departure::SWITCHED_ON,
            shuts_down: true,
            abandoned: None,
            buffer_size: BufferSize {
                current: 0,
                minimum: 0,
                maximum: 0,
            },
            response: ptr::null_mut(),
            response_size: 0,
            response_capacity: 0,
        };
        tpm.buffer_size(None);
        Ok(tpm)
    }

    /// From now on a TPM loses power as its guest left it: one that was not shut down may count that as
    /// a failed authorization.
    pub fn leave_shutting_down_to_guests(&mut self) {
        self.shuts_down = false;
    }

    fn switch_on(&mut self) -> Result<(), EngineError> {
        let resumes = store().states.contains_key(&StateKind::Volatile);
        // SAFETY: no arguments; the TPM is off, so no other call is under way.
        check(unsafe { TPMLIB_MainInit() })?;
        self.on = true;
        self.departure = match resumes {
            true => Departure::Resumed,
            false => Departure::SWITCHED_ON,
        };
        // Loaded once: a second start with the same volatile state would be a replay.
        store().states.remove(&StateKind::Volatile);
        Ok(())
    }

    fn switch_off(&mut self) {
        // SAFETY: no arguments; the TPM is on.
        unsafe { TPMLIB_Terminate() };
        self.on = false;
    }

    /// Has a TPM that is on prepare for the loss of power.
    fn shut_down(&mut self) {
        let Some(shutdown) = self.departure.owed().filter(|_| self.shuts_down) else {
            return;
        };
        for kind in [shutdown, Shutdown::Clear] {
            let response = self.execute(&kind.command(), 0);
            match response.get(6..10) {
                Some([0, 0, 0, 0]) => return,
                // TPM_RC_INITIALIZE: it was not started.
                Some([0, 0, 1, 0]) => return,
                code => tracing::warn!(?code, ?kind, "the TPM was not shut down"),
            }
        }
    }

    /// Shuts down a TPM that was left as it is for whoever had its volatile state, and that starts
    /// here again without it.
    fn shut_down_abandoned(&mut self) {
        let Some((volatile, shutdown)) = self.abandoned.take() else {
            return;
        };
        if store().states.contains_key(&StateKind::Volatile) {
            return;
        }
        let restored = self.set_state(StateKind::Volatile, &volatile);
        match restored.and_then(|()| self.switch_on()) {
            Ok(()) => {
                self.departure = Departure::Owed(shutdown);
                self.shut_down();
                self.switch_off();
            }
            Err(error) => {
                self.delete_volatile();
                tracing::warn!(%error, "a TPM whose state was given away was not shut down");
            }
        }
    }

    fn require_on(&self) -> Result<(), EngineError> {
        if self.on {
            Ok(())
        } else {
            Err(EngineError::IsOff)
        }
    }
}

impl Drop for Libtpms {
    fn drop(&mut self) {
        self.power_off();
        if !self.response.is_null() {
            // SAFETY: the library allocated the buffer with the allocator that this frees.
            unsafe { TPM_Free(self.response) };
        }
        *store() = Store {
            states: BTreeMap::new(),
            permanent_changed: false,
        };
        GIVEN_OUT.store(false, Ordering::Release);
    }
}

impl Engine for Libtpms {
    fn power_on(&mut self) -> Result<(), EngineError> {
        self.power_off();
        self.shut_down_abandoned();
        self.switch_on()
    }

    fn power_off(&mut self) {
        if !self.on {
            return;
        }
        if let Departure::GivenAway(shutdown) = self.departure {
            let state = self.state(StateKind::Volatile).ok().flatten();
            self.abandoned = state.map(|state| (Zeroizing::new(state), shutdown));
        }
        self.shut_down();
        self.switch_off();
    }

    fn give_away(&mut self) {
        self.departure.give_away();
    }

    fn go_on(&mut self) {
        self.departure.go_on();
    }

    fn is_on(&self) -> bool {
        self.on
    }

    fn execute(&mut self, command: &[u8], locality: u8) -> Vec<u8> {
        if !self.on {
            return ResponseCode::FAILURE.response();
        }
        let Ok(length) = u32::try_from(command.len()) else {
            return ResponseCode::COMMAND_SIZE.response();
        };
        LOCALITY.store(locality, Ordering::Release);
        // The library may write to the command's buffer.
        let mut buffer = Zeroizing::new(command.to_vec());
        // SAFETY: the command's buffer has `length` bytes; the response's three fields are the
        // library's own from the last call, or null and zero.
        let result = unsafe {
            TPMLIB_Process(
                &mut self.response,
                &mut self.response_size,
                &mut self.response_capacity,
                buffer.as_mut_ptr(),
                length,
            )
        };
        let size = usize::try_from(self.response_size).unwrap_or(0);
        if result != SUCCESS || self.response.is_null() || size == 0 || size > MAX_SIZE {
            tracing::error!(result, size, "the TPM library failed at a command");
            return ResponseCode::FAILURE.response();
        }
        // SAFETY: the library says that the buffer holds `size` bytes, and nothing else uses it.
        let response = unsafe { slice::from_raw_parts_mut(self.response, size) };
        let copy = response.to_vec();
        response.zeroize();
        self.departure.note(command, &copy);
        copy
    }

    fn canceller(&self) -> Canceller {
        || {
            // SAFETY: the library sets a flag, which it looks at in the course of a command.
            let _ = unsafe { TPMLIB_CancelCommand() };
        }
    }

    fn buffer_size(&mut self, wanted: Option<u32>) -> BufferSize {
        let (mut minimum, mut maximum) = (0, 0);
        // SAFETY: both pointers are to live variables.
        let current =
            unsafe { TPMLIB_SetBufferSize(wanted.unwrap_or(0), &mut minimum, &mut maximum) };
        self.buffer_size = BufferSize {
            current,
            minimum,
            maximum,
        };
        self.buffer_size
    }

    fn established(&self) -> Result<bool, EngineError> {
        self.require_on()?;
        let mut established = 0;
        // SAFETY: the pointer is to a live variable.
        check(unsafe { TPM_IO_TpmEstablished_Get(&mut established) })?;
        Ok(established != 0)
    }

    fn reset_established(&mut self, locality: u8) -> Result<(), EngineError> {
        self.require_on()?;
        LOCALITY.store(locality, Ordering::Release);
        // SAFETY: no arguments; the TPM is on.
        check(unsafe { TPM_IO_TpmEstablished_Reset() })
    }

    fn hash(&mut self, step: HashStep<'_>) -> Result<(), EngineError> {
        self.require_on()?;
        // A dynamic launch measures from locality 4 (TPM 2.0 Part 1 §34.3).
        LOCALITY.store(4, Ordering::Release);
        // SAFETY: the TPM is on; the data's buffer has the stated length.
        let result = unsafe {
            match step {
                HashStep::Start => TPM_IO_Hash_Start(),
                HashStep::Data(data) => match u32::try_from(data.len()) {
                    Ok(length) => TPM_IO_Hash_Data(data.as_ptr(), length),
                    Err(_) => FAIL,
                },
                HashStep::End => TPM_IO_Hash_End(),
            }
        };
        check(result)
    }

    fn state(&mut self, kind: StateKind) -> Result<Option<Vec<u8>>, EngineError> {
        let (mut buffer, mut length) = (ptr::null_mut(), 0);
        // SAFETY: both pointers are to live variables.
        let result = unsafe { TPMLIB_GetState(library_kind(kind), &mut buffer, &mut length) };
        if result == RETRY {
            return Ok(None);
        }
        check(result)?;
        let length = usize::try_from(length).unwrap_or(0);
        if buffer.is_null() || length == 0 {
            return Ok(None);
        }
        // SAFETY: the library allocated `length` bytes for us, which are freed right after.
        let state = unsafe {
            let bytes = slice::from_raw_parts_mut(buffer, length);
            let copy = bytes.to_vec();
            bytes.zeroize();
            TPM_Free(buffer);
            copy
        };
        Ok(Some(state))
    }

    fn set_state(&mut self, kind: StateKind, state: &[u8]) -> Result<(), EngineError> {
        if self.on {
            return Err(EngineError::IsOn);
        }
        let length = u32::try_from(state.len()).map_err(|_| EngineError::Refused { code: FAIL })?;
        // The library parses the state, and stores it through the callbacks when it is good.
        // SAFETY: the buffer has the stated length and is only read.
        check(unsafe { TPMLIB_SetState(library_kind(kind), state.as_ptr(), length) })?;
        if kind == StateKind::Permanent {
            self.abandoned = None;
        }
        store().states.insert(kind, Zeroizing::new(state.to_vec()));
        Ok(())
    }

    fn delete_volatile(&mut self) {
        store().states.remove(&StateKind::Volatile);
        // The library keeps a copy of what it was given, until it is first used.
        // SAFETY: without a buffer, nothing is read.
        let forgotten =
            check(unsafe { TPMLIB_SetState(library_kind(StateKind::Volatile), ptr::null(), 0) });
        if let Err(error) = forgotten {
            tracing::debug!(%error, "the library has no copy of the volatile state");
        }
    }

    fn info(&self, flags: u64) -> Result<String, EngineError> {
        // The library takes fewer bits; those that it does not know ask for nothing.
        let flags = c_uint::try_from(flags & u64::from(u32::MAX)).unwrap_or(0);
        // SAFETY: a plain number; the library answers with a C string of ours, or null.
        let text = unsafe { TPMLIB_GetInfo(flags) };
        if text.is_null() {
            return Err(EngineError::Refused { code: FAIL });
        }
        // SAFETY: the string was allocated with malloc for us, and is not used after this.
        unsafe {
            let info = CStr::from_ptr(text).to_string_lossy().into_owned();
            nix::libc::free(text.cast());
            Ok(info)
        }
    }

    fn changed_permanent_state(&mut self) -> Option<Vec<u8>> {
        let mut store = store();
        if !std::mem::take(&mut store.permanent_changed) {
            return None;
        }
        store
            .states
            .get(&StateKind::Permanent)
            .map(|state| state.to_vec())
    }
}

fn check(result: TpmResult) -> Result<(), EngineError> {
    match result {
        SUCCESS => Ok(()),
        code => Err(EngineError::Refused { code }),
    }
}

fn library_kind(kind: StateKind) -> c_uint {
    match kind {
        StateKind::Permanent => 1 << 0,
        StateKind::Volatile => 1 << 1,
        StateKind::SaveState => 1 << 2,
    }
}

/// The kind of state that the library calls by this name.
///
/// # Safety
///
/// `name` must be null or a C string.
unsafe fn kind_of(name: *const c_char) -> Option<StateKind> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the string.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"permall" => Some(StateKind::Permanent),
        b"volatilestate" => Some(StateKind::Volatile),
        b"savestate" => Some(StateKind::SaveState),
        _ => None,
    }
}

extern "C" fn nvram_init() -> TpmResult {
    SUCCESS
}

extern "C" fn nvram_load(
    data: *mut *mut c_uchar,
    length: *mut u32,
    _tpm: u32,
    name: *const c_char,
) -> TpmResult {
    // SAFETY: the library passes one of its own constant names.
    let Some(kind) = (unsafe { kind_of(name) }) else {
        return FAIL;
    };
    let store = store();
    let Some(state) = store.states.get(&kind) else {
        return RETRY;
    };
    let Ok(size) = u32::try_from(state.len()) else {
        return FAIL;
    };
    // SAFETY: both pointers are the library's out parameters; it frees what is allocated here with
    // TPM_Free, which is free(). Its TPM_Malloc gives at most 128 KiB, and a full TPM has more.
    unsafe {
        let buffer: *mut c_uchar = nix::libc::malloc(state.len()).cast();
        if buffer.is_null() {
            return FAIL;
        }
        ptr::copy_nonoverlapping(state.as_ptr(), buffer, state.len());
        *data = buffer;
        *length = size;
    }
    SUCCESS
}

extern "C" fn nvram_store(
    data: *const c_uchar,
    length: u32,
    _tpm: u32,
    name: *const c_char,
) -> TpmResult {
    // SAFETY: the library passes one of its own constant names.
    let (Some(kind), Ok(size)) = (unsafe { kind_of(name) }, usize::try_from(length)) else {
        return FAIL;
    };
    if data.is_null() {
        return FAIL;
    }
    // SAFETY: the library vouches for `length` bytes at `data`.
    let bytes = unsafe { slice::from_raw_parts(data, size) };
    let mut store = store();
    store.states.insert(kind, Zeroizing::new(bytes.to_vec()));
    if kind == StateKind::Permanent {
        store.permanent_changed = true;
    }
    SUCCESS
}

extern "C" fn nvram_delete(_tpm: u32, name: *const c_char, must_exist: u8) -> TpmResult {
    // SAFETY: the library passes one of its own constant names.
    let Some(kind) = (unsafe { kind_of(name) }) else {
        return FAIL;
    };
    match store().states.remove(&kind) {
        None if must_exist != 0 => FAIL,
        _ => SUCCESS,
    }
}

extern "C" fn io_init() -> TpmResult {
    SUCCESS
}

extern "C" fn io_locality(locality: *mut u32, _tpm: u32) -> TpmResult {
    // SAFETY: the library's out parameter.
    unsafe { *locality = u32::from(LOCALITY.load(Ordering::Acquire)) };
    SUCCESS
}

extern "C" fn io_physical_presence(present: *mut u8, _tpm: u32) -> TpmResult {
    // SAFETY: the library's out parameter.
    unsafe { *present = 0 };
    SUCCESS
}

type TpmResult = u32;

const SUCCESS: TpmResult = 0;
/// `TPM_FAIL`
const FAIL: TpmResult = 9;
/// `TPM_RETRY`: there is no such state.
const RETRY: TpmResult = 0x800;
const TPM_VERSION_2: c_uint = 1;

/// `struct libtpms_callbacks` of `<libtpms/tpm_library.h>`.
#[repr(C)]
struct Callbacks {
    size_of_struct: c_int,
    nvram_init: extern "C" fn() -> TpmResult,
    nvram_load: extern "C" fn(*mut *mut c_uchar, *mut u32, u32, *const c_char) -> TpmResult,
    nvram_store: extern "C" fn(*const c_uchar, u32, u32, *const c_char) -> TpmResult,
    nvram_delete: extern "C" fn(u32, *const c_char, u8) -> TpmResult,
    io_init: extern "C" fn() -> TpmResult,
    io_locality: extern "C" fn(*mut u32, u32) -> TpmResult,
    io_physical_presence: extern "C" fn(*mut u8, u32) -> TpmResult,
}

static CALLBACKS: Callbacks = Callbacks {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "eight pointers fit"
    )]
    size_of_struct: size_of::<Callbacks>() as c_int,
    nvram_init,
    nvram_load,
    nvram_store,
    nvram_delete,
    io_init,
    io_locality,
    io_physical_presence,
};

#[link(name = "tpms")]
unsafe extern "C" {
    fn TPMLIB_ChooseTPMVersion(version: c_uint) -> TpmResult;
    fn TPMLIB_RegisterCallbacks(callbacks: *const Callbacks) -> TpmResult;
    fn TPMLIB_MainInit() -> TpmResult;
    fn TPMLIB_Terminate();
    fn TPMLIB_Process(
        response: *mut *mut c_uchar,
        response_size: *mut u32,
        response_capacity: *mut u32,
        command: *mut c_uchar,
        command_size: u32,
    ) -> TpmResult;
    fn TPMLIB_CancelCommand() -> TpmResult;
    fn TPMLIB_SetBufferSize(wanted: u32, minimum: *mut u32, maximum: *mut u32) -> u32;
    fn TPMLIB_GetState(kind: c_uint, buffer: *mut *mut c_uchar, length: *mut u32) -> TpmResult;
    fn TPMLIB_GetInfo(flags: c_uint) -> *mut c_char;
    fn TPMLIB_SetState(kind: c_uint, buffer: *const c_uchar, length: u32) -> TpmResult;
    fn TPM_IO_TpmEstablished_Get(established: *mut u8) -> TpmResult;
    fn TPM_IO_TpmEstablished_Reset() -> TpmResult;
    fn TPM_IO_Hash_Start() -> TpmResult;
    fn TPM_IO_Hash_Data(data: *const c_uchar, length: u32) -> TpmResult;
    fn TPM_IO_Hash_End() -> TpmResult;
    fn TPM_Free(buffer: *mut c_uchar);
}
