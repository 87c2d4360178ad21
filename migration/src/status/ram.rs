//! How far the copying of RAM has come.

use serde::{Deserialize, Serialize};

/// QAPI `MigrationStats`. What has no meaning here is 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MigrationStats {
    /// Bytes that were sent.
    pub transferred: u64,
    /// Bytes of the pages that are known to be left.
    pub remaining: u64,
    /// Bytes of RAM.
    pub total: u64,
    /// Pages of zeros, whose bytes were not sent.
    pub duplicate: u64,
    /// Pages whose bytes were sent.
    pub normal: u64,
    /// Their bytes.
    pub normal_bytes: u64,
    /// Pages that the guest writes in a second.
    pub dirty_pages_rate: u64,
    /// Megabits sent in a second.
    pub mbps: f64,
    /// How often it was asked which pages were written.
    pub dirty_sync_count: u64,
    /// 0: there is no postcopy.
    pub postcopy_requests: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// 0: there is one channel.
    pub multifd_bytes: u64,
    /// Pages that were sent in a second.
    pub pages_per_second: u64,
    /// Bytes that were sent while the guest ran.
    pub precopy_bytes: u64,
    /// Bytes of RAM that were sent while the guest stood still.
    pub downtime_bytes: u64,
    /// 0: there is no postcopy.
    pub postcopy_bytes: u64,
    /// 0: nothing is sent without copying.
    pub dirty_sync_missed_zero_copy: u64,
}
