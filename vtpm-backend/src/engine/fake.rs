//! An engine that only remembers, for tests of what surrounds it, and for fuzzers.

use tpm_wire::ResponseCode;

use super::{BufferSize, Engine, EngineError, HashStep, StateKind};

#[derive(Debug, Default)]
pub(crate) struct FakeEngine {
    pub(crate) on: bool,
    pub(crate) permanent: Option<Vec<u8>>,
    pub(crate) volatile: Option<Vec<u8>>,
    pub(crate) changed: bool,
    pub(crate) info: String,
}

impl Engine for FakeEngine {
    fn power_on(&mut self) -> Result<(), EngineError> {
        self.on = true;
        self.volatile = None;
        Ok(())
    }

    fn power_off(&mut self) {
        self.on = false;
    }

    fn give_away(&mut self) {}

    fn go_on(&mut self) {}

    fn is_on(&self) -> bool {
        self.on
    }

    fn execute(&mut self, _command: &[u8], _locality: u8) -> Vec<u8> {
        if self.on {
            ResponseCode::SUCCESS.response()
        } else {
            ResponseCode::FAILURE.response()
        }
    }

    fn canceller(&self) -> super::Canceller {
        || {}
    }

    fn buffer_size(&mut self, wanted: Option<u32>) -> BufferSize {
        BufferSize {
            current: wanted.unwrap_or(4096),
            minimum: 2808,
            maximum: 4096,
        }
    }

    fn established(&self) -> Result<bool, EngineError> {
        if self.on {
            Ok(false)
        } else {
            Err(EngineError::IsOff)
        }
    }

    fn reset_established(&mut self, _locality: u8) -> Result<(), EngineError> {
        Ok(())
    }

    fn hash(&mut self, _step: HashStep<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn state(&mut self, kind: StateKind) -> Result<Option<Vec<u8>>, EngineError> {
        Ok(match kind {
            StateKind::Permanent => self.permanent.clone(),
            StateKind::Volatile if self.on => Some(vec![0]),
            StateKind::Volatile => self.volatile.clone(),
            StateKind::SaveState => None,
        })
    }

    fn set_state(&mut self, kind: StateKind, state: &[u8]) -> Result<(), EngineError> {
        if self.on {
            return Err(EngineError::IsOn);
        }
        match kind {
            StateKind::Permanent => self.permanent = Some(state.to_vec()),
            StateKind::Volatile => self.volatile = Some(state.to_vec()),
            StateKind::SaveState => {}
        }
        Ok(())
    }

    fn delete_volatile(&mut self) {
        self.volatile = None;
    }

    fn info(&self, _flags: u64) -> Result<String, EngineError> {
        Ok(self.info.clone())
    }

    fn changed_permanent_state(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.changed).then(|| self.permanent.clone())?
    }
}
