//! What a person confirmed on a device's trusted display (ISO/IEC 27071 §5.8).
//!
//! A service asks for a confirmation of a [text](ConfirmableText) with a nonce. The device shows the text
//! [as rendered](Rendering) for its terminal, and if the person gives the PIN, its TPM signs a
//! [statement](Shown) over exactly that. [`Confirmation::verify`] is the only source of a
//! [`VerifiedConfirmation`].
//!
//! The crate is pure: bytes in, verdict out.
//! `docs/confirm.md` shows what a service does with it.

mod policy;
mod rendering;
mod statement;
mod text;
mod verification;

pub use policy::{ConfirmationPolicy, Demand, PolicyError};
pub use rendering::{Rendering, SizeRefused, TerminalSize};
pub use statement::{Confirmation, MAX_CONFIRMATION, ServiceName, ServiceRefused, Shown};
pub use text::{ConfirmableText, MAX_TEXT, Place, TextRefused, Unshowable, looks_like};
pub use verification::{ConfirmationRefused, Expected, VerifiedConfirmation, judge};
