//! The vmstate section `vfio-pci`, version 1: what is emulated. What the device itself has in it, nobody
//! can read.

use baton_plugin_api::pci::{Function, FunctionState};
use baton_plugin_api::serde::{Deserialize, Serialize};
use baton_plugin_api::{Error, Result};

/// What the device is, and the emulated registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
pub(crate) struct VfioSection {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
    pub(crate) class: u32,
    pub(crate) bars: Vec<u64>,
    pub(crate) function: FunctionState,
}

impl VfioSection {
    pub(crate) fn new(function: &Function) -> Self {
        let config = function.config();
        Self {
            vendor: config.u16_at(0x00),
            device: config.u16_at(0x02),
            subsystem_vendor: config.u16_at(0x2c),
            subsystem: config.u16_at(0x2e),
            class: u32::from(config.u16_at(0x0a)) << 8 | u32::from(config.u16_at(0x08)) >> 8,
            bars: function.info().bar_sizes.to_vec(),
            function: function.state(),
        }
    }

    /// Whether it is the state of a device like the one that `function` stands for.
    pub(crate) fn check(&self, function: &Function) -> Result<()> {
        let here = Self {
            function: self.function.clone(),
            ..Self::new(function)
        };
        if here == *self {
            return Ok(());
        }
        let shown = |it: &Self| {
            format!(
                "{:04x}:{:04x} ({:04x}:{:04x}, class {:06x}) with BARs of {:x?} bytes",
                it.vendor, it.device, it.subsystem_vendor, it.subsystem, it.class, it.bars
            )
        };
        Err(Error::state(format!(
            "The host device here is {}, and in the state {}; name the same kind of device",
            shown(&here),
            shown(self)
        )))
    }
}
