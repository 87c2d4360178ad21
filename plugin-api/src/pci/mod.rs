//! A PCI function's config space and MSI-X table, for functions in plugins and for the host's own.

mod config_space;
mod function;
mod msi;
mod msix;

pub use config_space::{BarKind, ConfigSpace, ConfigSpaceState, ConfigWrite, Identity, PORT_ROOT};
pub use function::{Enabled, Function, FunctionState, MsixPlace};
pub use msi::{Msi, MsiLayout};
pub use msix::{Msix, MsixLayout, MsixPart, MsixState, VectorChange};
