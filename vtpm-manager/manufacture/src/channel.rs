//! A way to send commands to one vRoT.

use std::io;

/// Takes a TPM command and returns the response.
///
/// Over a running vRoT, the channel passes commands between those of the guest.
pub trait CommandChannel {
    /// Sends one command and waits for its response.
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;

    /// Has a guest wait from now on, for a fraction of a second at most, or lets it go on. Where
    /// there is no guest, this does nothing.
    fn hold(&mut self, _held: bool) -> io::Result<()> {
        Ok(())
    }
}

impl<C: CommandChannel + ?Sized> CommandChannel for &mut C {
    fn execute(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        (**self).execute(command)
    }

    fn hold(&mut self, held: bool) -> io::Result<()> {
        (**self).hold(held)
    }
}
