//! Modes in which the state is kept somewhere until it is loaded, rather than sent to a process that
//! waits for it: cpr-reboot.
//!
//! ```text
//!     begin      blockers checked, devices told, the place opened      the guest runs
//!     run        slow things done ahead
//!                guest stopped, state saved, state and RAM written     blackout
//!                the last step, which makes what was written the guest
//!                postmigrate
//! ```
//!
//! Nobody else can have the guest before the last step has succeeded, so that any failure and any
//! cancellation before goes on with the guest here, exactly as it was.

mod chunks;
mod command;
mod format;
mod hosts;
mod keeper;
mod kept;
mod pages;
mod place;
mod restore;
mod source;

use crate::HostError;
use crate::blockers::Blocked;
use crate::status::MigrationInProgress;

pub use format::{HeaderError, KeptHeader, RamLayout};
pub use hosts::{Cancel, CheckpointHost, Keeper, RamPart, RamSink, RamSource, RestoreHost};
pub use keeper::keeper;
pub use kept::{Kept, KeptRam};
pub use pages::Writing;
pub use place::Place;
pub use restore::{RestoreOutcome, restore};
pub use source::{Checkpoint, CheckpointOptions, CheckpointOutcome};

/// Why a checkpoint did not begin; the guest was never stopped.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Another migration is under way.
    #[error(transparent)]
    InProgress(#[from] MigrationInProgress),
    /// Something blocks it.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// A device refuses.
    #[error("A device is not ready to migrate")]
    Setup(#[source] HostError),
    /// There is no place for the state.
    #[error("{}", crate::error_chain(&**.0))]
    Open(HostError),
}

#[cfg(test)]
mod tests;
