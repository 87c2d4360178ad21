//! ACPI hot-plug of PCI devices on bus 0: the operator's side, and the registers that the methods of
//! the DSDT work with (`acpi/hotplug.rs`).
//!
//! A device that comes or shall go is a bit of a register and a general-purpose event, which raises
//! the SCI. The guest's method `_E01` reads the bits and notifies its drivers. Whoever has let go of a
//! device writes the bit of its slot to the eject register: the slot is empty for the guest from that
//! write on, and the device itself goes soon after, since a vCPU does not wait for it.

mod registers;
mod state;
#[cfg(test)]
mod tests;

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::events::MachineEvent;
use super::layout;
use super::pci::{PciAddress, PciBus};
use super::sci::{Sci, SciSource};

pub use registers::{GpeRegisters, HotplugRegisters};
pub use state::HotplugState;

/// Of section `acpi-pm`: a guest that never heard of hot-plug has it not.
pub const SUBSECTION: &str = "pci-hotplug";

/// The bit of [`layout::GPE_PCI_HOTPLUG`] in GPE0's registers.
const EVENT: u16 = 1 << layout::GPE_PCI_HOTPLUG;

/// The host bridge stays where it is.
const FIXED: u32 = 1;

/// Hot-plug of one machine. Called from any thread; it never waits for a device.
pub struct Hotplug {
    state: Mutex<HotplugState>,
    bus: Arc<PciBus>,
    sci: Arc<Sci>,
    requests: Sender<MachineEvent>,
}

/// The bit of the slot at `at`.
fn bit(at: PciAddress) -> u32 {
    1 << at.slot
}

impl Hotplug {
    /// Nothing is pending.
    pub fn new(bus: Arc<PciBus>, sci: Arc<Sci>, requests: Sender<MachineEvent>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            bus,
            sci,
            requests,
        })
    }

    /// Tells the guest of a device that is on the bus now.
    pub fn plugged(&self, at: PciAddress) {
        let mut state = self.lock();
        state.up |= bit(at);
        self.raise(&mut state);
    }

    /// Asks the guest to let go of what is in a slot. Asking again tells it again.
    pub fn request_unplug(&self, at: PciAddress) {
        let mut state = self.lock();
        state.down |= bit(at);
        state.requested |= bit(at);
        self.raise(&mut state);
    }

    /// The devices in this slot are gone for good.
    pub fn unplugged(&self, slot: u8) {
        let mut state = self.lock();
        let keep = !(1 << slot);
        state.up &= keep;
        state.down &= keep;
        state.requested &= keep;
        state.ejected &= keep;
    }

    /// The slots that the guest has ejected and whose devices are still there, as bits.
    pub fn ejected(&self) -> u32 {
        self.lock().ejected
    }

    /// Ejects what the guest was asked to let go of, since it does not run any more.
    pub fn eject_requested(&self) {
        let mut state = self.lock();
        let slots = state.requested;
        self.empty(&mut state, slots);
    }

    /// Back to power-on: what is on the bus the guest finds there. Slots that are ejected stay so.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = HotplugState {
            ejected: state.ejected,
            ..HotplugState::default()
        };
        self.update(&state);
    }

    /// The guest wakes from a sleep: what it was told, or came meanwhile, it is told once it listens again.
    pub fn wake(&self) {
        let mut state = self.lock();
        state.enable = 0;
        if state.up | state.down != 0 {
            state.status |= EVENT;
        }
        self.update(&state);
    }

    /// What can change, unless it is as at power-on.
    pub fn state(&self) -> Option<HotplugState> {
        let state = *self.lock();
        (state != HotplugState::default()).then_some(state)
    }

    /// Takes a state; without one it is as at power-on.
    pub fn load(&self, new: Option<HotplugState>) -> Result<(), String> {
        let new = new.unwrap_or_default();
        new.check()?;
        let mut state = self.lock();
        *state = new;
        for slot in slots(new.ejected) {
            self.bus.remove_slot(slot);
        }
        Ok(())
    }

    /// Raises the interrupt line again as the registers have it: a line is not part of the interrupt
    /// controllers' state.
    pub fn restore_line(&self) {
        self.update(&self.lock());
    }

    /// Tells the main thread once more of what is ejected and still there.
    pub fn announce_ejected(&self) {
        if self.ejected() != 0 {
            self.tell(MachineEvent::SlotsEjected);
        }
    }

    fn raise(&self, state: &mut HotplugState) {
        state.status |= EVENT;
        self.update(state);
    }

    fn update(&self, state: &HotplugState) {
        self.sci
            .set(SciSource::General, state.status & state.enable != 0);
    }

    /// Takes the functions in `slots` off the bus.
    fn empty(&self, state: &mut HotplugState, mask: u32) {
        let mut any = false;
        for slot in slots(mask & !FIXED & !state.ejected) {
            if self.bus.remove_slot(slot) {
                state.ejected |= 1 << slot;
                any = true;
            }
        }
        if any {
            self.tell(MachineEvent::SlotsEjected);
        }
    }

    fn tell(&self, event: MachineEvent) {
        // The machine may be going down already.
        let _ = self.requests.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, HotplugState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots of a bit mask.
pub fn slots(mask: u32) -> impl Iterator<Item = u8> {
    (0..PciAddress::SLOTS).filter(move |slot| mask & 1 << slot != 0)
}
