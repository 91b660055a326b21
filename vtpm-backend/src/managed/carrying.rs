//! State that a VMM carries: the volatile one, sealed, which can be used once.
//!
//! It has a name of its own, and the permanent state that is on stable storage names the one that
//! belongs to it. The name is taken out before the guest sees the first thing that its TPM does
//! afterwards: so what a VMM brings opens beside the permanent state that it was carried away from,
//! wherever that was kept meanwhile, until the VM goes on, here or from what was saved of it.
//!
//! The permanent state itself stays with the manager: a VMM that could bring one could bring an old
//! one.

use zeroize::Zeroizing;

use super::{ManagerLink, Patience};
use crate::control::{NotCarried, Package, StateExport};
use crate::engine::StateKind;
use backend_link::sealing::Content;

impl ManagerLink {
    /// Whether a VMM carries the volatile state, and the TPM did nothing since.
    pub fn is_carried(&self) -> bool {
        self.carried.is_some()
    }

    /// The TPM goes on: what a VMM carries is of no use any more.
    pub fn go_on(&mut self) {
        if self.carried.take().is_some() {
            self.names_used = true;
            tracing::info!(
                "the VM goes on: what was saved of its TPM's volatile state is of no use any more"
            );
        }
    }

    /// Whether the permanent state has to be saved although it is the same.
    pub fn owes_state(&self) -> bool {
        self.names_used
    }
}

impl StateExport for ManagerLink {
    fn pack(
        &mut self,
        kind: StateKind,
        state: Vec<u8>,
        permanent: &[u8],
        _: bool,
    ) -> Result<Package, NotCarried> {
        let state = Zeroizing::new(state);
        let not_sealed = |_| NotCarried::NotSealed;
        let sealer = &self.vrot.as_ref().ok_or(NotCarried::NotSealed)?.sealer;
        let id = match self.carried {
            Some(id) => id,
            None => sealer.new_carried_id().map_err(not_sealed)?,
        };
        let sealed = match kind {
            // That it stays here.
            StateKind::Permanent => sealer.seal_named(Content::CarriedPermanent, id, &[]),
            StateKind::Volatile | StateKind::SaveState => {
                sealer.seal_named(Content::CarriedVolatile, id, &state)
            }
        };
        let sealed = sealed.map_err(not_sealed)?;
        if self.carried.is_none() {
            self.carried = Some(id);
            self.save_within(permanent, Patience::Deadline);
            if !self.durability.is_durable() || self.durability.is_degraded() {
                self.go_on();
                return Err(NotCarried::NotDurable);
            }
        }
        Ok(Package::Sealed(sealed))
    }

    fn unpack(
        &self,
        kind: StateKind,
        carried: Vec<u8>,
        _: bool,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, NotCarried> {
        let sealer = &self.vrot.as_ref().ok_or(NotCarried::Foreign)?.sealer;
        let content = match kind {
            StateKind::Permanent => Content::CarriedPermanent,
            StateKind::Volatile | StateKind::SaveState => Content::CarriedVolatile,
        };
        let opened = sealer.open_named(content, &carried);
        let (id, state) = opened.map_err(|_| NotCarried::Foreign)?;
        if self.carried != Some(id) {
            return Err(NotCarried::Outdated);
        }
        Ok(match kind {
            StateKind::Permanent => None,
            StateKind::Volatile | StateKind::SaveState => Some(state),
        })
    }
}
