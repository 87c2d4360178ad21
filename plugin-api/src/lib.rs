//! The contract between the Baton VMM and its device plugins: the one crate a plugin needs.
//!
//! A plugin is a `cdylib` that offers one or more device types through [`export_plugin!`]. A device
//! implements [`Device`] and the trait of its bus class: [`PlatformDevice`] for ports, MMIO and
//! interrupt lines of the machine, [`VirtioDevice`] for a virtio backend (the host is its transport),
//! [`PciDevice`] for a PCI function.
//!
//! The contract has three layers, and the host refuses a plugin at the first that fails: the plain-C
//! [`magic`] block, the layout of the tables in [`abi`], and the plugin's own
//! [descriptor](PluginDescriptor). What crosses is data ([`protocol`]), a descriptor, or a call that
//! could be a message. The rules are in `docs/plugin-abi.md`.
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod abi;
pub mod bus;
pub mod descriptor;
pub mod export;
pub mod fd;
pub mod magic;
pub mod memory;
pub mod migration;
pub mod pci;
pub mod protocol;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;

mod config;
mod device;
mod error;
mod host;
mod log;
mod stream;
mod thread;
mod worker;

pub use bus::{
    Chain, PciDevice, PciInfo, PlatformDevice, PlatformInfo, QueueProgress, VirtQueue,
    VirtioDevice, VirtioInfo, VirtioRun, config_bytes,
};
pub use config::{Child, Config, Drive, Netdev, Object};
pub use descriptor::{
    BusClass, ChildBus, ChildType, DeviceType, PluginDescriptor, Property, PropertyKind, Value,
};
pub use device::{Device, no_such_section};
pub use error::{Error, ErrorKind, Result};
pub use host::{Chardev, Host};
pub use memory::GuestRam;
pub use migration::{Blocker, Fd, FdDeclaration, MigrationEvent, Mode, Section, Subsection};
pub use stream::{Direction, Stream};
pub use thread::{DeviceThread, Readiness, Waiter, Watch};
pub use worker::{QueueHandler, Watched, Worker};

// What a backend uses beside this crate, in the versions this crate was built with.
pub use {serde, tracing, virtio_bindings, virtio_queue, vm_memory, vmm_sys_util};
