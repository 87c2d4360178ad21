//! A disk for the guest: VIRTIO 1.3 section 5.2, on a raw file or a block device of the host.
//!
//! The path of a request: [`service`] takes a chain from its queue, [`request`] says what it asks
//! for, [`engine`] has the kernel do it on guest memory itself ([`buffers`]), and [`service`] gives
//! the chain back. [`device`] is what the host calls.
#![deny(unsafe_code)]

mod buffers;
mod config_space;
mod device;
mod engine;
mod fault_log;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod image;
mod properties;
mod request;
mod service;
mod state;
mod syscalls;
mod transfer;

#[cfg(test)]
mod tests;

baton_plugin_api::export_plugin! {
    description: "Disks for the guest",
    devices: [virtio device::Block],
}
