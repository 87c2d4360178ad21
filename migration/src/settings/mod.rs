//! What an operator can set for migrations before one begins: QEMU's migration parameters and
//! capabilities.
//!
//! Everything QEMU has is spelled, and reported by the queries. What means nothing here cannot be
//! changed: it is refused rather than passed over.

mod capability;
mod changes;
mod conflicts;
mod fixed;
mod parameters;

pub use capability::{Capabilities, Capability};
pub use changes::ParameterChanges;
pub use parameters::{MigrationParameters, ZeroPageDetection};

/// Parameters and capabilities together. A process begins with QEMU's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `migrate-set-parameters`.
    pub parameters: MigrationParameters,
    /// `migrate-set-capabilities`: those that are on.
    pub capabilities: Capabilities,
}
