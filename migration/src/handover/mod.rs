//! A handover in mode cpr-transfer: the protocol, and the two sides of it.
//!
//! Each side is a state machine without I/O (`source/machine.rs`, `target/machine.rs`) and a driver
//! that carries out its actions on sockets and on the host. Which process runs the guest is decided
//! by the [`crate::claim`] alone; the messages only make it quick and tell why.

mod hosts;
mod link;
pub(crate) mod protocol;
mod source;
mod target;
mod timeouts;

use crate::blockers::Blocked;
use crate::channel::ChannelError;
use crate::claim::ClaimError;
use crate::status::{MigrationInProgress, MigrationStatus, Tracker};
use crate::{HostError, Mode};

pub use hosts::{OutgoingFd, SourceHost, StartError, TargetHost};
pub use protocol::{PROTOCOL_VERSION, ProtocolError};
pub(crate) use source::tell;
pub use source::{SourceHandover, SourceOptions, SourceOutcome};
pub use target::{TargetHandover, TargetOptions, TargetOutcome};
pub use timeouts::Timeouts;

/// Why a handover did not begin, or on a target did not get ready.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// This is not the mode driven here.
    #[error("Migration mode {0} is not supported; set mode cpr-transfer")]
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
    /// The claim page cannot be made.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A channel cannot be made.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The target did not get ready; the guest is the source's. The host was told to abandon.
    #[error("{0}")]
    Abandoned(String),
}

/// Changes the status. The machines' order makes every change legal, and the guest must not suffer if
/// it were not.
pub(crate) fn advance(tracker: &Tracker, status: MigrationStatus) {
    if let Err(error) = tracker.advance(status) {
        tracing::error!("{error}");
    }
}

/// The doors of [`crate::fuzzing`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::protocol::{self, Message};
    use crate::address::ChannelType;
    use crate::channel::{Frame, Limits};

    pub(crate) fn bounds(kind: u8) -> Option<Limits> {
        protocol::bounds(kind)
    }

    pub(crate) fn message(channel: ChannelType, frame: Frame) {
        // Whether it is one does not matter.
        let _ = Message::decode(channel, frame);
    }
}

#[cfg(test)]
mod tests;
