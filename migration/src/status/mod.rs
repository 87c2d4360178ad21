//! Where a migration is, as `query-migrate` and the `MIGRATION` event tell it.

mod info;
mod ram;
mod tracker;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use info::MigrationInfo;
pub use ram::MigrationStats;
pub use tracker::{MigrationInProgress, NotPaused, Observer, PassObserver, Tracker};

/// QAPI `MigrationStatus`. All values are spelled; those that [`MigrationStatus::may_become`] names are
/// used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// Nothing ever happened.
    None,
    /// The two processes prepare; the guest runs.
    Setup,
    /// A cancellation is being carried out.
    Cancelling,
    /// Cancelled; the guest is where it was.
    Cancelled,
    /// Both sides are ready; RAM is copied if it must be, then the guest stops.
    Active,
    /// Not used.
    PostcopyDevice,
    /// Not used.
    PostcopyActive,
    /// Not used.
    PostcopyPaused,
    /// Not used.
    PostcopyRecoverSetup,
    /// Not used.
    PostcopyRecover,
    /// The guest runs in the target.
    Completed,
    /// Failed; the error says where the guest is.
    Failed,
    /// Not used.
    Colo,
    /// Both sides are ready; the guest runs until `migrate-continue` is said.
    PreSwitchover,
    /// The guest is stopped; device state is on its way.
    Device,
    /// Not used.
    WaitUnplug,
}

impl MigrationStatus {
    /// Every status, in QAPI's order.
    pub const ALL: [Self; 16] = [
        Self::None,
        Self::Setup,
        Self::Cancelling,
        Self::Cancelled,
        Self::Active,
        Self::PostcopyDevice,
        Self::PostcopyActive,
        Self::PostcopyPaused,
        Self::PostcopyRecoverSetup,
        Self::PostcopyRecover,
        Self::Completed,
        Self::Failed,
        Self::Colo,
        Self::PreSwitchover,
        Self::Device,
        Self::WaitUnplug,
    ];

    /// The QAPI spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Active => "active",
            Self::PostcopyDevice => "postcopy-device",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecoverSetup => "postcopy-recover-setup",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Colo => "colo",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::WaitUnplug => "wait-unplug",
        }
    }

    /// Whether a migration is under way, so that another cannot begin.
    pub const fn in_progress(self) -> bool {
        !matches!(
            self,
            Self::None | Self::Cancelled | Self::Completed | Self::Failed
        )
    }

    /// Whether a migration may go from `self` to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        use MigrationStatus::*;
        match self {
            None | Cancelled | Completed | Failed => matches!(next, Setup),
            Setup => matches!(next, Active | Cancelling | Failed),
            // The target goes from active to completed: it has no device phase of its own.
            Active => matches!(
                next,
                PreSwitchover | Device | Completed | Cancelling | Failed
            ),
            // In mode normal there is something to copy again once the pause is over.
            PreSwitchover => matches!(next, Active | Device | Cancelling | Failed),
            Device => matches!(next, Completed | Cancelling | Failed),
            // A target that claimed the guest just before it would have been cancelled keeps it.
            Cancelling => matches!(next, Cancelled | Completed | Failed),
            _ => false,
        }
    }
}

impl fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A status change that must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("A migration cannot go from '{from}' to '{to}'")]
pub struct IllegalTransition {
    /// The status now.
    pub from: MigrationStatus,
    /// The status asked for.
    pub to: MigrationStatus,
}

#[cfg(test)]
mod tests;
