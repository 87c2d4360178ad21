//! A migration in mode normal: RAM is copied while the guest runs, to a process that waits for it on
//! this host or another.
//!
//! As in [`crate::handover`], each side is a state machine without I/O (`source/machine.rs`,
//! `target/machine.rs`) and a driver that carries out its actions. There is one channel and nothing
//! shared, so that the messages alone decide who runs the guest: it is the source's until COMMIT has
//! been sent whole, and from there on the target's, unless the target says that it never ran it.

mod hosts;
mod link;
mod pace;
mod page_set;
mod pages;
mod protocol;
mod source;
mod target;

use crate::blockers::Blocked;
use crate::channel::ChannelError;
use crate::status::MigrationInProgress;
use crate::{HostError, Mode};

pub use hosts::{IncomingHost, LiveRam, PrecopyHost, StartFailure};
pub use pace::Limits;
pub use page_set::{PAGE, PageSet};
pub use protocol::{PRECOPY_VERSION, PrecopyError};
pub use source::{Precopy, PrecopyOptions, PrecopyOutcome};
pub use target::{Incoming, IncomingOptions, IncomingOutcome};

/// Why a migration did not begin; the guest was never stopped.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// This is not the mode driven here.
    #[error("Migration mode {0} is not mode normal")]
    Mode(Mode),
    /// Another migration is under way.
    #[error(transparent)]
    InProgress(#[from] MigrationInProgress),
    /// Something blocks it.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// A device refuses.
    #[error("A device is not ready to migrate")]
    Setup(#[source] HostError),
    /// The target cannot be reached.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// The doors of [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::{pages, protocol};
    use crate::channel::{Frame, Limits};

    pub(crate) fn bounds(kind: u8) -> Option<Limits> {
        protocol::bounds(kind)
    }

    /// Decodes a message, and pages for RAM of 16 MiB.
    pub(crate) fn message(kind: u8, payload: Vec<u8>) {
        // Whether it is one does not matter. Pages that are damaged are looked at as if they were not.
        let mut sealed = payload.clone();
        if let Some((crc, rest)) = sealed.split_first_chunk_mut() {
            *crc = crc32c::crc32c(rest).to_le_bytes();
        }
        let _ = pages::runs(&sealed, 16 << 20);
        let fds = Vec::new();
        let _ = protocol::Message::decode(Frame { kind, payload, fds });
    }
}

#[cfg(test)]
mod tests;
