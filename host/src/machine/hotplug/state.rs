//! What can change of hot-plug, and goes along with the guest.

use serde::{Deserialize, Serialize};

use super::{EVENT, FIXED};

/// Registers and what is pending. Each mask has a bit for each slot of bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HotplugState {
    /// GPE0 status.
    pub(super) status: u16,
    /// GPE0 enable.
    pub(super) enable: u16,
    /// Slots with a new device that the guest has not read of.
    pub(super) up: u32,
    /// Slots to be let go of that the guest has not read of.
    pub(super) down: u32,
    /// Slots to be let go of.
    pub(super) requested: u32,
    /// Slots that are empty for the guest, and whose devices still have to go.
    pub(super) ejected: u32,
}

impl HotplugState {
    /// Refuses what the registers cannot hold.
    pub fn check(&self) -> Result<(), String> {
        let slots = self.up | self.down | self.requested | self.ejected;
        if (self.status | self.enable) & !EVENT != 0 || slots & FIXED != 0 {
            return Err("section 'acpi-pm/pci-hotplug' has bits that no register has".into());
        }
        Ok(())
    }
}
