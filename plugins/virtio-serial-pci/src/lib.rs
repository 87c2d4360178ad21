//! Ports between programs in the guest and character devices: VIRTIO 1.3 section 5.3.

mod control;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod port;
mod seats;
mod service;
mod state;
#[cfg(test)]
mod tests;

use device::Serial;

baton_plugin_api::export_plugin! {
    description: "Ports and consoles of the guest",
    devices: [virtio Serial],
}
