//! A PCI device of the host, given to the guest: VFIO, the kernel's Documentation/driver-api/vfio.rst.
//!
//! What is the device's own goes to it: most of config space, its BARs, DMA and interrupts. What would
//! collide with the host's use of the same thing is emulated: where BARs decode, and what interrupts
//! send.
#![deny(unsafe_code)]

mod config;
mod container;
mod description;
mod device;
mod emulated;
mod errors;
mod handover;
mod hardware;
mod interrupts;
mod kernel;
mod linux;
mod mapped;
mod opened;
mod properties;
mod state;
mod vfio;
mod watch;

#[cfg(test)]
mod tests;

use device::VfioPci;

baton_plugin_api::export_plugin! {
    description: "A PCI device of the host, given to the guest",
    devices: [pci VfioPci],
}
