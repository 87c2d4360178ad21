//! Power management as ACPI describes it: PM1 registers, the timer, sleeping, and the reset register
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
/// The clock's alarm has woken the machine; enabled, it may. As in QEMU it is no event of a machine that
/// is awake: the clock has an interrupt of its own then.
const ALARM: u16 = 1 << 10;
/// The machine was woken; nothing enables an interrupt for it.
const WAKE: u16 = 1 << 15;
/// Set for ever, since there is no legacy mode to be in.
const SCI_ENABLED: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPE_SHIFT: u16 = 10;
/// Section 4.8.3.3.
const TIMER_HZ: u128 = 3_579_545;

/// Of section `acpi-pm`: only a guest that sleeps, is about to, or was woken and has yet to take notice, has it.
const SLEEP: &str = "sleep";

/// The registers, and who hears of what the guest asks for.
pub struct Power {
    state: Mutex<Registers>,
    sci: Arc<Sci>,
    requests: Sender<MachineEvent>,
}

/// What can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Registers {
    status: u16,
    enable: u16,
    sleep_type: u16,
    /// Nanoseconds of CLOCK_MONOTONIC at which the timer was 0. That clock is the same in every
    /// process of a host.
    timer_zero: u64,
    /// Whether the guest sleeps (S3): its last access was the one that said so.
    asleep: bool,
}

/// The section: all but what has to do with sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerState {
    status: u16,
    enable: u16,
    sleep_type: u16,
    timer_zero: u64,
}

/// The subsection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SleepState {
    /// Whether the guest sleeps.
    asleep: bool,
    /// The status bits that tell of waking.
    status: u16,
    /// Whether the clock's alarm may wake it: [`ALARM`] or nothing.
    enable: u16,
}

/// Who wakes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeSource {
    /// An operator, which looks like the power button to the guest, as in QEMU.
    Operator,
    /// The power button.
    PowerButton,
    /// The clock's alarm.
    Alarm,
}

impl WakeSource {
    /// The status bit that tells the guest.
    const fn status(self) -> u16 {
        match self {
            Self::Operator | Self::PowerButton => POWER_BUTTON,
            Self::Alarm => ALARM,
        }
    }
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

impl SleepState {
    /// Refuses what no register can hold.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.status & !(WAKE | ALARM) != 0 || self.enable & !ALARM != 0 {
            return Err("section 'acpi-pm/sleep' has bits that no register has".into());
        }
        Ok(())
    }
}

impl Power {
    /// Registers at power-on.
    pub fn new(sci: Arc<Sci>, requests: Sender<MachineEvent>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(Registers::default()),
            sci,
            requests,
        })
    }

    /// The section's name and versions.
    pub fn section() -> Section {
        Section::new("acpi-pm", 1, 1)
            .subsection(hotplug::SUBSECTION, 1, 1)
            .subsection(SLEEP, 1, 1)
    }

    /// The subsection's, as a section of its own name.
    pub fn sleep_section() -> Section {
        Section::new(&format!("acpi-pm/{SLEEP}"), 1, 1)
    }

    /// What the section holds.
    pub fn state(&self) -> PowerState {
        let state = self.lock();
        PowerState {
            status: state.status & ENABLES,
            enable: state.enable & ENABLES,
            sleep_type: state.sleep_type,
            timer_zero: state.timer_zero,
        }
    }

    /// What the subsection holds, if it is needed.
    pub fn sleep_state(&self) -> Option<SleepState> {
        let state = self.lock();
        let sleep = SleepState {
            asleep: state.asleep,
            status: state.status & (WAKE | ALARM),
            enable: state.enable & ALARM,
        };
        (sleep != SleepState::default()).then_some(sleep)
    }

    /// Takes a state.
    pub fn load(&self, new: PowerState, sleep: Option<SleepState>) -> Result<(), String> {
        let sleep = sleep.unwrap_or_default();
        new.check()?;
        sleep.check()?;
        *self.lock() = Registers {
            status: new.status | sleep.status,
            enable: new.enable | sleep.enable,
            sleep_type: new.sleep_type,
            timer_zero: new.timer_zero,
            asleep: sleep.asleep,
        };
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
        *state = Registers {
            timer_zero: state.timer_zero,
            ..Registers::default()
        };
        self.update(&state);
    }

    /// Whether the guest sleeps. It may still be running for a moment after it has said so, and
    /// nothing it does then counts.
    pub fn is_asleep(&self) -> bool {
        self.lock().asleep
    }

    /// Whether the clock's alarm may wake the guest.
    pub fn takes_alarm(&self) -> bool {
        self.lock().enable & ALARM != 0
    }

    /// The guest does not sleep any more, by whose doing its registers tell.
    pub fn wake(&self, source: WakeSource) {
        self.reset();
        self.lock().status = WAKE | source.status();
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&self) {
        let mut state = self.lock();
        state.status |= POWER_BUTTON;
        self.update(&state);
    }

    fn update(&self, state: &Registers) {
        self.sci
            .set(SciSource::Fixed, state.status & state.enable != 0);
    }

    fn write_control(&self, state: &mut Registers, value: u16) {
        state.sleep_type = (value >> SLEEP_TYPE_SHIFT) & 7;
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        let request = match u8::try_from(state.sleep_type) {
            Ok(layout::SLEEP_TYPE_S5) => MachineEvent::PowerOff,
            Ok(layout::SLEEP_TYPE_S3) => {
                // From this access on, whoever looks first: a migration may stop the guest before
                // anybody acts on the request.
                state.asleep = true;
                MachineEvent::Sleep
            }
            _ => return,
        };
        // The machine may be going down already.
        let _ = self.requests.send(request);
    }

    fn timer(state: &Registers) -> u32 {
        let now = monotonic_ns().wrapping_sub(state.timer_zero);
        // 24 bits, as the FADT says.
        ((u128::from(now) * TIMER_HZ / 1_000_000_000) & 0xff_ffff) as u32
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registers' ports begin at [`layout::PM1_EVENT_PORT`].
pub const PORTS: u64 = 12;

impl BusDevice for Power {
    fn name(&self) -> String {
        "acpi-pm".to_owned()
    }

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
        if state.asleep {
            return;
        }
        let low = data.first().copied().map_or(0, u16::from);
        let value = low | data.get(1).copied().map_or(0, u16::from) << 8;
        match (offset, data.len()) {
            // Status bits are cleared by writing ones.
            (0, 2) => state.status &= !value,
            (0, 4) => {
                state.status &= !value;
                state.enable = u16::from_le_bytes([data[2], data[3]]) & (ENABLES | ALARM);
            }
            (2, 2) => state.enable = value & (ENABLES | ALARM),
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
    fn name(&self) -> String {
        "reset".to_owned()
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_with_bits_that_no_register_has_is_refused() {
        let sleep = |asleep, status, enable| SleepState {
            asleep,
            status,
            enable,
        };
        for right in [sleep(true, WAKE | ALARM, ALARM), sleep(false, 0, 0)] {
            assert_eq!(right.check(), Ok(()));
        }
        for wrong in [
            sleep(true, POWER_BUTTON, 0),
            sleep(true, 0, WAKE),
            sleep(false, 1 << 11, 0),
        ] {
            let error = wrong.check().expect_err("refused");
            assert!(error.contains("acpi-pm/sleep"), "{error}");
        }
        // What has to do with sleeping is not in the section itself.
        let state = PowerState {
            status: WAKE,
            ..PowerState::default()
        };
        state.check().expect_err("refused");
    }
}
