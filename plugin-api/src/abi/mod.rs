//! Layer 2 of the contract: the few functions that cross, checked by `abi_stable`.
//!
//! A register access is a plain call. All else is a message (see [`crate::protocol`]), so that the
//! set of functions can stay as it is for years, a device can run in a process of its own, and a
//! plain-C form is a table of six functions.
// Turning the opaque pointers of the contract back into objects is what needs `unsafe` here.
#![allow(unsafe_code)]

mod device;
mod host;
#[cfg(any(test, feature = "host"))]
mod load;
mod root;
#[cfg(test)]
mod tests;

pub use device::{Adapter, Creator, create_by_name, plugin_descriptor};
pub use host::{HostHandle, HostServices};
#[cfg(any(test, feature = "host"))]
pub use load::{LayoutMismatch, PluginDevice, Root, root_module};
pub use root::{
    DeviceHandle, DeviceOps, HostOps, PluginRoot, PluginRootRef, Reply, export_root, load_root,
};

pub(crate) use host::HostRef;
