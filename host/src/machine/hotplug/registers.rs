//! The registers, as the guest's vCPUs meet them.

use std::sync::Arc;

use super::{EVENT, Hotplug, slots};
use crate::machine::bus::BusDevice;
use crate::machine::events::MachineEvent;

/// Slots with a new device. Reading clears them: each is told of once.
const UP: u64 = 0;
/// Slots to be let go of; likewise.
const DOWN: u64 = 4;
/// A one empties the slot.
const EJECT: u64 = 8;
/// What came of a notification: slot, event and status of `_OST`.
const STATUS: u64 = 12;

/// The low byte of both events by which `_OST` tells of an ejection (ACPI 6.5 section 6.3.5).
const EJECTION: u8 = 0x03;
/// Its statuses that mean that the guest is still at it, or done.
const NO_FAILURE: [u8; 3] = [0x00, 0x83, 0x84];

/// The ports of PCI hot-plug. They take accesses of four bytes; others find nothing.
pub struct HotplugRegisters(pub Arc<Hotplug>);

impl BusDevice for HotplugRegisters {
    fn name(&self) -> String {
        "acpi-pci-hotplug".to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.0.lock();
        let value = match (offset, data.len()) {
            (UP, 4) => std::mem::take(&mut state.up),
            (DOWN, 4) => std::mem::take(&mut state.down),
            _ => 0,
        };
        data.fill(0);
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = value.to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            EJECT => {
                let mut state = self.0.lock();
                self.0.empty(&mut state, value);
            }
            STATUS => self.status(value),
            _ => {}
        }
    }
}

impl HotplugRegisters {
    fn status(&self, value: u32) {
        let [slot, event, status, _] = value.to_le_bytes();
        let failed = event == EJECTION && !NO_FAILURE.contains(&status);
        let mut state = self.0.lock();
        // Only what it was asked for: a guest cannot make an operator hear of anything else.
        if failed && slots(state.requested).any(|asked| asked == slot) {
            state.requested &= !(1 << slot);
            self.0.tell(MachineEvent::UnplugRefused { slot });
        }
    }
}

/// The registers of general-purpose events, block 0: two bytes of status, two of enable.
pub struct GpeRegisters(pub Arc<Hotplug>);

impl BusDevice for GpeRegisters {
    fn name(&self) -> String {
        "acpi-gpe0".to_owned()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.0.lock();
        let [s0, s1] = state.status.to_le_bytes();
        let [e0, e1] = state.enable.to_le_bytes();
        baton_plugin_api::config_bytes(&[s0, s1, e0, e1], offset, data);
    }

    /// Each byte by itself, as the guest may access them by one or two.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.0.lock();
        for (at, byte) in (offset..).zip(data) {
            let byte = u16::from(*byte) << (8 * (at & 1));
            let mask = 0xff << (8 * (at & 1));
            match at {
                // Status bits are cleared by writing ones.
                0 | 1 => state.status &= !byte,
                2 | 3 => state.enable = (state.enable & !mask | byte) & EVENT,
                _ => {}
            }
        }
        self.0.update(&state);
    }
}
