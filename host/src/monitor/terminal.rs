//! The terminal that standard input and output are, while a monitor has it.

use std::os::fd::AsFd;

use nix::unistd::isatty;

use crate::chardev::terminal;

/// Keys come as they are pressed while this lives. There is one at most, as there is one standard
/// input.
pub(super) struct RawMode(());

/// Whether these are a terminal's both sides.
pub(super) fn is_terminal(input: impl AsFd, output: impl AsFd) -> bool {
    isatty(input).unwrap_or(false) && isatty(output).unwrap_or(false)
}

impl RawMode {
    /// Lets the terminal send keys as they are pressed, without showing them itself, or goes on with
    /// that if it does so already. Keys that send a signal, such as Ctrl-C, still do. Nothing if that is
    /// not possible.
    pub(super) fn enter(already: Option<Self>) -> Option<Self> {
        let mode = already.unwrap_or_else(|| Self(()));
        terminal::begin(true)
            .inspect_err(|e| {
                tracing::warn!("the terminal sends whole lines: its mode cannot be changed: {e}");
            })
            .ok()
            .map(|()| mode)
    }

    /// Leaves the terminal to the program that this process becomes, which gets what it was like.
    /// Keys that are pressed in between wait, and are not shown twice.
    pub(super) fn leave(self) -> Option<Vec<u8>> {
        std::mem::forget(self);
        terminal::carried()
    }

    /// The opposite of [`Self::leave`], in the next program.
    pub(super) fn adopt(before: &[u8]) -> Result<Self, String> {
        terminal::adopt(before)?;
        Ok(Self(()))
    }

    /// How many columns it has; 0 is not known.
    pub(super) fn columns(&self) -> usize {
        terminal::columns()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        terminal::restore();
    }
}
