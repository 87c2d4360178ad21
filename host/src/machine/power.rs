//! Power management as ACPI describes it: PM1 registers, the timer, and the reset register
//! (ACPI 6.5 section 4.8.3).

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use baton_plugin_api::Section;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::bus::BusDevice;
use super::events::MachineEvent;
use super::hotplug;
use super::layout;
use super::sci::{Sci, SciSource};

const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const TIMER: u16 = 1;
const GLOBAL: u16 = 1 << 5;
const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON;
/// Set for ever, since there is no legacy mode to be in.
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
/// Section 4.8.3.3.
const TIMER_HZ: u128 = 3_579_545;

/// The registers, and who hears of what the guest asks for.
pub struct Power {
    state: Mutex<PowerState>,
    sci: Arc<Sci>,
    requests: Sender<MachineEvent>,
}

/// What can change of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerState {
    status: u16,
    enable: u16,
    sleep_type: u16,
    /// Nanoseconds of CLOCK_MONOTONIC at which the timer was 0. That clock is the same in every
    /// process of a host.
    timer_zero: u64,
}

impl PowerState {
    /// Refuses what no register can hold.
    pub(super) fn check(&self) -> Result<(), String> {
        if (self.status | self.enable) & !ENABLES != 0 || self.sleep_type > 7 {
            return Err("section 'acpi-pm' has bits that no register has".into());
        }
        Ok(())
    }

    /// Changes the time at which the timer was 0.
    pub fn shift(&mut self, monotonic: impl FnOnce(u64) -> u64) {
        self.timer_zero = monotonic(self.timer_zero);
    }
}

impl Power {
    /// Registers at power-on.
    pub fn new(sci: Arc<Sci>, requests: Sender<MachineEvent>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(PowerState::default()),
            sci,
            requests,
        })
    }

    /// The section's name and versions.
    pub fn section() -> Section {
        Section::new("acpi-pm", 1, 1).subsection(hotplug::SUBSECTION, 1, 1)
    }

    /// What can change.
    pub fn state(&self) -> PowerState {
        *self.lock()
    }

    /// Takes a state.
    pub fn load(&self, new: PowerState) -> Result<(), String> {
        new.check()?;
        *self.lock() = new;
        Ok(())
    }

    /// Raises the interrupt line again as the registers have it: a line is not part of the
    /// interrupt controllers' state.
    pub fn restore_line(&self) {
        self.update(&self.lock());
    }

    /// Back to power-on. The timer goes on.
    pub fn reset(&self) {
        let mut state = self.lock();
        *state = PowerState {
            timer_zero: state.timer_zero,
            ..PowerState::default()
        };
        self.update(&state);
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&self) {
        let mut state = self.lock();
        state.status |= POWER_BUTTON;
        self.update(&state);
    }

    fn update(&self, state: &PowerState) {
        self.sci
            .set(SciSource::Fixed, state.status & state.enable != 0);
    }

    fn write_control(&self, state: &mut PowerState, value: u16) {
        state.sleep_type = (value >> SLEEP_TYPE_SHIFT) & 7;
        if value & SLEEP_ENABLE != 0 && state.sleep_type == u16::from(layout::SLEEP_TYPE_S5) {
            // The machine may be going down already.
            let _ = self.requests.send(MachineEvent::PowerOff);
        }
    }

    fn timer(state: &PowerState) -> u32 {
        let now = monotonic_ns().wrapping_sub(state.timer_zero);
        // 24 bits, as the FADT says.
        ((u128::from(now) * TIMER_HZ / 1_000_000_000) & 0xff_ffff) as u32
    }

    fn lock(&self) -> MutexGuard<'_, PowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registers' ports begin at [`layout::PM1_EVENT_PORT`].
pub const PORTS: u64 = 12;

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let mut image = [0; PORTS as usize];
        image[0..2].copy_from_slice(&state.status.to_le_bytes());
        image[2..4].copy_from_slice(&state.enable.to_le_bytes());
        let control = SCI_ENABLED | state.sleep_type << SLEEP_TYPE_SHIFT;
        image[4..6].copy_from_slice(&control.to_le_bytes());
        image[8..12].copy_from_slice(&Self::timer(&state).to_le_bytes());
        baton_plugin_api::config_bytes(&image, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let low = data.first().copied().map_or(0, u16::from);
        let value = low | data.get(1).copied().map_or(0, u16::from) << 8;
        match (offset, data.len()) {
            // Status bits are cleared by writing ones.
            (0, 2) => state.status &= !value,
            (0, 4) => {
                state.status &= !value;
                state.enable = u16::from_le_bytes([data[2], data[3]]) & ENABLES;
            }
            (2, 2) => state.enable = value & ENABLES,
            (4, 2 | 4) => self.write_control(&mut state, value),
            _ => {}
        }
        self.update(&state);
    }
}

/// The reset register, among the ports of PCI config space.
pub struct ResetRegister {
    requests: Sender<MachineEvent>,
}

impl ResetRegister {
    /// Tells `requests` of a reset.
    pub fn new(requests: Sender<MachineEvent>) -> Self {
        Self { requests }
    }
}

impl BusDevice for ResetRegister {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        // Bit 2 begins a reset, bit 1 makes it a hard one.
        if data.first().is_some_and(|value| value & 4 != 0) {
            let _ = self.requests.send(MachineEvent::Reset);
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the same clock in every process of a host.
pub(super) fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    })
}
