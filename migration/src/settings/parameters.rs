//! The migration parameters that mean something here.

use serde::{Deserialize, Serialize};

use crate::Mode;

/// QAPI `ZeroPageDetection`: who finds pages of zeros, which need not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroPageDetection {
    /// Nobody: every page is written.
    None,
    /// The migration's main thread.
    Legacy,
    /// The threads that write; without capability `multifd` the main thread.
    #[default]
    Multifd,
}

/// QAPI `MigrationParameters`, as far as they can be changed. The others have their defaults for
/// ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MigrationParameters {
    /// How the guest moves.
    pub mode: Mode,
    /// The program that follows in cpr-exec, with its arguments.
    pub cpr_exec_command: Vec<String>,
    /// The longest wanted downtime of a migration in mode normal, in milliseconds.
    pub downtime_limit: u64,
    /// The most bytes a second that RAM is sent with; 0 is no limit.
    pub max_bandwidth: u64,
    /// How many threads move RAM with capability `multifd`: 1 to 255.
    pub multifd_channels: u8,
    /// Whether files are written past the page cache, with capabilities `mapped-ram` and `multifd`.
    pub direct_io: bool,
    /// Who finds pages of zeros.
    pub zero_page_detection: ZeroPageDetection,
}

impl Default for MigrationParameters {
    fn default() -> Self {
        Self {
            mode: Mode::Normal,
            cpr_exec_command: Vec::new(),
            downtime_limit: 300,
            max_bandwidth: 128 << 20,
            multifd_channels: 2,
            direct_io: false,
            zero_page_detection: ZeroPageDetection::default(),
        }
    }
}
