//! What `query-migrate` returns.

use serde::{Deserialize, Serialize};

use super::{MigrationStats, MigrationStatus};
use crate::claim::Blackout;

/// QAPI `MigrationInfo`, as far as it is filled, and our breakdown of the blackout. Serializes
/// as `{}` when nothing ever happened.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct MigrationInfo {
    /// Where the migration is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<MigrationStatus>,
    /// Milliseconds from the beginning to now or to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_time: Option<u64>,
    /// Milliseconds in which no vCPU ran, rounded: the whole blackout, to the target's first entry
    /// of the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    /// While RAM is copied: the milliseconds for which the guest would have to stand still now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    /// How far the copying of RAM has come, in mode normal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram: Option<MigrationStats>,
    /// Milliseconds from the beginning until both sides were ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_time: Option<u64>,
    /// Where the blackout's time went, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blackout: Option<Blackout>,
    /// Why it failed or was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// What blocks the mode that is set now; for the monitor to fill.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_reasons: Vec<String>,
}
