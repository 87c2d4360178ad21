//! The device as a plugin: see `benches/abi.rs`.

mod device;

use device::Probe;

baton_plugin_api::export_plugin! {
    description: "Registers to measure calls with",
    devices: [platform Probe],
}
